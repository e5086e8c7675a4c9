"""Generated against real features: pairs of sets, and the floor of real against real.

The metrics themselves are pure functions of a ``Pair`` in the modules beside this one. The floor of each is what two
halves of the real images, with no patient in both, score against each other: nothing can be expected to do better at
this n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution import frechet
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable
from roentgen.metrics.reading import one_seed
from roentgen.metrics.statistics import RESAMPLES, Bootstrap, Groups, own_groups

NEIGHBOURS = 5
CACHED = 12
"""Pairs whose intermediate results are kept: two for each of the extractors of a full suite."""
UNSTABLE = "95 % bootstrap by patient and prompt, {} resamples{}"


@dataclass(frozen=True, eq=False)
class Pair:
    """Generated against real features, with what tells which images belong together.

    synthetic (N, D), real (M, D), each with its groups: prompt or patient of each image; None: each its own.
    resamples: of the intervals; Frechet distances take fewer where the sets are large (``frechet_resamples``). seed:
    of every draw.
    """

    synthetic: NDArray[np.floating]
    real: NDArray[np.floating]
    synthetic_groups: Groups | None = None
    real_groups: Groups | None = None
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def frechet_resamples(self) -> int:
        """Resamples of a Frechet distance, which cost a matrix root each."""
        n, dim = self.synthetic.shape
        return frechet.affordable_resamples(n, len(self.real), dim, self.resamples)

    @cached_property
    def frechet_interval(self) -> tuple[float, float]:
        """Of the Frechet distance; FID and FD-infinity share it."""
        of: dict[str, Any] = {"groups_a": self.synthetic_groups, "groups_b": self.real_groups}
        bootstrap = Bootstrap(self.frechet_resamples, self.seed)
        return frechet.frechet_interval(self.synthetic, self.real, bootstrap=bootstrap, **of)

    @cached_property
    def halves(self) -> Pair | None:
        """The real images against themselves, cut in halves with no patient in both; None where they are too few."""
        named = np.asarray([str(group) for group in own_groups(self.real_groups, self.real)])
        names, index = np.unique(named, return_inverse=True)
        order = np.random.default_rng(self.seed).permutation(len(names))
        sizes = np.bincount(index)[order]
        # Patients in random order until half of the images are there.
        is_first = np.isin(index, order[: int(np.searchsorted(np.cumsum(sizes), len(index) / 2)) + 1])
        if min(is_first.sum(), (~is_first).sum()) <= NEIGHBOURS:
            return None
        whole = replace(self, synthetic=self.real, synthetic_groups=named.tolist(), real_groups=named.tolist())
        return whole.picked(np.flatnonzero(is_first), np.flatnonzero(~is_first))

    def picked(self, synthetic: NDArray[np.intp], real: NDArray[np.intp]) -> Pair:
        """The pair of these rows."""

        def of(groups: Groups | None, rows: NDArray[np.intp]) -> list[object] | None:
            return None if groups is None else [groups[row] for row in rows.tolist()]

        return replace(
            self,
            synthetic=self.synthetic[synthetic],
            real=self.real[real],
            synthetic_groups=of(self.synthetic_groups, synthetic),
            real_groups=of(self.real_groups, real),
        )

    def result(
        self, value: float, ci: tuple[float, float], ci_method: str, *, notes: Sequence[str] = (), **details: Any
    ) -> Result:
        """What a metric found of this pair."""
        n, about = len(self.synthetic), {"real_n": len(self.real), **details}
        return Result(value, ci, n, ci_method, notes=notes, details=about)


PairMetric = Callable[[Pair], Result]


def against_real(metric: PairMetric, pair: Pair, *, bound: str = "ceiling", falls_with_n: bool = False) -> Result:
    """``metric`` of ``pair`` beside that of real images against real ones, its ``bound``: "floor" or "ceiling".

    The real images of the floor are cut in two, so their n is at most half; its own "n" says so, and
    ``details["at_floor_n"]`` is the Frechet distance at that n for a metric that ``falls_with_n``.
    """
    found, halves = metric(pair), pair.halves
    if halves is None:
        return found.plus(notes=["too few real images or patients for a floor of real against real"])
    other, details = metric(halves), dict(found.details)
    words = f"real against real, n = {other.n:,}"
    if falls_with_n:
        # FID falls with n: the generated images at the floor's sizes are what the floor can be held against.
        rng = np.random.default_rng(pair.seed)
        same = rng.permutation(len(pair.synthetic))[: len(halves.synthetic)]
        value = frechet.feature_distance(pair.synthetic[np.sort(same)], halves.real)
        floor = frechet.feature_distance(halves.synthetic, halves.real)
        details["at_floor_n"] = {"value": value, "floor": floor, "n": len(same), "real_n": len(halves.real)}
        words += f"; generated at that n: {value:.3g}"
    beside: dict[str, Any] = {bound: {**other.entry, "real_n": len(halves.real), "what": words}}
    return found.plus(details=details, **beside)


@lru_cache(maxsize=CACHED)  # one pair an extractor, by which the metrics share what they compute
def pair_of(inputs: EvaluationInputs, extractor: Extractor) -> Pair:
    return Pair(
        inputs.of("synthetic", extractor),
        inputs.of("real", extractor),
        synthetic_groups=inputs.bootstrap_groups,
        real_groups=inputs.real.patients,
        resamples=inputs.resamples,
        seed=inputs.seed,
    )


def measured(metric: PairMetric, inputs: EvaluationInputs, extractor: Extractor, **about: Any) -> Result:
    """``metric`` as a measure; ``about``: the options of ``against_real``."""
    pair = pair_of(inputs, extractor)
    if min(len(pair.synthetic), len(pair.real)) <= NEIGHBOURS:
        raise Unavailable(f"too few images: at least {NEIGHBOURS + 1} on each side are needed", bad_input=True)
    return against_real(metric, pair, **about).plus(notes=one_seed(inputs))
