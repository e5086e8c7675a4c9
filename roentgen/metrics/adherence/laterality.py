"""Laterality: is a finding on the side that the prompt asks for? Patient's left is on the image's right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.auroc import auroc
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import CHANCE, ByFinding, EvaluationInputs, Result, Unavailable, bound, measure
from roentgen.metrics.noticed import FLIP, Noticed
from roentgen.metrics.reading import sides_of
from roentgen.metrics.statistics import Floats, Groups, clustered_wilson, own_groups

SIDES = ("left", "right")
RIGHT, LEFT = 0, 1  # last axis of Classifier.predict_sides: the patient's right first, as on the film
# Rows of the image (as shares of its height) in which a finding changes the lateral third of its lung, and
# the direction: fluid and opacity are white, air is black.
REGIONS: dict[str, tuple[float, float, float]] = {
    "Effusion": (2 / 3, 1.0, 1.0),
    "Lung Opacity": (0.0, 1.0, 1.0),
    "Pneumothorax": (0.0, 1 / 2, -1.0),
}


def side_accuracy(
    leftness: NDArray[np.floating],
    sides: Sequence[str],
    *,
    threshold: float = 0.0,
    groups: Sequence[object] | None = None,
) -> dict[str, Any]:
    """How often ``leftness`` (N,) above ``threshold`` means ``sides`` (N,) "left" and below it "right", as an entry.

    A tie is not told apart, so it counts as wrong. ``groups`` (N,) name the patient or prompt; None: each its own.
    The interval is ``clustered_wilson``'s; ``left`` and ``right`` are the shares told right among images of that side,
    NaN without any, and ``auroc`` is that of left against right.
    """
    values = np.asarray(leftness, dtype=np.float64)
    if len(values) != len(sides) or not set(sides) <= set(SIDES):
        raise ValueError("sides must be left or right, one a value")
    is_left = np.array([side == "left" for side in sides], dtype=bool)
    right_answer = np.where(is_left, values > threshold, values < threshold)

    def share(rows: NDArray[np.bool_]) -> float:
        return float(right_answer[rows].mean()) if rows.any() else float("nan")

    return {
        "value": share(np.ones(len(values), dtype=bool)),
        "ci": clustered_wilson(right_answer, np.ones(len(values)), own_groups(groups, values)),
        "n": len(values),
        "left": share(is_left),
        "right": share(~is_left),
        "auroc": auroc(values, is_left.astype(np.float64)) if len(values) else float("nan"),
    }


def brightness_asymmetry(images: NDArray[np.uint8], finding: str) -> NDArray[np.float64]:
    """Patient's left minus right (N,) of mean grey in the lateral thirds of the halves of uint8 (N, H, W).

    Positive speaks for the left; the rows, and the sign for air, are those of ``REGIONS[finding]``.
    """
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"expected uint8 (N, H, W), got {images.dtype} {images.shape}")
    top, bottom, sign = REGIONS[finding]
    height, width = images.shape[1:]
    rows = slice(round(top * height), round(bottom * height))
    third = max(1, width // 6)
    on_right = images[:, rows, :third].mean(axis=(1, 2), dtype=np.float64)
    on_left = images[:, rows, width - third :].mean(axis=(1, 2), dtype=np.float64)
    return sign * (on_left - on_right)


Sides = Sequence[Sequence[str]] | NDArray[np.str_]


def side_adherence(
    leftness: Floats,
    sides: Sides,
    findings: Sequence[str],
    groups: Groups,
    *,
    real: tuple[Floats, Sides, Groups] | None = None,
) -> Result:
    """Share of findings that are on the side their prompt asks for; 0.5 by chance.

    Args:
        leftness: (N, F) left less right for the classifier, above 0 for the patient's left.
        sides: (N, F) "left", "right", or anything else ("bilateral", "") where there is nothing to tell apart.
        findings: names of the columns.
        groups: (N,) prompt or patient, for the intervals (``statistics.clustered_wilson``; a bootstrap would give no
            width where all are right).
        real: leftness and sides of real images, the ceiling, and their patients.
    """
    table = _sides(leftness, sides, findings)
    rows, ceiling = _by_finding(leftness, table, findings, groups), None
    if real is not None:
        others, true, patients = real[0], _sides(*real[:2], findings), real[2]
        beside = {row["finding"]: row for row in _by_finding(others, true, findings, patients)}
        rows = [row | {"ceiling": beside.get(row["finding"])} for row in rows]
        known = np.isin(true, SIDES)
        of_known = [patients[row] for row in np.nonzero(known)[0].tolist()]
        ceiling = bound(side_accuracy(others[known], true[known].tolist(), groups=of_known), "real images")
    told = np.where(table == "left", leftness > 0, leftness < 0)
    asked = np.isin(table, SIDES)
    right, n = (told & asked).sum(axis=1).astype(np.float64), asked.sum(axis=1).astype(np.float64)
    return Result(
        float(right.sum() / n.sum()) if n.sum() else float("nan"),
        clustered_wilson(right, n, groups),
        int(n.sum()),
        "95 % Wilson at the effective number of independent findings, by patient or prompt",
        floor=CHANCE,
        ceiling=ceiling,
        notes=[] if n.sum() >= 50 else [f"{int(n.sum())} findings with a side: use at least 50"],
        details={"chance": 0.5, "findings": rows},
    )


def _sides(leftness: Floats, sides: Sides, findings: Sequence[str]) -> NDArray[np.str_]:
    table = np.asarray(sides, dtype=np.str_)
    if leftness.ndim != 2 or table.shape != leftness.shape or leftness.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {leftness.shape}, {table.shape}, {len(findings)} findings")
    return table


def _by_finding(
    leftness: Floats, table: NDArray[np.str_], findings: Sequence[str], groups: Groups
) -> list[dict[str, Any]]:
    entries = []
    for finding, values, sides in zip(findings, leftness.T, table.T, strict=True):
        rows = np.flatnonzero(np.isin(sides, SIDES))
        if len(rows):
            found = side_accuracy(values[rows], sides[rows].tolist(), groups=[groups[int(row)] for row in rows])
            entries.append({"finding": finding, **{key: found[key] for key in ("value", "ci", "n", "auroc")}})
    return entries


def leftness_of(inputs: EvaluationInputs, extractor: Extractor, name: str) -> Floats:
    """The classifier's left less right (N, F) on the set ``name``."""
    both = inputs.of(name, extractor, "sides").astype(np.float64)
    return np.asarray(both[..., LEFT] - both[..., RIGHT])


@measure(
    "laterality", "Left and right told apart", suite="quick", better="higher", unit="share", output="sides",
    by_finding=ByFinding("Left and right by finding", "share on the side that the prompt asks for", 0.5),
    noticed={"laterality": Noticed("right side", 3, -1, (FLIP,))},
)  # fmt: skip
def measure_laterality(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Left and right told apart by the classifier, over the findings that prompts give a side."""
    mine, theirs = (
        (leftness_of(inputs, extractor, images.name), np.array(sides_of(images.table, extractor.findings)), groups)
        for images, groups in (
            (inputs.synthetic, inputs.bootstrap_groups), (inputs.real, inputs.real.patients)
        )
    )  # fmt: skip
    if not np.isin(mine[1], SIDES).any():
        raise Unavailable("no prompt gives a finding a side (left or right)")
    return side_adherence(*mine[:2], extractor.findings, mine[2], real=theirs)
