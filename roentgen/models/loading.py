"""From a model folder or hub id to loaded components: checks first, then diffusers' own loaders.

Components are loaded one by one rather than by ``DiffusionPipeline``: that is faster to import, never
touches the safety checker, and lets every damaged file be named.
"""

from __future__ import annotations

import importlib
import json
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.files import file_sha256, sha256
from roentgen.models.registry import Source, cached_snapshot

COMPONENTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("vae", "unet", "text_encoder")
LIBRARIES = ("diffusers", "transformers")
LORA_FILE = "pytorch_lora_weights.safetensors"
# Text encoders with a pooler behind the last hidden state. Nothing reads it here, so it is left out: it would be made
# of random numbers where a file has none, and training in several processes would wait for its gradients.
POOLED = ("BertModel", "RobertaModel")


@dataclass(frozen=True)
class Weights:
    """Weight files of one component, and diffusers' name for their variant (``fp16``) or None."""

    files: tuple[Path, ...]
    variant: str | None


def find_folder(source: Source) -> Path:
    """Local folder of ``source``; a hub id comes from the cache if it is whole there, else from the hub."""
    if source.folder is not None:
        return source.folder
    for hub_id in source.hub_ids:
        cached = cached_snapshot(hub_id)
        if cached is not None:
            try:
                check_folder(cached)
                return cached
            except UserError:
                print(f"roentgen: the cached copy of {hub_id} is not whole; fetching it again", file=sys.stderr)
    reasons = []
    for hub_id in source.hub_ids:
        try:
            return _download(hub_id)
        except Exception as error:  # hub, HTTP and OS errors; each class means something else to the user
            reasons.append((hub_id, error))
    raise fetch_error("--model", source.name, reasons) from reasons[0][1]


def _download(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()  # its warnings say what our error says
    print(f"roentgen: fetching {hub_id} from the Hugging Face hub", file=sys.stderr)
    # Passing None leaves the safety checker and its feature extractor out of the download.
    return Path(DiffusionPipeline.download(hub_id, safety_checker=None, feature_extractor=None))


def fetch_error(flag: str, name: str, reasons: list[tuple[str, Exception]], *, files: str = "") -> UserError:
    """What to tell the user where the hub ids of ``flag`` ``name`` could not be fetched, each for its reason.

    ``files``: which files of the repository are needed, for those who fetch them elsewhere.
    """
    from huggingface_hub import errors

    hub_id = reasons[0][0]
    causes = [_chain(error) for _, error in reasons]
    if any(isinstance(error, errors.GatedRepoError) for chain in causes for error in chain):
        return UserError(
            f"{flag} {name}: {hub_id} is gated; accept its terms on https://huggingface.co/{hub_id}, "
            "run `hf auth login`, and try again"
        )
    if all(any(isinstance(error, errors.RepositoryNotFoundError) for error in chain) for chain in causes):
        return UserError(
            f"{flag} {name}: the Hugging Face hub has no public model {' or '.join(one for one, _ in reasons)}; "
            "check the spelling, or run `hf auth login` if it is private"
        )
    return UserError(
        f"{flag} {name}: {hub_id} is not on this disk and the Hugging Face hub cannot be reached "
        f"({short(causes[0][-1])}); where there is a network run `hf download {hub_id} --local-dir FOLDER` "
        f"(or `huggingface-cli download`){f', which fetches {files},' if files else ','} then pass {flag} FOLDER"
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def check_folder(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each component; UserError if this is no whole Stable Diffusion pipeline."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise UserError(
            f"--model {folder}: not a diffusers pipeline (no model_index.json); "
            "pass the folder that `save_pretrained` or `hf download` wrote"
        )
    index = read_json(index_file)
    classes: dict[str, tuple[str, str]] = {}
    for name in COMPONENTS:
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise UserError(
                f"{index_file}: not a Stable Diffusion pipeline (no {name}); "
                "roentgen runs pipelines with vae, unet, text_encoder, tokenizer and scheduler"
            )
        if entry[0] not in LIBRARIES:
            raise UserError(f"{index_file}: {name} comes from {entry[0]!r}; only diffusers and transformers do")
        classes[name] = (entry[0], entry[1])
    if index.get("text_encoder_2", [None])[0] is not None:
        raise UserError(f"{index_file}: pipelines with two text encoders (SDXL) are not supported")
    for name in COMPONENTS:
        if not (folder / name).is_dir():
            raise UserError(f"--model {folder}: the folder {name} is missing; fetch the model again")
    for name in WEIGHTED:
        for file in weights(folder / name).files:
            if file.suffix == ".safetensors":
                check_safetensors(file)
    return classes


def weights(component: Path) -> Weights:
    """The weight files that from_pretrained will read: safetensors before bin, full before fp16."""
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(path for path in component.glob(pattern) if not path.name.startswith("."))
        plain = tuple(path for path in files if "." not in path.stem)
        half = tuple(path for path in files if ".fp16" in path.name)
        if plain or half:
            return Weights(plain or half, None if plain else "fp16")
    raise UserError(f"--model {component.parent}: {component.name} has no weights; fetch the model again")


def check_safetensors(file: Path) -> None:
    """UserError if weights are cut short.

    The header says how long the file must be: catch a truncated one before minutes of loading.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{file}: a Git LFS pointer, not weights; run `git lfs pull` in the model folder")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else size
        try:
            stream.seek(8)
            header = json.loads(stream.read(length)) if 8 + length <= size else None
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]  # type: ignore[union-attr]
            whole = 8 + length + max(ends, default=0) == size
        except (ValueError, AttributeError, KeyError, TypeError):
            whole = False
    if not whole:
        raise UserError(f"{file}: truncated or damaged weights ({size} bytes); fetch the model again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object; UserError otherwise."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({short(error)}); fetch the model again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object; fetch the model again")
    return value


def model_hash(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over lines ``component/file sha256`` of the weight files, sorted."""
    lines = []
    for name in WEIGHTED:
        for file in weights(folder / name).files:
            # The Hugging Face cache names a large file by its SHA-256: no need to read gigabytes again.
            real = file.resolve()
            if re.fullmatch(r"[0-9a-f]{64}", real.name) and real.parent.name == "blobs":
                digest = real.name
            else:
                digest = file_sha256(file)
            lines.append(f"{name}/{file.name} {digest}\n")
    return sha256("".join(sorted(lines)))[:16]


def load_components(folder: Path, classes: dict[str, tuple[str, str]], dtype: Any) -> dict[str, Any]:
    """Every component of ``folder`` by its class's ``from_pretrained``, on the CPU; UserError if bad."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded: dict[str, Any] = {}
    for name, (library, class_name) in classes.items():
        try:
            component = getattr(importlib.import_module(library), class_name)
        except (AttributeError, ImportError) as error:
            raise UserError(
                f"{folder / 'model_index.json'}: {name} needs {library}.{class_name}, which the installed "
                f"{library} does not have; try `pip install --upgrade {library}`"
            ) from error
        options: dict[str, Any] = {"local_files_only": True}
        if name in WEIGHTED:
            options["variant"] = weights(folder / name).variant
            options["torch_dtype" if library == "diffusers" else "dtype"] = dtype
        if class_name in POOLED:
            options["add_pooling_layer"] = False
        missing: list[str] = []
        try:
            if name == "text_encoder" and library == "transformers":
                loaded[name], info = component.from_pretrained(folder / name, output_loading_info=True, **options)
                missing = sorted(info["missing_keys"])
            else:
                loaded[name] = component.from_pretrained(folder / name, **options)
        except Exception as error:  # config, JSON, safetensors and shape errors alike mean a bad component
            raise UserError(
                f"{folder / name}: cannot be loaded as {class_name} ({short(error)}); fetch the model again"
            ) from error
        if missing:  # transformers would go on with random numbers
            raise UserError(
                f"{folder / name}: {len(missing)} weights of {class_name} are missing (such as {missing[0]}); "
                "fetch the model again"
            )
        if isinstance(loaded[name], torch.nn.Module):
            loaded[name].eval().requires_grad_(False)
    return loaded


def find_lora(path: str | Path) -> Path:
    """The file of ``--lora``, given itself or by its folder; UserError if there is none or it is damaged."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / LORA_FILE
    if not file.is_file():
        raise UserError(f"--lora {path}: no such file, and no folder with {LORA_FILE}; pass what LoRA training wrote")
    if file.suffix != ".safetensors":
        raise UserError(f"--lora {path}: not a .safetensors file; pass the {LORA_FILE} that LoRA training wrote")
    check_safetensors(file)
    return file


def add_lora(file: Path, parts: dict[str, Any]) -> str:
    """Merge a diffusers LoRA into U-Net and text encoder; return the SHA-256 of its file.

    diffusers' own loader reads it, so that all formats that it knows work. UserError if peft is not installed or the
    LoRA was made for another model; ``parts`` are not to be used then.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UserError("--lora needs the package peft; install it with `pip install peft`") from None
    from diffusers import StableDiffusionPipeline

    from roentgen.training.lora import merge_lora

    adders = {
        "unet": StableDiffusionPipeline.load_lora_into_unet,
        "text_encoder": StableDiffusionPipeline.load_lora_into_text_encoder,
    }
    unfit = f"--lora {file}: does not fit this model"
    try:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file), return_lora_metadata=True, unet_config=parts["unet"].config
        )
        strange = [key for key in state if key.split(".")[0] not in adders or "lora" not in key]
        if strange or not state:
            raise UserError(f"{unfit} ({strange[0] if strange else 'it is empty'}); pass a LoRA for Stable Diffusion")
        for name, add in adders.items():
            count = sum(key.startswith(f"{name}.") for key in state)
            if count:
                add(state, network_alphas=alphas, metadata=metadata, **{name: parts[name]})
                found = sum("lora_" in key for key, _ in parts[name].named_parameters())
                if found != count:  # diffusers only warns of what has no place
                    raise UserError(f"{unfit} ({count} of its tensors are for the {name}, which takes {found})")
                merge_lora(parts[name])
                parts[name].requires_grad_(False)
    except UserError:
        raise
    except Exception as error:  # peft, diffusers and torch each have their own for wrong names and shapes
        raise UserError(f"{unfit} ({short(error)}); pass one that was trained on it") from error
    return file_sha256(file)


def short(error: BaseException) -> str:
    """First 200 characters of an error's message, on one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
