"""Precision, recall, density and coverage, on sets cut to equal size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution.pairs import CACHED, Pair, against_real, pair_result, picked
from roentgen.metrics.distribution.prdc import Manifolds, manifolds
from roentgen.metrics.measure import COLLAPSE, LOOKS, ONE_KIND, EvaluationInputs, Noticed, Result, measure
from roentgen.metrics.statistics import mean_interval

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor


def precision(pair: Pair) -> dict[str, Any]:
    """Share of generated images that lie among the real ones."""
    cut, found = _manifolds(pair)
    return _share(cut, pair, found.precise, cut.synthetic_groups)


def recall(pair: Pair) -> dict[str, Any]:
    """Share of real images that lie among the generated ones."""
    cut, found = _manifolds(pair)
    return _share(cut, pair, found.recalled, cut.real_groups)


def density(pair: Pair) -> dict[str, Any]:
    """In how many real balls a generated image lies, over k; about 1 for equal distributions, and may be above."""
    cut, found = _manifolds(pair)
    return _share(cut, pair, found.dense, cut.synthetic_groups)


def coverage(pair: Pair) -> dict[str, Any]:
    """Share of real images that have a generated one within their ball."""
    cut, found = _manifolds(pair)
    return _share(cut, pair, found.covered, cut.real_groups)


@lru_cache(maxsize=CACHED)  # four metrics read it
def _manifolds(pair: Pair) -> tuple[Pair, Manifolds]:
    """The pair cut to equal n at random, and its manifolds."""
    rng = np.random.default_rng(pair.seed)
    size = min(len(pair.synthetic), len(pair.real))

    def chosen(count: int) -> NDArray[np.intp]:
        return np.sort(rng.choice(count, size, replace=False)) if count > size else np.arange(count)

    of_synthetic, of_real = chosen(len(pair.synthetic)), chosen(len(pair.real))
    cut = replace(
        pair,
        synthetic=pair.synthetic[of_synthetic],
        real=pair.real[of_real],
        synthetic_groups=picked(pair.synthetic_groups, of_synthetic),
        real_groups=picked(pair.real_groups, of_real),
    )
    return cut, manifolds(cut.real, cut.synthetic, k=pair.k)


def _share(cut: Pair, whole: Pair, values: NDArray[np.float64], groups: Sequence[object] | None) -> dict[str, Any]:
    warnings = []
    if len(cut.synthetic) < 1000:
        warnings.append(
            f"n = {len(cut.synthetic)}: neighbours are far apart below some 1,000 images; compare at equal n"
        )
    return pair_result(
        cut,
        float(values.mean()),
        mean_interval(values, groups, resamples=whole.resamples, seed=whole.seed),
        f"95 % bootstrap by patient or prompt of the images' scores, manifolds held, {whole.resamples} resamples",
        warnings=warnings,
        details={
            "k": whole.k,
            "synthetic_given": len(whole.synthetic),
            "real_given": len(whole.real),
            "equal_n": "the larger set was cut at random" if len(whole.synthetic) != len(whole.real) else "as given",
        },
    )


@measure(
    "precision",
    "Precision",
    suite="quick",
    better="higher",
    unit="share",
    each_extractor=True,
    noticed={"precision": Noticed("precision", 2, -1, LOOKS)},
)
def measure_precision(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(precision, inputs, extractor)


@measure(
    "recall",
    "Recall",
    suite="quick",
    better="higher",
    unit="share",
    each_extractor=True,
    noticed={"recall": Noticed("recall", 2, -1, (COLLAPSE, ONE_KIND))},
)
def measure_recall(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(recall, inputs, extractor)


@measure(
    "density",
    "Density",
    suite="quick",
    better="near 1",
    each_extractor=True,
    noticed={"density": Noticed("density", 2, -1, LOOKS)},
)
def measure_density(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(density, inputs, extractor)


@measure(
    "coverage",
    "Coverage",
    suite="quick",
    better="higher",
    unit="share",
    each_extractor=True,
    noticed={"coverage": Noticed("coverage", 2, -1, (COLLAPSE, ONE_KIND))},
)
def measure_coverage(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(coverage, inputs, extractor)
