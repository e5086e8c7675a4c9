"""Kernel distance (KID, Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / D + 1)^3, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.statistics import (
    RESAMPLES,
    Floats,
    Groups,
    cluster_weights,
    feature_rows,
    own_groups,
    percentile_interval,
)

SUBSETS = 100
SUBSET_SIZE = 1000
ROWS = 512  # of a kernel matrix in memory at a time


@dataclass(frozen=True)
class KernelDistance:
    """value: mean MMD^2 over ``subsets`` random subsets of ``subset_size`` of both sets, sd: over them.

    whole: MMD^2 of all images; ci: 95 % bootstrap interval of it. Unbiased, so all may be below 0.
    """

    value: float
    sd: float
    subsets: int
    subset_size: int
    whole: float
    ci: tuple[float, float]


def polynomial_kernel(x: Floats, y: Floats) -> Floats:
    """(x.y / D + 1)^3 for rows of x (n, D) and y (m, D) -> (n, m)."""
    values = x @ y.T
    values /= x.shape[1]
    values += 1
    return values * values * values


def mmd2(x: Floats, y: Floats) -> float:
    """Unbiased MMD^2 of x (n, D) and y (m, D), n and m at least 2 (Gretton et al. 2012, eq. 3)."""
    one = np.ones((1, len(x))), np.ones((1, len(y)))
    return float(weighted_mmd2(x, y, *one)[0])


def weighted_mmd2(x: Floats, y: Floats, u: Floats, v: Floats) -> Floats:
    """MMD^2 for each of R resamples, (R,): row i of x (n, D) counts u[r, i] times, row j of y (m, D) v[r, j] times.

    An image is never paired with itself, also where it was drawn twice. Kernel values are made a few rows at a time.
    """

    def within(features: Floats, weights: Floats) -> Floats:
        total = np.zeros(len(weights))
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            values = polynomial_kernel(features[rows], features)
            values[np.arange(len(values)), np.arange(start, start + len(values))] = 0
            total += (weights[:, rows] * (weights @ values.T)).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample of one image has no pairs: NaN
            return total / (weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1))

    between = np.zeros(len(u))
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        between += (u[:, rows] * (v @ polynomial_kernel(x[rows], y).T)).sum(axis=1)
    between /= u.sum(axis=1) * v.sum(axis=1)
    return within(x, u) + within(y, v) - 2 * between


def kernel_distance(
    synthetic: NDArray[np.floating],
    real: NDArray[np.floating],
    *,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
    synthetic_groups: Groups | None = None,
    real_groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = 2020,
) -> KernelDistance:
    """KID of ``synthetic`` (N, D) to ``real`` (M, D).

    Args:
        subsets: random subsets of each set.
        subset_size: None: 1000, or half of the smaller set where that is less, so that no two subsets are the whole
            set and their spread means something. A size given must fit both sets.
        synthetic_groups, real_groups: prompt or patient of each image, drawn whole for the interval.
        resamples: for the interval; 0 gives (NaN, NaN).
        seed: the subsets are those of torch-fidelity for this ``rng_seed`` and ``synthetic`` as its first input.
    """
    x, y = feature_rows(synthetic, least=2), feature_rows(real, least=2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"feature dimensions differ: {x.shape[1]} and {y.shape[1]}")
    smaller = min(len(x), len(y))
    size = min(SUBSET_SIZE, smaller // 2) if subset_size is None else subset_size
    if not 2 <= size <= smaller:
        raise ValueError(f"subsets of {size} do not fit sets of {len(x)} and {len(y)}")
    rng = np.random.RandomState(seed)
    values = np.empty(subsets)
    for number in range(subsets):
        chosen = x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        values[number] = mmd2(*chosen)
    ci = (float("nan"), float("nan"))
    if resamples:
        u = cluster_weights(own_groups(synthetic_groups, x), resamples, seed)
        v = cluster_weights(own_groups(real_groups, y), resamples, seed + 1)
        ci = percentile_interval(weighted_mmd2(x, y, u, v))
    return KernelDistance(float(values.mean()), float(values.std()), subsets, size, mmd2(x, y), ci)
