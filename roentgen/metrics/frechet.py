"""Frechet distance between two sets of features (Heusel et al. 2017, eq. 6), in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.bootstrap import percentile_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and sum of outer products about the mean (D, D); they merge exactly."""

    n: int
    mean: Floats
    scatter: Floats

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance (D, D)."""
        if self.n < 2:
            raise ValueError("a covariance needs at least two items")
        return self.scatter / (self.n - 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        return Moments(n, mean, self.scatter + other.scatter + np.outer(shift, shift) * (self.n * other.n / n))


def moments(features: NDArray[np.floating]) -> Moments:
    """Moments of ``features`` (N, D)."""
    x = _checked(features)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def streaming_moments(batches: Iterable[NDArray[np.floating]]) -> Moments:
    """Moments of all ``batches`` of (n, D) together, one in memory at a time."""
    total: Moments | None = None
    for batch in batches:
        part = moments(batch)
        total = part if total is None else total.merge(part)
    if total is None:
        raise ValueError("no batches")
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) for covariances A and B.

    trace (A B)^(1/2) is the sum of the roots of the eigenvalues of the symmetric A^(1/2) B A^(1/2): no matrix
    root of a product that is not symmetric, and no imaginary parts to drop.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature dimensions differ: {a.mean.size} and {b.mean.size}")
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = root @ cov_b @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    trace_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
    return float(max(distance, 0.0))  # rounding can take the distance of a set to itself below zero


def weighted_frechet(x: Floats, y: Floats, cross: Floats, u: Floats, v: Floats) -> float:
    """Frechet distance of ``x`` (N, D), each row taken ``u`` (N,) times, to ``y`` (M, D) by ``v`` (M,).

    ``cross`` is ``x @ y.T``. With A = X'X and B = Y'Y of the centred sets, trace (A B)^(1/2) is the sum of
    the singular values of X Y', so nothing of size D x D is needed: resamples are cheap.
    """
    n, m = u.sum(), v.sum()
    mean_x, mean_y = u @ x / n, v @ y / m
    rows, columns = np.flatnonzero(u), np.flatnonzero(v)
    centred = cross - (cross @ v / m)[:, None] - u @ cross / n + u @ cross @ v / (n * m)
    scaled = np.sqrt(u[rows])[:, None] * centred[np.ix_(rows, columns)] * np.sqrt(v[columns])
    trace_root = np.linalg.svd(scaled, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    trace_x = (u @ (x * x).sum(axis=1) - n * mean_x @ mean_x) / (n - 1)
    trace_y = (v @ (y * y).sum(axis=1) - m * mean_y @ mean_y) / (m - 1)
    difference = mean_x - mean_y
    return float(max(difference @ difference + trace_x + trace_y - 2 * trace_root, 0.0))


def frechet_interval(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    paired: bool = False,
    resamples: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of the distance of ``a`` (N, D) to ``b`` (M, D) at these sizes, by bootstrap over images.

    A resample repeats images, which raises the distance; its spread is right, its centre is not. So the draws
    are shifted to the distance of the full sets before their percentiles are taken. ``paired``: draw the same
    rows of both (image and its reconstruction).
    """
    x, y = _checked(a), _checked(b)
    if paired and len(x) != len(y):
        raise ValueError("paired sets must have equal sizes")
    middle = y.mean(axis=0)  # a common shift changes nothing but the rounding
    x, y = x - middle, y - middle
    cross = x @ y.T
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for number in range(resamples):
        u = np.bincount(rng.integers(len(x), size=len(x)), minlength=len(x)).astype(np.float64)
        v = np.bincount(rng.integers(len(y), size=len(y)), minlength=len(y)).astype(np.float64)
        draws[number] = weighted_frechet(x, y, cross, u, u if paired else v)
    value = weighted_frechet(x, y, cross, np.ones(len(x)), np.ones(len(y)))
    low, high = percentile_interval(draws - draws.mean() + value)
    return max(low, 0.0), max(high, 0.0)


def _checked(features: NDArray[np.floating]) -> Floats:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"expected features (N, D), got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x
