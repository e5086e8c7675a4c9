"""The quality filter of an export: which images are kept, by which stage the others are rejected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.prompts import Labels

LEAST_SPREAD = 4.0
"""Standard deviation in grey levels of 255 below which an image is black or of one grey."""


@dataclass(frozen=True)
class Verdict:
    """stage: the first stage that rejected the image, "" where all kept it. scores: what each stage measured."""

    stage: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Filter:
    """Stages in the order they look; "broken" (black, of one grey) is always the first."""

    stages: tuple[str, ...]

    @property
    def hash(self) -> str:
        """16 hex digits over the stages and their thresholds."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]

    def judge(self, images: NDArray[np.uint8], labels: Sequence[Labels]) -> list[Verdict]:
        """A verdict for each of ``images`` (N, H, W), whose prompts say ``labels``."""
        return [Verdict("broken" if image.std() < LEAST_SPREAD else "") for image in images]

    def describe(self) -> dict[str, Any]:
        """Stages with what they measure and their thresholds, for the card."""
        return {"stages": {"broken": {"measure": "standard deviation of grey levels", "least": LEAST_SPREAD}}}


def load_filter(stages: Sequence[str], *, reference: Path | None = None) -> Filter:
    """The filter of these stages; UserError for unknown ones."""
    for name in stages:
        raise UserError(f"--filter {name}: unknown stage")
    return Filter(("broken",))


def load_repeats(
    filter: Filter, *, plan_rows: int
) -> Callable[[Iterable[tuple[Sequence[int], NDArray[np.uint8]]], Path], set[int]]:
    raise NotImplementedError


def describe_repeats(filter: Filter) -> dict[str, Any]:
    raise NotImplementedError
