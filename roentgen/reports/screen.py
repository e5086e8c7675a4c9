"""Is this a frontal chest radiograph at all? Said before anything is read off an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAT = 4.0
"""Standard deviation of the grey values (0 to 255) below which there is nothing to see."""
SMALLEST = 32
"""Pixels of the shorter side below which nothing can be read."""


def blank(image: NDArray[np.uint8]) -> str | None:
    """What is wrong with an image that shows nothing; None where it shows something."""
    if min(image.shape) < SMALLEST:
        return (
            f"the image is {image.shape[1]} x {image.shape[0]} pixels: too small to be read, it needs at least "
            f"{SMALLEST} on its shorter side"
        )
    spread = float(image.std())
    if spread < FLAT:
        kind = "black" if image.mean() < 32 else "white" if image.mean() > 223 else "flat"
        return f"the image is {kind}: its grey values hardly differ, so there is nothing to read"
    return None


def strangeness(deep: NDArray[np.float32], about: Mapping[str, Any]) -> NDArray[np.float64]:
    """How far features (N, D) are from those of frontal chest radiographs: a Mahalanobis distance (Lee et al. 2018).

    ``about`` holds ``mean`` (D,), ``axes`` (K, D) and ``scale`` (K,): the principal axes of training features and
    their standard deviations, and ``rest``, the standard deviation of what the axes leave.
    """
    centred = np.asarray(deep, dtype=np.float64) - np.asarray(about["mean"])
    along = centred @ np.asarray(about["axes"]).T
    left = np.sqrt(np.maximum((centred**2).sum(1) - (along**2).sum(1), 0.0)) / float(about["rest"])
    return np.asarray(np.sqrt(((along / np.asarray(about["scale"])) ** 2).mean(1)) + left)


def disorder(deep: NDArray[np.float32], about: Mapping[str, Any]) -> NDArray[np.float64]:
    """How much features (N, D) look like those of turned, inverted or cut radiographs: log odds."""
    centred = np.asarray(deep, dtype=np.float64) - np.asarray(about["mean"])
    return np.asarray(centred @ np.asarray(about["posture_weights"]) + float(about["posture_bias"]))


def refused(deep: NDArray[np.float32], about: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which of N images are strange or in disorder; ``about`` may know the first of the two tests only."""
    found = strangeness(deep, about) > float(about["limit"])
    if "posture_limit" in about:
        found |= disorder(deep, about) > float(about["posture_limit"])
    return np.asarray(found)


def fit(
    deep: NDArray[np.float32], held_out: NDArray[np.float32], *, axes: int = 64, share: float = 0.995
) -> dict[str, Any]:
    """What ``strangeness`` needs, from features (N, D); ``share`` of ``held_out`` (M, D) are below ``limit``."""
    values = np.asarray(deep, dtype=np.float64)
    mean = values.mean(0)
    _, scale, rows = np.linalg.svd(values - mean, full_matrices=False)
    count = max(1, min(axes, len(scale) - 1, len(values) // 4))  # with as many axes as images nothing would be left
    kept = rows[:count]
    rest = np.sqrt(np.maximum(((values - mean) ** 2).sum(1) - (((values - mean) @ kept.T) ** 2).sum(1), 0)).mean()
    about: dict[str, Any] = {
        "mean": mean,
        "axes": kept,
        "scale": scale[:count] / np.sqrt(len(values)),
        "rest": float(rest),
    }
    return {**about, "limit": float(np.quantile(strangeness(held_out, about), share))}
