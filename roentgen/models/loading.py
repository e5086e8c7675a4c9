"""From a model folder to loaded components: checks first, then diffusers' own loaders.

Components are loaded one by one rather than by ``DiffusionPipeline``: that is faster to import, never
touches the safety checker, and lets every damaged file be named. A model folder never runs code: only the classes of
``CLASSES`` are loaded, none of a folder's own, and weights are safetensors or are unpickled as tensors alone.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.files import explained, read_json, reason
from roentgen.models.hub import VARIANTS, WEIGHTED, pick_weights, weights
from roentgen.models.plain import load_part

COMPONENTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
ADVICE = "fetch the model again"
MOST_LAYERS = 10_000
# For transformers: nothing is fetched, and a folder with an auto_map is not asked about on stdin.
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# Library and classes of each component; others would run code that nobody here has read, or are of other pipelines.
CLASSES = {
    "vae": ("diffusers", r"AutoencoderKL"),
    "unet": ("diffusers", r"UNet2DConditionModel"),
    "text_encoder": ("transformers", r"(CLIPText|Bert|Roberta)Model"),
    "tokenizer": ("transformers", r"(CLIP|Bert|Roberta)Tokenizer(Fast)?|PreTrainedTokenizerFast|TokenizersBackend"),
    "scheduler": ("diffusers", r"\w+Scheduler"),
}
# Text encoders with a pooler behind the last hidden state. Nothing reads it here, so it is left out: it would be made
# of random numbers where a file has none, and training in several processes would wait for its gradients.
POOLED = ("BertModel", "RobertaModel")


def check_folder(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each component; UserError if this is no whole Stable Diffusion pipeline."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(
            f"--model {folder}: not a diffusers pipeline (no model_index.json); "
            "pass the folder that `save_pretrained` or `hf download` wrote"
        )
    index = read_json(index_file, advice=ADVICE)
    classes: dict[str, tuple[str, str]] = {}
    for name in COMPONENTS:
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise UserError(
                f"{index_file}: not a Stable Diffusion pipeline (no {name}); "
                "roentgen runs pipelines with vae, unet, text_encoder, tokenizer and scheduler"
            )
        library, allowed = CLASSES[name]
        if entry[0] != library or not re.fullmatch(allowed, entry[1]):
            raise UserError(
                f"{index_file}: {name} comes from {entry[0][:60]!r} as {entry[1][:60]!r}, which is not loaded, so "
                f"that no model folder runs code: text-to-image pipelines have {_in_words(allowed)} of {library} there"
            )
        classes[name] = (entry[0], entry[1])
    second = index.get("text_encoder_2")
    if isinstance(second, list) and second and second[0] is not None:
        raise UserError(f"{index_file}: pipelines with two text encoders (SDXL) are not supported")
    for name in COMPONENTS:
        if not (folder / name).is_dir():
            raise UserError(f"--model {folder}: the folder {name} is missing; fetch the model again")
    for name in WEIGHTED:
        for file in weights(folder / name).files:
            if file.suffix == ".safetensors":
                check_safetensors(file)
    return classes


def _in_words(pattern: str) -> str:
    """A pattern of ``CLASSES`` as people read it."""
    return pattern.replace("\\w+", "any ").replace("(Fast)?", "").replace("(", "").replace(")", "").replace("|", ", ")


def check_safetensors(file: Path) -> None:
    """UserError if weights are cut short.

    The header says how long the file must be: catch a truncated one before minutes of loading.
    """
    try:
        size = file.stat().st_size if file.is_file() else 0  # a pipe would be waited for without end
        with file.open("rb") if size else io.BytesIO() as stream:
            start = stream.read(64)
            if start.startswith(b"version https://git-lfs"):
                raise UserError(f"{file}: a Git LFS pointer, not weights; run `git lfs pull` in the model folder")
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
            stream.seek(8)
            header = json.loads(stream.read(length)) if 8 + length <= size else None
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]  # type: ignore[union-attr]
            whole = 8 + length + max(ends, default=0) == size
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason(error)}); {ADVICE}") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{file}: truncated or damaged weights ({size} bytes); fetch the model again")


def load_components(
    folder: Path, classes: dict[str, tuple[str, str]], dtype: Any, *, plain: bool = False
) -> dict[str, Any]:
    """Every component of ``folder``, on the CPU: by its class's ``from_pretrained``, or with ``plain`` in a form that
    samples only, where ``models.plain`` knows one. UserError if bad."""
    loaded: dict[str, Any] = {}
    for name, (library, class_name) in classes.items():
        if name in WEIGHTED and (variant := weights(folder / name).variant) not in VARIANTS:
            print(f"roentgen: {folder / name}: its weights are the variant {variant}", file=sys.stderr)
        if plain:
            loaded[name] = load_part(name, folder / name, class_name, dtype)
        if loaded.get(name) is None:
            loaded[name] = load_component(folder, name, library, class_name, dtype)
    return loaded


def load_component(folder: Path, name: str, library: str, class_name: str, dtype: Any) -> Any:
    """One component by its class's ``from_pretrained``."""
    try:
        component = getattr(importlib.import_module(library), class_name)
    except (AttributeError, ImportError) as error:
        raise UserError(
            f"{folder / 'model_index.json'}: {name} needs {library}.{class_name}, which the installed "
            f"{library} does not have; try `pip install --upgrade {library}`"
        ) from error
    options: dict[str, Any] = {}
    if name in WEIGHTED:
        options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
    if class_name in POOLED:
        options["add_pooling_layer"] = False
    loaded = from_folder(component, folder / name, f"{folder / name}: cannot be loaded as {class_name}", **options)
    return loaded.requires_grad_(False) if name in WEIGHTED else loaded


def from_folder(
    kind: Any, folder: Path, what: str, fix: str = ADVICE, *, who: str = "", unused: tuple[str, ...] = (),
    **options: Any,
) -> Any:  # fmt: skip
    """``kind.from_pretrained(folder)``, ``kind`` being a class of transformers or diffusers; networks in evaluation
    mode.

    Raises:
        UserError: it cannot be loaded (``what`` and ``fix``), or the files lack weights that are none of ``unused``
            (``nothing_missing``, which begins with ``who``; the folder without it).
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()  # heads that are left out would be listed as a problem
    logging.disable_progress_bar()
    network = kind.__name__.startswith("AutoModel") or issubclass(kind, torch.nn.Module)
    if of_diffusers := kind.__module__.startswith("diffusers."):
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.set_verbosity_error()
    if network and (folder / "config.json").exists():  # else the loader says what is missing
        read_config(folder / "config.json", kind if of_diffusers else None)
    options |= {"local_files_only": True} if of_diffusers else SAFE
    told = network and not of_diffusers
    with explained(what, fix):
        if network:
            options["variant"] = pick_weights(path.name for path in folder.iterdir())[1]
        if told:
            options["output_loading_info"] = True
        loaded = kind.from_pretrained(folder, **options)
    if told:
        loaded = nothing_missing(loaded, who or str(folder), unused=unused)
    if network:
        check_filled(loaded.eval(), folder)
    return loaded


def read_config(path: Path, component: Any = None) -> dict[str, Any]:
    """What a configuration says; UserError where its numbers are none, or beyond all networks, and would take hours to
    build.

    Where ``component``, a class of diffusers, has a number by default, a text, a table, true or false is refused too:
    diffusers takes it, and the first use fails.
    """
    config = read_json(path, advice=ADVICE)
    for key, value in _scalars(config):
        if isinstance(value, int | float) and not abs(value) < (MOST_LAYERS if "layers" in key else 2**31):
            raise UserError(f"{path}: {key} is {str(value)[:40]}, which no network has; {ADVICE}")
    defaults = {} if component is None else inspect.signature(component.__init__).parameters
    for key, parameter in defaults.items():
        number = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
        if number and isinstance(config.get(key), str | dict | bool):
            raise UserError(f"{path}: {key} must be a number, not {json.dumps(config[key])}; {ADVICE}")
    return config


def _scalars(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values inside with the names under which they stand."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _scalars(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _scalars(inner, key)
    else:
        yield key, value


def nothing_missing(loaded: tuple[Any, Any], who: str, *, unused: tuple[str, ...] = ()) -> Any:
    """The model of what transformers ``loaded`` with ``output_loading_info``, which says what the file lacked.

    transformers would go on with random numbers there: UserError, which begins with ``who``, unless the names of all
    that is missing begin with one of ``unused``.
    """
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(unused))
    if missing:
        newer = "transformers 5.6 and newer write it so: `pip install --upgrade transformers`, or "
        raise UserError(
            f"{who}: {len(missing)} weights of {type(model).__name__} are missing (such as {missing[0]}): they are of "
            f"another architecture, or cut short; {newer if missing[0].startswith('text_model.') else ''}{ADVICE}"
        )
    return model


def check_filled(model: Any, folder: Path) -> None:
    """UserError if the weights in ``folder`` lack some of ``model``: diffusers leaves those on the meta device, where
    they have a shape and no numbers, and the first use fails."""
    empty = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if empty:
        raise UserError(
            f"{folder}: {len(empty)} weights of {type(model).__name__} are missing (such as {empty[0]}); {ADVICE}"
        )


def load_vae(folder: Path) -> Any:
    """An ``AutoencoderKL`` from a diffusers folder, in evaluation mode, without gradients."""
    from diffusers import AutoencoderKL

    vae = from_folder(AutoencoderKL, folder, f"{folder}: no autoencoder can be loaded from there", "")
    return vae.requires_grad_(False)
