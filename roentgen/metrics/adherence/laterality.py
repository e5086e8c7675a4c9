"""Laterality: is a finding on the side that the prompt asks for? Patient's left is on the image's right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.metrics.adherence.auroc import auroc
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.noticed import FLIP, Noticed
from roentgen.metrics.statistics import Floats, Groups, clustered_wilson, own_groups

RIGHT, LEFT = 0, 1  # last axis of Classifier.predict_sides: the patient's right first, as on the film
# Rows of the image (as shares of its height) in which a finding changes the lateral third of its lung, and
# the direction: fluid and opacity are white, air is black.
REGIONS: dict[str, tuple[float, float, float]] = {
    "Effusion": (2 / 3, 1.0, 1.0),
    "Lung Opacity": (0.0, 1.0, 1.0),
    "Pneumothorax": (0.0, 1 / 2, -1.0),
}


@dataclass(frozen=True)
class SideAccuracy:
    """``accuracy`` in [0, 1] with its interval (``clustered_wilson``); ``auroc`` of left against right is without one.

    ``left``, ``right``: share told right among images of that side; NaN without any.
    """

    accuracy: float
    ci: tuple[float, float]
    n: int
    correct: int
    left: float
    right: float
    auroc: float


def side_accuracy(
    leftness: NDArray[np.floating],
    sides: Sequence[str],
    *,
    threshold: float = 0.0,
    groups: Sequence[object] | None = None,
) -> SideAccuracy:
    """How often ``leftness`` (N,) above ``threshold`` means ``sides`` (N,) "left" and below it "right".

    A tie is not told apart, so it counts as wrong. ``groups`` (N,) name the patient or prompt; None: each its own.
    """
    values = np.asarray(leftness, dtype=np.float64)
    if len(values) != len(sides) or not set(sides) <= {"left", "right"}:
        raise ValueError("sides must be left or right, one a value")
    is_left = np.array([side == "left" for side in sides], dtype=bool)
    right_answer = np.where(is_left, values > threshold, values < threshold)
    correct, n = int(right_answer.sum()), len(values)

    def share(rows: NDArray[np.bool_]) -> float:
        return float(right_answer[rows].mean()) if rows.any() else float("nan")

    return SideAccuracy(
        accuracy=correct / n if n else float("nan"),
        ci=clustered_wilson(right_answer, np.ones(n), own_groups(groups, values)),
        n=n,
        correct=correct,
        left=share(is_left),
        right=share(~is_left),
        auroc=auroc(values, is_left.astype(np.float64)) if n else float("nan"),
    )


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


def side_adherence(
    leftness: Floats,
    sides: Sequence[Sequence[str]] | NDArray[np.str_],
    findings: Sequence[str],
    groups: Sequence[object],
    *,
    real: tuple[Floats, Sequence[Sequence[str]] | NDArray[np.str_]] | None = None,
    real_groups: Sequence[object] | None = None,
) -> dict[str, Any]:
    """Share of findings that are on the side their prompt asks for; 0.5 by chance.

    Args:
        leftness: (N, F) left less right for the classifier, above 0 for the patient's left.
        sides: (N, F) "left", "right", or anything else ("bilateral", "") where there is nothing to tell apart.
        findings: names of the columns.
        groups: (N,) prompt or patient, for the intervals (``statistics.clustered_wilson``; a bootstrap would give no
            width where all are right).
        real, real_groups: leftness and sides of real images, the ceiling, and their patients.
    """
    table = _sides(leftness, sides, findings)
    entries = _side_rows(leftness, table, findings, groups)
    told = np.where(table == "left", leftness > 0, leftness < 0)
    asked = np.isin(table, ("left", "right"))
    right, n = (told & asked).sum(axis=1).astype(np.float64), asked.sum(axis=1).astype(np.float64)
    details: dict[str, Any] = {"chance": 0.5, "findings": entries}
    if real is not None:
        others = own_groups(real_groups, real[0])
        details["real"] = _side_rows(real[0], _sides(real[0], real[1], findings), findings, others)
    return {
        "value": float(right.sum() / n.sum()) if n.sum() else float("nan"),
        "ci": clustered_wilson(right, n, groups),
        "ci_method": "95 % Wilson at the effective number of independent findings, by patient or prompt",
        "n": int(n.sum()),
        "warnings": [] if n.sum() >= 50 else [f"{int(n.sum())} findings with a side: use at least 50"],
        "details": details,
    }


def _sides(leftness: Floats, sides: Any, findings: Sequence[str]) -> NDArray[np.str_]:
    table = np.asarray(sides, dtype=np.str_)
    if leftness.ndim != 2 or table.shape != leftness.shape or leftness.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {leftness.shape}, {table.shape}, {len(findings)} findings")
    return table


def _side_rows(
    leftness: Floats, table: NDArray[np.str_], findings: Sequence[str], groups: Groups
) -> list[dict[str, Any]]:
    entries = []
    for finding, values, sides in zip(findings, leftness.T, table.T, strict=True):
        rows = np.flatnonzero(np.isin(sides, ("left", "right")))
        if len(rows):
            accuracy = side_accuracy(values[rows], sides[rows].tolist(), groups=[groups[int(row)] for row in rows])
            entries.append({"finding": finding, **dataclasses.asdict(accuracy)})
    return entries


@measure(
    "laterality", "Left and right told apart", suite="quick", better="higher", unit="share", output="sides",
    by_finding=ByFinding("Left and right by finding", "share on the side that the prompt asks for", 0.5),
    noticed={"laterality": Noticed("right side", 3, -1, (FLIP,))},
)  # fmt: skip
def measure_laterality(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Left and right told apart by the classifier, over the findings that prompts give a side."""

    def see(images: ImageSet, name: str) -> tuple[Floats, NDArray[np.str_]]:
        both = inputs.of(name, extractor, "sides").astype(np.float64)
        sides = [
            images.table.get(finding + SIDE_SUFFIX, pd.Series("", index=images.table.index)).tolist()
            for finding in extractor.findings
        ]
        return both[..., LEFT] - both[..., RIGHT], np.array(sides).T

    leftness, sides = see(inputs.synthetic, "synthetic")
    real_leftness, real_sides = see(inputs.real, "real")
    if not np.isin(sides, ("left", "right")).any():
        raise Unavailable("no prompt gives a finding a side (left or right)")
    groups, patients = inputs.bootstrap_groups, inputs.real.patients
    beside = (real_leftness, real_sides)
    found = side_adherence(leftness, sides, extractor.findings, groups, real=beside, real_groups=patients)
    details = found["details"]

    def renamed(row: dict[str, Any]) -> dict[str, Any]:
        return {"finding": row["finding"], "value": row["accuracy"], **{k: row[k] for k in ("ci", "n", "auroc")}}

    real_rows = {row["finding"]: renamed(row) for row in details.pop("real")}
    details["findings"] = [renamed(row) | {"ceiling": real_rows.get(row["finding"])} for row in details["findings"]]
    known = np.isin(real_sides, ("left", "right"))
    of_known = [patients[row] for row in np.nonzero(known)[0]]
    whole = side_accuracy(real_leftness[known], real_sides[known].tolist(), groups=of_known)
    ceiling = {"value": whole.accuracy, "ci": whole.ci, "n": whole.n, "what": "real images"}
    return Result.of(found, floor={"value": 0.5, "what": "by chance"}, ceiling=ceiling)
