"""What a synthetic data set is made of: rows that a plan asks for, and the records of the images that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from roentgen.prompts import Labels

LICENCE = "as the model that made it; synthetic, of no patient"


@dataclass(frozen=True)
class Row:
    """One image that a plan asks for.

    slot: its place in the plan, from 0; names its files. group: the plan's own name for where it belongs, such as a
    finding, by which counts and shortfalls are reported. labels: what the prompt says, and with it what the image is
    labelled. absent: findings known to be absent (label 0); the rest is unknown (blank).
    """

    slot: int
    group: str
    prompt: str
    labels: Labels
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Record:
    """One image that was kept.

    image: uint8 grey [H, W]. seed: of the image. attempt: 0 where the first seed of the row was kept, 1 where the
    filter rejected one before it, and so on. scores: what the filter measured, by stage. provenance: what
    ``images.save_image`` writes into the file (prompt, seed, model, model_hash, sampler, steps, guidance, ...).
    """

    row: Row
    image: np.ndarray = field(repr=False)
    seed: int
    attempt: int
    scores: Mapping[str, float]
    provenance: Mapping[str, str]

    @property
    def name(self) -> str:
        """Stem of the record's files: its slot, so that it does not depend on what else was kept."""
        return f"{self.row.slot:08d}"

    @property
    def patient_id(self) -> str:
        """A patient of its own for each image: there is no person behind any."""
        return f"synthetic-{self.name}"


@dataclass(frozen=True)
class SetInfo:
    """What the whole set shares; goes into its card and into every format.

    name: of the set. rows: images asked for. findings: columns of labels, in the vocabulary's order. model: name,
    hash, steps, guidance, sampler as in provenance. plan: the resolved plan as plain values. filter: what
    ``Filter.describe`` says, or None without a filter. command: the command line that makes it.
    """

    name: str
    rows: int
    findings: tuple[str, ...]
    model: Mapping[str, str]
    plan: Mapping[str, Any]
    filter: Mapping[str, Any] | None
    command: str
