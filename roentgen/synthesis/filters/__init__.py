"""The quality filter of an export: which images are kept, by which stage the others are rejected.

Stages look in a fixed order; an image is rejected by the first that does not keep it, and later ones do not look at it.
What they compare with comes from a reference (``filters.reference``). "broken" always looks. "repeats" compares the
images of a set with one another and is no part of ``Filter.judge``: see ``load_repeats``. A stage is one file of this
folder and one line of ``STAGES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.metrics.extractors import classifier_extractor
from roentgen.prompts import Labels
from roentgen.synthesis.filters import copies, demographics, prompt, real
from roentgen.synthesis.filters.inputs import FilterInputs, Stage
from roentgen.synthesis.filters.reference import Reference, load_reference
from roentgen.synthesis.filters.repeats import Repeats, most_bits

LEAST_SPREAD = 4.0
"""Standard deviation in grey levels of 255 below which an image is black or of one grey."""
STAGES: dict[str, Callable[[Reference, Sequence[str]], Stage]] = {
    "prompt": lambda reference, findings: prompt.Prompt(
        reference.thresholds["prompt"]["findings"], findings, reference.thresholds["prompt"]["sensitivity"]
    ),
    "view": lambda reference, _: demographics.Choice("view", ("PA", "AP"), *demographics.head(reference, "view")),
    "sex": lambda reference, _: demographics.Choice("sex", ("F", "M"), *demographics.head(reference, "sex")),
    "age": lambda reference, _: demographics.Age(*demographics.head(reference, "age")),
    "real": lambda reference, _: real.Real(reference.thresholds["real"]),
    "copies": lambda reference, _: copies.Copies(
        copies.thumbnail_views(reference.arrays["thumbnails"]), reference.thresholds["copies"]
    ),
}
"""Name -> the stage, from a reference and the findings of its classifier; in the order in which they look."""
REPEATS = "repeats"


@dataclass(frozen=True)
class Verdict:
    """stage: the first stage that rejected the image, "" where all kept it. scores: what each stage measured."""

    stage: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Filter:
    """Stages in the order they look; "broken" (black, of one grey) is always the first. Made by ``load_filter``.

    looking: how the others score and keep, by name. inputs: what they look at, of images (N, H, W). reference: what
    they compare with.
    """

    stages: tuple[str, ...]
    looking: Mapping[str, Stage] = field(default_factory=dict, repr=False)
    inputs: Callable[[NDArray[np.uint8]], FilterInputs] | None = field(default=None, repr=False)
    reference: Reference | None = field(default=None, repr=False)

    @property
    def hash(self) -> str:
        """16 hex digits over the stages and their thresholds."""
        return sha256(json.dumps(self.describe(), sort_keys=True))[:16]

    def judge(self, images: NDArray[np.uint8], labels: Sequence[Labels]) -> list[Verdict]:
        """A verdict for each of ``images`` (N, H, W), whose prompts say ``labels``."""
        if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
            raise ValueError(f"expected uint8 (N, H, W) and N labels, got {images.dtype} {images.shape}, {len(labels)}")
        stages = ["broken" if image.std() < LEAST_SPREAD else "" for image in images]
        scores: list[dict[str, float]] = [{} for _ in images]
        left = [row for row, stage in enumerate(stages) if not stage]
        inputs = self.inputs(images[left]) if self.inputs is not None and left else None
        at = np.arange(len(left))  # rows of what is looked at that no stage has rejected
        for name, stage in self.looking.items():
            if inputs is None or not len(at):
                break
            part = inputs.take(at)
            found = rounded(stage.scores(part, [labels[left[row]] for row in at]))
            keeps = stage.keeps(found)
            for row, score, keep in zip(at, found, keeps, strict=True):
                if np.isfinite(score):
                    scores[left[row]][name] = float(score)
                if not keep:
                    stages[left[row]] = name
            at = at[keeps]
        return [Verdict(stage, score) for stage, score in zip(stages, scores, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Stages with what they measure and their thresholds, for the card."""
        described: dict[str, Any] = {}
        if self.reference is not None:
            described["reference"] = self.reference.about()
        broken = {"measure": "standard deviation of grey levels", "least": LEAST_SPREAD}
        stages = {"broken": broken, **{name: stage.describe() for name, stage in self.looking.items()}}
        return {**described, "stages": stages}


def rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores to four significant digits, so that the last digits of a batched product decide nothing."""
    return np.array([float(f"{value:.4g}") for value in scores])


def load_filter(stages: Sequence[str], *, reference: Path | None = None) -> Filter:
    """The filter of these stages, in the order of ``STAGES`` whatever theirs; none of them: only "broken".

    ``repeats`` may be among them: its threshold is in the reference, too, which then is part of the filter.

    Raises:
        UserError: unknown stages, no usable reference, or one without what a stage needs.
    """
    for name in stages:
        if name not in (*STAGES, REPEATS):
            known = ", ".join((*STAGES, REPEATS))
            raise UserError(f"--filter {name}: unknown stage; choose from {known}, with commas, or none")
    chosen = [name for name in STAGES if name in stages]
    if not chosen and REPEATS not in stages:
        return Filter(("broken",))
    found = load_reference(reference)
    if not chosen:
        return Filter(("broken",), reference=found)
    extractor = classifier_extractor(found.classifier)
    appearance, size = found.appearance, found.info["classifier"]["size"]
    return Filter(
        ("broken", *chosen),
        looking={name: STAGES[name](found, extractor.findings) for name in chosen},
        inputs=lambda images: FilterInputs.of(images, extractor, size, appearance),
        reference=found,
    )


def load_repeats(filter: Filter, *, plan_rows: int) -> Repeats:
    """What finds repeats among ``plan_rows`` images, by the reference of ``filter``.

    Raises:
        ValueError: the filter was loaded without the stage.
    """
    if filter.reference is None:
        raise ValueError('load_filter needs "repeats" among its stages')
    return Repeats(most_bits(filter.reference.arrays["pair_counts"], plan_rows=plan_rows), plan_rows)
