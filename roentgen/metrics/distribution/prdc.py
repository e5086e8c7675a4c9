"""Precision, recall, density and coverage of generated images, by nearest neighbours in feature space.

Precision and recall: Kynkaanniemi et al. 2019; density and coverage: Naeem et al. 2020. The definitions and strict
inequalities are those of the reference package ``prdc``; only a few rows of a distance matrix are made at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.statistics import Floats, feature_rows

NEIGHBOURS = 5
ROWS = 512  # of a distance matrix in memory at a time


@dataclass(frozen=True)
class Manifolds:
    """What each image says; the metrics are means over images.

    precise (N,): 1 where a generated image lies within the ball of any real one. dense (N,): in how many real balls
    it lies, over k. recalled (M,): 1 where a real image lies within the ball of any generated one. covered (M,): 1
    where any generated image lies within the real image's ball. A ball reaches to the k-th neighbour of its own set.
    """

    precise: Floats
    recalled: Floats
    dense: Floats
    covered: Floats
    k: int

    precision = property(lambda self: float(self.precise.mean()))
    recall = property(lambda self: float(self.recalled.mean()))
    density = property(lambda self: float(self.dense.mean()))
    coverage = property(lambda self: float(self.covered.mean()))


def manifolds(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], *, k: int = NEIGHBOURS, rows: int = ROWS
) -> Manifolds:
    """Compare ``synthetic`` (N, D) with ``real`` (M, D) by balls to the ``k``-th neighbour; N, M above ``k``."""
    y, x = feature_rows(real, least=k + 1), feature_rows(synthetic, least=k + 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"feature dimensions differ: {x.shape[1]} and {y.shape[1]}")
    centre = y.mean(axis=0)  # less is lost where norms cancel
    y, x = y - centre, x - centre
    real_radii, synthetic_radii = radii(y, k, rows=rows), radii(x, k, rows=rows)
    in_balls = np.zeros(len(x))
    recalled, covered = np.zeros(len(y)), np.zeros(len(y))
    for start in range(0, len(y), rows):
        part = slice(start, start + rows)
        distances = _distances(y[part], x)
        in_balls += (distances < real_radii[part, None]).sum(axis=0)
        recalled[part] = (distances < synthetic_radii).any(axis=1)
        covered[part] = distances.min(axis=1) < real_radii[part]
    return Manifolds((in_balls > 0).astype(np.float64), recalled, in_balls / k, covered, k)


def radii(points: Floats, k: int, *, rows: int = ROWS) -> Floats:
    """Distance (N,) of each of ``points`` (N, D) to its ``k``-th neighbour among the others."""
    found = np.empty(len(points))
    for start in range(0, len(points), rows):
        part = points[start : start + rows]
        distances = _distances(part, points)
        distances[np.arange(len(part)), np.arange(start, start + len(part))] = 0
        found[start : start + rows] = np.partition(distances, k, axis=1)[:, k]  # number 0 is the point itself
    return found


def _distances(a: Floats, b: Floats) -> Floats:
    squared = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.clip(squared, 0, None))
