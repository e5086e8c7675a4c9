"""Laterality: is a finding on the side that the prompt asks for? Patient's left is on the image's right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roentgen.metrics.adherence.auroc import auroc

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


def wilson_interval(successes: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (nan, nan) for n = 0. An effective ``n`` need not be whole."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return float("nan"), float("nan")
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_wilson(right: ArrayLike, asked: ArrayLike, groups: Sequence[object]) -> tuple[float, float]:
    """95 % interval of sum(right) / sum(asked), both (N,), where what belongs to one of ``groups`` (N,) may be alike.

    Wilson's at the effective number of independent trials: the one at which a proportion would vary as the ratio does
    over the groups (Korn & Graubard 1998), never more than the trials, never fewer than if all trials of a group were
    one. Where all are right or all wrong nothing tells how alike they are, and the latter is taken. So it is never of
    no width, as a bootstrap's is there.
    """
    hits, trials = np.asarray(right, dtype=np.float64), np.asarray(asked, dtype=np.float64)
    if not len(hits) == len(trials) == len(groups) or (hits < 0).any() or (hits > trials).any():
        raise ValueError("right must lie between 0 and asked, one of each and one group an item")
    _, index = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    s, m = np.bincount(index, weights=hits), np.bincount(index, weights=trials)
    s, m = s[m > 0], m[m > 0]
    total = float(m.sum())
    if total == 0:
        return float("nan"), float("nan")
    share = float(s.sum()) / total
    effective = least = total * total / float((m * m).sum())
    if 0 < share < 1 and len(m) > 1:
        variance = len(m) / (len(m) - 1) * float(((s - share * m) ** 2).sum()) / total**2
        effective = total if variance == 0 else min(total, max(least, share * (1 - share) / variance))
    return wilson_interval(share * effective, effective)


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
        ci=clustered_wilson(right_answer, np.ones(n), range(n) if groups is None else groups),
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
