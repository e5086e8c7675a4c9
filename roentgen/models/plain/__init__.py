"""The networks of a diffusers pipeline in plain torch, for sampling only, from the same files.

Importing diffusers and transformers takes several times as long as making an image, and they compute again at every
step what does not change. Here is what the common pipelines need; for any other ``load_part`` gives None, and the
libraries' own classes are loaded. Training always takes theirs.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from roentgen.errors import UserError
from roentgen.files import explained, read_json
from roentgen.models.hub import weights

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Classes of which a sampler needs the schedule of betas and no more."""
NUMBERS = re.compile(r"num_|size|channels|_dim|eps|layers|groups|factor")
"""Names in configurations whose values are numbers, where there are any."""


def load_part(name: str, folder: Path, class_name: str, dtype: Any) -> Any:
    """One component of a pipeline, on the CPU, weights mapped from the file; None where it is not known here.

    A damaged one is not known either: the library's loader says what is wrong with it.
    """
    with contextlib.suppress(UserError), explained(str(folder)):  # whatever its configuration holds
        if name == "tokenizer":
            return _tokenizer(folder, class_name)
        if name == "scheduler":
            return _schedule(folder, class_name)
        return _network(name, folder, class_name, dtype)


def _tokenizer(folder: Path, class_name: str) -> Any:
    from roentgen.models.plain.text import Tokenizer

    return Tokenizer(folder) if class_name.startswith("CLIPTokenizer") else None


def _schedule(folder: Path, class_name: str) -> Any:
    """The configuration alone: samplers are made from it."""
    config = read_json(folder / "scheduler_config.json", advice="fetch the model again")
    return SimpleNamespace(config=config) if class_name in SCHEDULERS and "beta_schedule" in config else None


def _network(name: str, folder: Path, class_name: str, dtype: Any) -> Any:
    import torch
    from safetensors.torch import load_file

    from roentgen.models.plain.decoder import Autoencoder
    from roentgen.models.plain.text import TextEncoder
    from roentgen.models.plain.unet import UNet

    kinds: dict[str, Any] = {
        "UNet2DConditionModel": UNet,
        "AutoencoderKL": Autoencoder,
        "CLIPTextModel": TextEncoder,
    }
    kind = kinds.get(class_name)
    config = read_json(folder / "config.json", advice="fetch the model again")
    files = weights(folder).files
    if kind is None or not kind.fits(config) or any(file.suffix != ".safetensors" for file in files):
        return None
    if any(isinstance(value, bool) and NUMBERS.search(key) for key, value in config.items()):
        return None
    # Older versions of transformers write the text encoder's names with a prefix.
    found = {key.removeprefix("text_model."): value for file in files for key, value in load_file(file).items()}
    state = {key: value for key, value in found.items() if not _unused(name, key)}
    with torch.device("meta"):  # no memory, and no random numbers that the file replaces
        network = kind(config)
    network.load_state_dict(state, assign=True)
    return network.to(dtype).eval().requires_grad_(False)


def _unused(name: str, key: str) -> bool:
    """Weights that sampling does not read."""
    return key.endswith("position_ids") or (name == "vae" and key.startswith(("encoder.", "quant_conv.")))
