"""The training loops; each is read from top to bottom. ``roentgen train NAME`` and ``train/NAME.py`` run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from roentgen.config import Seed, Short

CONFIGS = Path(__file__).with_name("configs")


@dataclass(frozen=True, kw_only=True)
class Basics:
    """Settings that recipes of one network have in common."""

    manifest: Annotated[Path, "manifest with `train` and `val` images (see `roentgen data prepare`)"]
    out: Annotated[Path, Short("-o"), "run folder"]
    seed: Annotated[Seed, "seed of everything that is drawn: weights, order, augmentation, texts"] = 0
    cache: Annotated[Path | None, "folder for decoded images and what is made of them (default OUT/cache)"] = None
    dry_run: Annotated[bool, "print what would be done and stop"] = False
