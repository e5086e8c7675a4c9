"""Latent diffusion: Stable Diffusion pipelines in diffusers' layout. Light at import: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from roentgen.generators.diffusion.sampling import Sampling
from roentgen.models.loading import check_folder

if TYPE_CHECKING:
    from roentgen.generators.diffusion.model import Diffusion

__all__ = ["Sampling", "check_folder", "load"]


def load(folder: Path, **options: Any) -> Diffusion:
    """``Diffusion.load``; a damaged folder is told before seconds of imports."""
    check_folder(folder)
    from roentgen.generators.diffusion.model import Diffusion

    return Diffusion.load(folder, **options)
