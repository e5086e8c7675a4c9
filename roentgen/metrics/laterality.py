"""Laterality: is a finding on the side that the prompt asks for? Patient's left is on the image's right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.auroc import auroc

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
    """``accuracy`` in [0, 1] with its Wilson interval; ``auroc`` of left against right needs no threshold.

    ``left``, ``right``: share told right among images of that side; NaN without any.
    """

    accuracy: float
    ci: tuple[float, float]
    n: int
    correct: int
    left: float
    right: float
    auroc: float


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (nan, nan) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return float("nan"), float("nan")
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def side_accuracy(leftness: NDArray[np.floating], sides: Sequence[str], *, threshold: float = 0.0) -> SideAccuracy:
    """How often ``leftness`` (N,) above ``threshold`` means ``sides`` (N,) "left" and below it "right".

    A tie is not told apart, so it counts as wrong.
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
        ci=wilson_interval(correct, n),
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
