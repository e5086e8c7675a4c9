"""Precision, recall, density and coverage, on sets cut to equal size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution.pairs import CACHED, Pair, PairMetric, against_real, pair_result, picked
from roentgen.metrics.distribution.prdc import Manifolds, manifolds
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, ONE_KIND, Noticed
from roentgen.metrics.statistics import mean_interval


@lru_cache(maxsize=CACHED)  # four metrics read it
def _manifolds(pair: Pair) -> tuple[Pair, Manifolds]:
    """The pair cut to equal n at random, and its manifolds."""
    rng = np.random.default_rng(pair.seed)
    size = min(len(pair.synthetic), len(pair.real))

    def chosen(count: int) -> NDArray[np.intp]:
        return np.sort(rng.choice(count, size, replace=False)) if count > size else np.arange(count)

    cut = picked(pair, chosen(len(pair.synthetic)), chosen(len(pair.real)))
    return cut, manifolds(cut.real, cut.synthetic, k=pair.k)


def _share(pair: Pair, values: str, groups: str) -> dict[str, Any]:
    """Mean over images of the field ``values`` of ``Manifolds``; ``groups``: the field of the pair that they are of."""
    cut, found = _manifolds(pair)
    each = getattr(found, values)
    warnings = []
    if len(cut.synthetic) < 1000:
        warnings.append(
            f"n = {len(cut.synthetic)}: neighbours are far apart below some 1,000 images; compare at equal n"
        )
    return pair_result(
        cut,
        float(each.mean()),
        mean_interval(each, getattr(cut, groups), resamples=pair.resamples, seed=pair.seed),
        f"95 % bootstrap by patient or prompt of the images' scores, manifolds held, {pair.resamples} resamples",
        warnings=warnings,
        details={
            "k": pair.k,
            "synthetic_given": len(pair.synthetic),
            "real_given": len(pair.real),
            "equal_n": "the larger set was cut at random" if len(pair.synthetic) != len(pair.real) else "as given",
        },
    )


def precision(pair: Pair) -> dict[str, Any]:
    """Share of generated images that lie among the real ones."""
    return _share(pair, "precise", "synthetic_groups")


def recall(pair: Pair) -> dict[str, Any]:
    """Share of real images that lie among the generated ones."""
    return _share(pair, "recalled", "real_groups")


def density(pair: Pair) -> dict[str, Any]:
    """In how many real balls a generated image lies, over k; about 1 for equal distributions, and may be above."""
    return _share(pair, "dense", "synthetic_groups")


def coverage(pair: Pair) -> dict[str, Any]:
    """Share of real images that have a generated one within their ball."""
    return _share(pair, "covered", "real_groups")


def _register(metric: PairMetric, damages: tuple[str, ...], **about: str) -> None:
    name = metric.__name__
    noticed = {name: Noticed(name, 2, -1, damages)}

    @measure(name, name.capitalize(), suite="quick", each_extractor=True, noticed=noticed, **about)
    def compute(inputs: EvaluationInputs, extractor: Extractor) -> Result:
        return against_real(metric, inputs, extractor)


_register(precision, LOOKS, better="higher", unit="share")
_register(recall, (COLLAPSE, ONE_KIND), better="higher", unit="share")
_register(density, LOOKS, better="near 1")
_register(coverage, (COLLAPSE, ONE_KIND), better="higher", unit="share")
