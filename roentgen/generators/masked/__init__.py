"""Masked generative transformers on image tokens, as MaskGIT, Muse and RayGen. Light at import: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.generators.masked.folder import check_folder
from roentgen.generators.masked.sampling import Sampling

if TYPE_CHECKING:
    from roentgen.generators.masked.model import Masked

__all__ = ["Sampling", "check_folder", "load"]


def load(folder: Path, **options: Any) -> Masked:
    """``Masked.load``; a damaged folder is told before seconds of imports."""
    check_folder(folder)
    from roentgen.generators.masked.model import Masked

    return Masked.load(folder, **options)
