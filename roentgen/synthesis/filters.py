"""The quality filter of an export: which images are kept, by which stage the others are rejected.

Stages look in a fixed order; an image is rejected by the first that does not keep it, and later ones do not look at it.
What they compare with comes from a reference (``roentgen.synthesis.reference``). "broken" always looks. "repeats"
compares the images of a set with one another and is no part of ``Filter.judge``: see ``load_repeats``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.prompts import Labels

LEAST_SPREAD = 4.0
"""Standard deviation in grey levels of 255 below which an image is black or of one grey."""
STAGES = ("prompt", "view", "sex", "age", "real", "copies")
REPEATS = "repeats"


@dataclass(frozen=True)
class Verdict:
    """stage: the first stage that rejected the image, "" where all kept it. scores: what each stage measured."""

    stage: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Filter:
    """Stages in the order they look; "broken" (black, of one grey) is always the first. Made by ``load_filter``.

    looking: how the others score and keep, by name. look: gives ``stages.Looks`` of images. reference: what they
    compare with. repeats: whether images will be compared with one another, too.
    """

    stages: tuple[str, ...]
    looking: Mapping[str, Any] = field(default_factory=dict, repr=False)
    look: Callable[[NDArray[np.uint8]], Any] | None = field(default=None, repr=False)
    reference: Any = field(default=None, repr=False)

    @property
    def hash(self) -> str:
        """16 hex digits over the stages and their thresholds."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]

    def judge(self, images: NDArray[np.uint8], labels: Sequence[Labels]) -> list[Verdict]:
        """A verdict for each of ``images`` (N, H, W), whose prompts say ``labels``."""
        if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(labels):
            raise ValueError(f"expected uint8 (N, H, W) and N labels, got {images.dtype} {images.shape}, {len(labels)}")
        stages = ["broken" if image.std() < LEAST_SPREAD else "" for image in images]
        scores: list[dict[str, float]] = [{} for _ in images]
        left = [row for row, stage in enumerate(stages) if not stage]
        looks = self.look(images[left]) if self.look is not None and left else None
        at = np.arange(len(left))  # rows of what is looked at that no stage has rejected
        for name, stage in self.looking.items():
            if looks is None or not len(at):
                break
            part = looks.take(at)
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

    from roentgen.synthesis.reference import load_reference

    known_images = load_reference(reference)
    if not chosen:
        return Filter(("broken",), reference=known_images)
    return _looking(chosen, known_images)


def _looking(chosen: Sequence[str], reference: Any) -> Filter:
    """A filter of the stages ``chosen`` that compares with ``reference``."""
    from roentgen.metrics.extractors import classifier_extractor
    from roentgen.synthesis import stages as s

    found, arrays = reference.thresholds, reference.arrays
    for name in ("view", "sex", "age"):
        if name in chosen and f"head_{name}" not in arrays:
            why = found.get(name, {}).get("why", "its manifest does not tell it")
            raise UserError(
                f"--filter {name}: the reference has no predictor of it ({why}); leave {name} out, or give a "
                "--reference made by train/reference.py from images of which it is known"
            )
    extractor = classifier_extractor(reference.classifier)
    appearance, size = reference.appearance, reference.info["classifier"]["size"]
    makers: dict[str, Callable[[], Any]] = {
        "prompt": lambda: s.Prompt(found["prompt"]["findings"], extractor.findings, found["prompt"]["sensitivity"]),
        "view": lambda: s.Choice("view", ("PA", "AP"), arrays["head_view"].astype(np.float64), found["view"]),
        "sex": lambda: s.Choice("sex", ("F", "M"), arrays["head_sex"].astype(np.float64), found["sex"]),
        "age": lambda: s.Age(arrays["head_age"].astype(np.float64), found["age"]),
        "real": lambda: s.Real(found["real"]),
        "copies": lambda: s.Copies(s.thumbnail_views(arrays["thumbnails"]), found["copies"]),
    }
    return Filter(
        ("broken", *chosen),
        looking={name: makers[name]() for name in chosen},
        look=lambda images: s.Looks.of(images, extractor, size, appearance),
        reference=reference,
    )


def load_repeats(filter: Filter, *, plan_rows: int) -> Any:
    """What finds repeats among ``plan_rows`` images (``repeats.Repeats``), by the reference of ``filter``.

    Raises:
        ValueError: the filter was loaded without the stage.
    """
    from roentgen.synthesis.repeats import Repeats, most_bits

    if filter.reference is None:
        raise ValueError('load_filter needs "repeats" among its stages')
    return Repeats(most_bits(filter.reference.arrays["pair_counts"], plan_rows=plan_rows), plan_rows)
