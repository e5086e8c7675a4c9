"""Generated against real features: pairs of sets, the floor of real against real, and figures by finding.

The metrics themselves are pure functions of a ``Pair`` in the modules beside this one. The floor of each is what two
halves of the real images, with no patient in both, score against each other: nothing can be expected to do better at
this n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.prdc import NEIGHBOURS
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, EvaluationInputs, Result, Unavailable
from roentgen.metrics.reading import one_seed
from roentgen.metrics.statistics import RESAMPLES, Groups, own_groups

Features = NDArray[np.floating]
LEAST = 50
"""Per-finding figures of fewer images than this on either side are not given: they would be noise."""
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

    synthetic: Features
    real: Features
    synthetic_groups: Groups | None = None
    real_groups: Groups | None = None
    resamples: int = RESAMPLES
    k: int = NEIGHBOURS
    seed: int = 0

    @property
    def frechet_resamples(self) -> int:
        """Resamples of a Frechet distance, which cost a matrix root each."""
        n, dim = self.synthetic.shape
        return frechet.affordable_resamples(n, len(self.real), dim, self.resamples)


PairMetric = Callable[[Pair], dict[str, Any]]


def with_floor(metric: PairMetric, pair: Pair, *, falls_with_n: bool = False) -> dict[str, Any]:
    """``metric`` of ``pair``, with that of real images against real ones in ``details["floor"]``.

    The real images of the floor are cut in two, so their n is at most half; its own "n" says so, and beside it
    ``details["at_floor_n"]`` is the Frechet distance at that n for a metric that ``falls_with_n``.
    """
    found = metric(pair)
    halves = real_halves(pair)
    if halves is None:
        found["warnings"].append("too few real images or patients for a floor of real against real")
        return found
    bottom = metric(halves)
    found["details"]["floor"] = {key: bottom[key] for key in ("value", "ci", "n")} | {"real_n": len(halves.real)}
    if falls_with_n:
        # FID falls with n: the generated images at the floor's sizes are what the floor can be held against.
        rng = np.random.default_rng(pair.seed)
        same = rng.permutation(len(pair.synthetic))[: len(halves.synthetic)]
        alike = replace(halves, synthetic=pair.synthetic[np.sort(same)], synthetic_groups=None)
        found["details"]["at_floor_n"] = {
            "value": frechet.feature_distance(alike.synthetic, alike.real),
            "floor": frechet.feature_distance(halves.synthetic, alike.real),
            "n": len(alike.synthetic),
            "real_n": len(alike.real),
        }
    return found


@lru_cache(maxsize=CACHED)  # the same halves for all metrics, so that they share what they compute
def real_halves(pair: Pair) -> Pair | None:
    """The real images against themselves, cut in halves with no patient in both; None where they are too few."""
    named = np.asarray([str(group) for group in own_groups(pair.real_groups, pair.real)])
    names, index = np.unique(named, return_inverse=True)
    order = np.random.default_rng(pair.seed).permutation(len(names))
    sizes = np.bincount(index)[order]
    # Patients in random order until half of the images are there.
    is_first = np.isin(index, order[: int(np.searchsorted(np.cumsum(sizes), len(index) / 2)) + 1])
    if min(is_first.sum(), (~is_first).sum()) <= max(pair.k, 3):
        return None
    whole = replace(pair, synthetic=pair.real, synthetic_groups=named.tolist(), real_groups=named.tolist())
    return picked(whole, np.flatnonzero(is_first), np.flatnonzero(~is_first))


def per_finding(
    metric: PairMetric,
    pair: Pair,
    synthetic_labels: Mapping[str, NDArray[np.floating]],
    real_labels: Mapping[str, NDArray[np.floating]],
    *,
    falls_with_n: bool = False,
    least: int = LEAST,
) -> dict[str, dict[str, Any]]:
    """``metric`` among the images with each finding: generated ones asked for it, real ones that have it.

    Labels (N,) and (M,) are 1, 0 or NaN. A finding with fewer than ``least`` images on a side gets "value" NaN and a
    warning that says so, so that it is seen to be missing.
    """
    found = {}
    for finding in [name for name in synthetic_labels if name in real_labels]:
        made, real = (np.flatnonzero(labels[finding] == 1) for labels in (synthetic_labels, real_labels))
        part = picked(pair, made, real)
        if min(len(made), len(real)) < max(least, pair.k + 1):
            few = f"{len(made)} generated and {len(real)} real images; at least {least} of each are needed"
            found[finding] = pair_result(part, NOTHING[0], NOTHING, "none", warnings=[few], details={})
        else:
            found[finding] = with_floor(metric, part, falls_with_n=falls_with_n)
    return found


def picked(pair: Pair, synthetic: NDArray[np.intp], real: NDArray[np.intp]) -> Pair:
    """The pair of these rows."""

    def of(groups: Groups | None, rows: NDArray[np.intp]) -> list[object] | None:
        return None if groups is None else [groups[row] for row in rows.tolist()]

    return replace(
        pair,
        synthetic=pair.synthetic[synthetic],
        real=pair.real[real],
        synthetic_groups=of(pair.synthetic_groups, synthetic),
        real_groups=of(pair.real_groups, real),
    )


def pair_result(
    pair: Pair,
    value: float,
    ci: tuple[float, float],
    ci_method: str,
    *,
    warnings: list[str],
    details: dict[str, Any],
) -> dict[str, Any]:
    return {
        "value": value,
        "ci": ci,
        "ci_method": ci_method,
        "n": len(pair.synthetic),
        "warnings": warnings,
        "details": {"real_n": len(pair.real)} | details,
    }


@lru_cache(maxsize=CACHED)  # one pair an extractor, by which the metrics share what they compute
def pair_of(inputs: EvaluationInputs, extractor: Extractor) -> Pair:
    return Pair(
        inputs.of("synthetic", extractor),
        inputs.of("real", extractor),
        synthetic_groups=inputs.bootstrap_groups,
        real_groups=inputs.real.patients,
        **inputs.bootstrap,
    )


def against_real(
    metric: PairMetric,
    inputs: EvaluationInputs,
    extractor: Extractor,
    *,
    bound: str = "ceiling",
    falls_with_n: bool = False,
) -> Result:
    """``metric`` as a measure; ``bound``: whether real against real is its floor or its ceiling."""
    pair = pair_of(inputs, extractor)
    if min(len(pair.synthetic), len(pair.real)) <= pair.k:
        raise Unavailable(f"too few images: at least {pair.k + 1} on each side are needed", bad_input=True)
    found = with_floor(metric, pair, falls_with_n=falls_with_n)
    more: dict[str, Any] = {}
    if entry := found["details"].pop("floor", None):
        words = f"real against real, n = {entry['n']:,}"
        if same := found["details"].get("at_floor_n"):
            words += f"; generated at that n: {same['value']:.3g}"
        more[bound] = {**entry, "what": words}
    return Result.of(found, notes=one_seed(inputs), **more)
