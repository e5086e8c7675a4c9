"""Kernel distance (KID, Binkowski et al. 2018): unbiased MMD^2 with the kernel (x.y / D + 1)^3, in float64."""

from __future__ import annotations

import numpy as np

from roentgen.metrics.distribution.pairs import UNSTABLE, Pair, measured
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, Noticed
from roentgen.metrics.statistics import Bootstrap, Floats, feature_rows, percentile_interval

SUBSETS = 100
SUBSET_SIZE = 1000
ROWS = 512  # of a kernel matrix in memory at a time


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


def kid(pair: Pair, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 2020) -> Result:
    """Kernel distance: unbiased, so it can be below 0 and needs fewer images than FID.

    Args:
        pair: the features; the interval is that of the MMD^2 of all images.
        subsets: random subsets of each set, over which the value is the mean.
        subset_size: None: 1000, or half of the smaller set where that is less, so that no two subsets are the whole
            set and their spread means something. A size given must fit both sets.
        seed: the subsets are those of torch-fidelity for this ``rng_seed`` and the generated set as its first input.
    """
    x, y = feature_rows(pair.synthetic, least=2), feature_rows(pair.real, least=2)
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
    bootstrap = Bootstrap(pair.resamples, seed)
    u, v = bootstrap.weights(pair.synthetic_groups, x), bootstrap.apart().weights(pair.real_groups, y)
    few = (
        f"subsets of {size} images, half of the smaller set, instead of {SUBSET_SIZE}: the "
        "mean is comparable with published values, the spread over subsets is not"
    )
    return pair.result(
        float(values.mean()),
        percentile_interval(weighted_mmd2(x, y, u, v)),
        UNSTABLE.format(pair.resamples, " of the estimate from all images"),
        notes=[few] if size < SUBSET_SIZE else [],
        subsets=subsets,
        subset_size=size,
        sd_over_subsets=float(values.std()),
        all_images=mmd2(x, y),
        kernel="(x.y / D + 1)^3",
    )


@measure(
    "kid", "Kernel distance (KID)", suite="quick", better="lower", each_extractor=True,
    noticed={"kid": Noticed("KID x 1000", 1, 1, (*LOOKS, COLLAPSE))},
)  # fmt: skip
def measure_kid(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return measured(kid, inputs, extractor, bound="floor")
