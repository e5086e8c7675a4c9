"""Bootstrap by patient (or prompt): clusters are drawn whole, so the images of a patient are one draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
LEVEL = 0.95


def cluster_weights(
    groups: Sequence[object] | NDArray[np.generic], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """How often each item is drawn in each resample, (resamples, N).

    ``groups`` (N,) names the cluster of each item; as many clusters are drawn with replacement as there are.
    """
    if len(groups) == 0 or resamples < 1:
        raise ValueError("a bootstrap needs at least one item and one resample")
    names, index = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, index].astype(np.float64)


def percentile_interval(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Central percentile interval of the finite ``draws``; (nan, nan) if there are none."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: ArrayLike,
    groups: Sequence[object] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``values`` (N,), by ``groups`` (None: each value is its own)."""
    array = np.asarray(values, dtype=np.float64)
    weights = cluster_weights(range(len(array)) if groups is None else groups, resamples, seed)
    return percentile_interval(weights @ array / weights.sum(axis=1), level)
