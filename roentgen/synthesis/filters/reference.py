"""The reference of the quality filter: what it knows of real images, made by ``roentgen train reference``.

A folder with ``reference.json`` (thresholds, what they were fitted on, the classifier's hash) and
``reference.safetensors`` (arrays); with ``classifier/`` where it was made with another classifier than the one that
ships. Arrays: those of ``Appearance``, ``thumbnails`` uint8 (M, 1024) of all training images, ``pair_counts`` int64
(257,) of ``repeats.pair_counts``, and ``head_view``, ``head_sex``, ``head_age`` (K + 1,) where they are good enough:
weights of ``Appearance.coordinates`` and, last, the intercept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import explained, file_hash, sha256, user_path, write_atomic
from roentgen.models.classifier import SHIPPED as SHIPPED_CLASSIFIER
from roentgen.synthesis.filters.appearance import Appearance

SHIPPED = Path(__file__).parents[2] / "models" / "reference"
VERSION = 1
JSON, ARRAYS = "reference.json", "reference.safetensors"
MADE_BY = "make it again with `roentgen train reference --manifest MANIFEST --out DIR`"


@dataclass(frozen=True)
class Reference:
    """A loaded reference. ``info`` is its JSON, ``arrays`` its arrays; ``hash`` 16 hex digits over both."""

    folder: Path
    info: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    hash: str

    @property
    def thresholds(self) -> Mapping[str, Any]:
        """By stage."""
        found: Mapping[str, Any] = self.info["thresholds"]
        return found

    def about(self) -> dict[str, Any]:
        """What it was made from, for the card."""
        manifest, images = self.info["manifest"], self.info["images"]
        return {
            "hash": self.hash,
            "manifest": f"{manifest['name']}, SHA-256 {manifest['sha256']}",
            "classifier": self.info["classifier"]["hash"],
            "images": f"{images['train']} for training; thresholds from {images['held_out']} that no fit has seen",
        }

    @property
    def appearance(self) -> Appearance:
        """What real images look like."""
        kinds = ("feature_", "pixel_", "texture_", "typical")
        return Appearance({k: v.astype(np.float64) for k, v in self.arrays.items() if k.startswith(kinds)})

    @property
    def classifier(self) -> Path:
        """Folder of the classifier that it was made with."""
        own = self.folder / "classifier"
        return own if own.is_dir() else SHIPPED_CLASSIFIER


def save_reference(folder: Path, info: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the folder, the JSON last; the same content gives the same bytes."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())})
    write_atomic(folder / ARRAYS, data)
    body = {"version": VERSION, **info, "arrays_sha256": sha256(data)}
    write_atomic(folder / JSON, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def load_reference(folder: Path | None = None) -> Reference:
    """The reference in ``folder``; None is that of ``mini``.

    Raises:
        UserError: nothing there, damaged, of another version, or made with a classifier that is not here.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    where = SHIPPED if folder is None else user_path(folder)
    for name in (JSON, ARRAYS):
        if not (where / name).is_file():
            raise UserError(f"--reference {where}: no reference there ({name} is missing); {MADE_BY}")
    with explained(f"--reference {where}: cannot be read", "check its permissions", OSError):
        text, data = (where / JSON).read_bytes(), (where / ARRAYS).read_bytes()
    try:
        info = json.loads(text)
        version, wanted, classifier = info["version"], info["arrays_sha256"], info["classifier"]["hash"]
        info["thresholds"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--reference {where}: {JSON} is damaged; {MADE_BY}") from None
    if version != VERSION:
        raise UserError(f"--reference {where}: of version {version}, not {VERSION}; {MADE_BY}")
    if sha256(data) != wanted:
        raise UserError(f"--reference {where}: {ARRAYS} is damaged or of another reference; {MADE_BY}")
    with explained(f"--reference {where}: {ARRAYS} cannot be read", MADE_BY, SafetensorError):
        arrays = load(data)
    found = Reference(where, info, arrays, sha256(text)[:16])
    if file_hash(found.classifier) != classifier:
        raise UserError(f"--reference {where}: made with another classifier than {found.classifier.name}; {MADE_BY}")
    return found
