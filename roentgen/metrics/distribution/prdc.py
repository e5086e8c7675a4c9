"""Precision, recall, density and coverage of generated images, by nearest neighbours in feature space.

Precision and recall: Kynkaanniemi et al. 2019; density and coverage: Naeem et al. 2020. The definitions and strict
inequalities are those of the reference package ``prdc``; only a few rows of a distance matrix are made at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution.pairs import CACHED, NEIGHBOURS, Pair, measured
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, ONE_KIND, Noticed
from roentgen.metrics.statistics import Bootstrap, Floats, feature_rows

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
    return Manifolds((in_balls > 0).astype(np.float64), recalled, in_balls / k, covered)


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


SHARES = {
    "precision": ("precise", "synthetic_groups"),
    "recall": ("recalled", "real_groups"),
    "density": ("dense", "synthetic_groups"),
    "coverage": ("covered", "real_groups"),
}
"""Each metric: the field of ``Manifolds`` that it is the mean of, and the groups of the pair that those images have."""


@lru_cache(maxsize=CACHED)  # four metrics read it
def _manifolds(pair: Pair) -> tuple[Pair, Manifolds]:
    """The pair cut to equal n at random, and its manifolds."""
    rng = np.random.default_rng(pair.seed)
    size = min(len(pair.synthetic), len(pair.real))

    def chosen(count: int) -> NDArray[np.intp]:
        return np.sort(rng.choice(count, size, replace=False)) if count > size else np.arange(count)

    cut = pair.picked(chosen(len(pair.synthetic)), chosen(len(pair.real)))
    return cut, manifolds(cut.real, cut.synthetic)


def manifold_share(pair: Pair, name: str) -> Result:
    """Precision: share of generated images that lie among the real ones. Recall: share of real images that lie among
    the generated ones. Density: in how many real balls a generated image lies, over k; about 1 for equal
    distributions, and may be above. Coverage: share of real images that have a generated one within their ball."""
    cut, found = _manifolds(pair)
    values, groups = (getattr(part, field) for part, field in zip((found, cut), SHARES[name], strict=True))
    spread = Bootstrap(pair.resamples, pair.seed).mean(values, groups)
    n = len(cut.synthetic)
    return cut.result(
        spread["value"],
        spread["ci"],
        f"95 % bootstrap by patient or prompt of the images' scores, manifolds held, {pair.resamples} resamples",
        notes=[f"n = {n}: neighbours are far apart below some 1,000 images; compare at equal n"] if n < 1000 else [],
        k=NEIGHBOURS,
        synthetic_given=len(pair.synthetic),
        real_given=len(pair.real),
        equal_n="the larger set was cut at random" if len(pair.synthetic) != len(pair.real) else "as given",
    )


def _register(name: str, damages: tuple[str, ...], **about: str) -> None:
    noticed = {name: Noticed(name, 2, -1, damages)}

    @measure(name, name.capitalize(), suite="quick", each_extractor=True, noticed=noticed, **about)
    def compute(inputs: EvaluationInputs, extractor: Extractor) -> Result:
        return measured(partial(manifold_share, name=name), inputs, extractor)


_register("precision", LOOKS, better="higher", unit="share")
_register("recall", (COLLAPSE, ONE_KIND), better="higher", unit="share")
_register("density", LOOKS, better="near 1")
_register("coverage", (COLLAPSE, ONE_KIND), better="higher", unit="share")
