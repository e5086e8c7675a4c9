"""Frechet distance between two sets of features (Heusel et al. 2017, eq. 6), in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from roentgen.metrics.statistics import Bootstrap, Drawn, Floats, Groups, feature_rows

DISTINCT = 1 - math.exp(-1)
"""Share of the images that are in a resample at least once."""
WORK = 6e13
"""Floating point operations that an interval may take: some minutes on a core."""
LEAST = 100
"""Resamples whatever they take: an end of the interval is then itself good to a tenth or so."""


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
    x = feature_rows(features)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


class MomentsBuilder:
    """Moments of features (n, D) that come in batches of any sizes; memory does not grow with their number.

    Rows are gathered into blocks of one size before they are merged, so the result does not depend on the batches,
    and a D x D product is made once a block.
    """

    BLOCK = 1024

    def __init__(self, dim: int) -> None:
        self._block = np.empty((self.BLOCK, dim))
        self._used = 0
        self._total: Moments | None = None

    def add(self, features: NDArray[np.floating]) -> None:
        """Take in (n, D); n may be 0."""
        start = 0
        while start < len(features):
            count = min(self.BLOCK - self._used, len(features) - start)
            self._block[self._used : self._used + count] = features[start : start + count]
            self._used, start = self._used + count, start + count
            if self._used == self.BLOCK:
                self._merge()

    def finish(self) -> Moments:
        """Moments of everything that was added; ValueError if that was nothing."""
        if self._used:
            self._merge()
        if self._total is None:
            raise ValueError("no features")
        return self._total

    def _merge(self) -> None:
        part = moments(self._block[: self._used])
        self._total = part if self._total is None else self._total.merge(part)
        self._used = 0


def merge_across_processes(own: Moments) -> Moments:
    """Moments of all processes of ``accelerate launch`` or ``torchrun`` together, the same in each of them.

    Merged in the order of ranks. Without a process group, ``own``.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return own
    everybody: list[Moments | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, own)
    total, *others = [part for part in everybody if part is not None]
    for part in others:
        total = total.merge(part)
    return total


def trace_root(a: Moments, b: Moments) -> float:
    """trace (A B)^(1/2) of the covariances A and B: the sum of the roots of the eigenvalues of R' B R, A = R R'.

    R is the Cholesky factor where A has full rank, else the symmetric root. R' B R is symmetric, so its eigenvalues
    come without vectors and without imaginary parts to drop. In float64 by torch, whose LAPACK takes half the time
    of numpy's; more than ten times faster than ``scipy.linalg.sqrtm`` (benchmarks/eval.py).
    """
    if min(a.n, b.n) < 2:
        raise ValueError("a covariance needs at least two items")
    root = _root(torch.from_numpy(a.scatter), full_rank=a.n > a.mean.size)
    product = root.T @ torch.from_numpy(b.scatter) @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    # Sums of outer products went in, so their counts come out here: no scaled copy of a D x D matrix.
    return float(eigenvalues.clamp(min=0).sqrt().sum()) / math.sqrt((a.n - 1) * (b.n - 1))


def _root(matrix: torch.Tensor, *, full_rank: bool) -> torch.Tensor:
    """R (D, D) with R R' = ``matrix``, symmetric and positive semidefinite."""
    if full_rank:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
        # Repeated or constant features: full rank by their number only.
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) for unbiased covariances A and B; at least 0."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature dimensions differ: {a.mean.size} and {b.mean.size}")
    difference = a.mean - b.mean
    spread = (np.trace(a.scatter) / (a.n - 1) + np.trace(b.scatter) / (b.n - 1)) - 2 * trace_root(a, b)
    return float(max(difference @ difference + spread, 0.0))  # rounding can take it just below zero


def feature_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Frechet distance of features ``x`` (N, D) to ``y`` (M, D), by whichever of two equal ways is cheaper.

    With fewer images than features the work is in matrices of images (``weighted_frechet``), else of features.
    """
    a, b = feature_rows(x), feature_rows(y)
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_distance(moments(a), moments(b))
    middle = b.mean(axis=0)  # a common shift changes nothing but the rounding
    a, b = a - middle, b - middle
    return weighted_frechet(a, b, a @ b.T, np.ones(len(a)), np.ones(len(b)))


def weighted_frechet(x: Floats, y: Floats, cross: Floats, u: Floats, v: Floats) -> float:
    """Frechet distance of ``x`` (N, D), each row taken ``u`` (N,) times, to ``y`` (M, D) by ``v`` (M,).

    ``cross`` is ``x @ y.T``. With A = X'X and B = Y'Y of the centred sets, trace (A B)^(1/2) is the sum of
    the singular values of X Y', so nothing of size D x D is needed unless D is the smallest of the three.
    """
    n, m = u.sum(), v.sum()
    mean_x, mean_y = u @ x / n, v @ y / m
    rows, columns = np.flatnonzero(u), np.flatnonzero(v)
    weight_x, weight_y = np.sqrt(u[rows])[:, None], np.sqrt(v[columns])[:, None]
    if x.shape[1] < min(len(rows), len(columns)):
        of_x, of_y = weight_x * (x[rows] - mean_x), weight_y * (y[columns] - mean_y)
        root = trace_root(Moments(int(n), mean_x, of_x.T @ of_x), Moments(int(m), mean_y, of_y.T @ of_y))
    else:
        across, down = cross @ v / m, u @ cross / n
        scaled = cross[np.ix_(rows, columns)]
        scaled -= across[rows, None]
        scaled -= down[columns] - down @ v / m
        scaled *= weight_x
        scaled *= weight_y.T
        # Singular values by the eigenvalues of the smaller Gram matrix: several times faster than an SVD.
        gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
        nuclear = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None)).sum()
        root = float(nuclear) / math.sqrt((n - 1) * (m - 1))
    trace_x = (u @ np.einsum("ij,ij->i", x, x) - n * mean_x @ mean_x) / (n - 1)
    trace_y = (v @ np.einsum("ij,ij->i", y, y) - m * mean_y @ mean_y) / (m - 1)
    difference = mean_x - mean_y
    return float(max(difference @ difference + trace_x + trace_y - 2 * root, 0.0))


def affordable_resamples(n: int, m: int, dim: int, most: int) -> int:
    """How many of ``most`` resamples keep ``frechet_interval`` of ``n`` and ``m`` images to ``WORK``.

    By the sizes and never by the clock, so that a result does not depend on the machine. All 1,000 up to about 2,000
    images on each side; at least ``LEAST``, or ``most`` where that is less.
    """
    short, long = sorted((DISTINCT * n, DISTINCT * m))
    scatters = 2 * dim**2 * (short + long) + 16 * dim**3  # two of them, three products and the eigenvalues
    gram = 2 * short**2 * long + 12 * short**3  # with its eigenvalues
    work = scatters if dim < short else gram
    return min(most, max(LEAST, int(WORK / work)))


def frechet_interval(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    groups_a: Groups | None = None,
    groups_b: Groups | None = None,
    bootstrap: Bootstrap,
) -> tuple[float, float]:
    """95 % interval of the distance of ``a`` (N, D) to ``b`` (M, D) at these sizes, by bootstrap.

    ``groups_a`` (N,) and ``groups_b`` (M,) name the patient (or prompt) of each image, which are drawn whole; None:
    each image is its own.
    """
    x, y = feature_rows(a), feature_rows(b)
    weights = bootstrap.weights(groups_a, x), bootstrap.apart().weights(groups_b, y)
    low, high = resampled_distance(x, y, zip(*weights, strict=True)).ci
    return max(low, 0.0), max(high, 0.0)


def resampled_distance(x: Floats, y: Floats, weights: Iterable[tuple[Floats, Floats]]) -> Drawn:
    """Distance of ``x`` (N, D) to ``y`` (M, D), and draws of it, one for each of the ``weights`` (N,) and (M,).

    A resample repeats images, which raises the distance; its spread is right, its centre is not: so the draws are
    shifted to the distance itself.
    """
    middle = y.mean(axis=0)  # a common shift changes nothing but the rounding
    x, y = x - middle, y - middle
    cross = x @ y.T
    # Where few patients have many images, a resample can hold fewer than the two images that a covariance needs.
    draws = np.array([weighted_frechet(x, y, cross, u, v) for u, v in weights if min(u.sum(), v.sum()) > 1])
    value = weighted_frechet(x, y, cross, np.ones(len(x)), np.ones(len(y)))
    return Drawn(value, draws - draws.mean() + value)
