"""Distribution metrics as results: value, interval, warnings, and the same figure for real images against real ones.

``METRICS`` holds FID, KID, FD-infinity, precision, recall, density and coverage under one signature. Each is a pure
function of features (N, D) and gives a dictionary that can go into a result file. The floor of each is what two halves
of the real images, with no patient in both, score against each other: nothing can be expected to do better at this n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.bootstrap import RESAMPLES, mean_interval
from roentgen.metrics.distribution import frechet, kernel
from roentgen.metrics.distribution.prdc import NEIGHBOURS, Manifolds, manifolds

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
    synthetic_groups: Sequence[object] | None = None
    real_groups: Sequence[object] | None = None
    resamples: int = RESAMPLES
    k: int = NEIGHBOURS
    seed: int = 0

    @property
    def n(self) -> int:
        return len(self.synthetic)

    @property
    def frechet_resamples(self) -> int:
        """Resamples of a Frechet distance, which cost a matrix root each."""
        return frechet.affordable_resamples(
            len(self.synthetic), len(self.real), self.synthetic.shape[1], self.resamples
        )


def fid(pair: Pair) -> dict[str, Any]:
    """Frechet distance in these features."""
    return _result(
        pair,
        frechet.feature_distance(pair.synthetic, pair.real),
        _frechet_interval(pair),
        UNSTABLE.format(pair.frechet_resamples, ", shifted to the value"),
        warnings=_frechet_warnings(pair),
        details={"feature_dimension": pair.synthetic.shape[1], "resamples": pair.frechet_resamples},
    )


def fd_infinity(pair: Pair) -> dict[str, Any]:
    """Frechet distance extrapolated to infinitely many generated images."""
    line = frechet.fd_infinity(pair.synthetic, pair.real, seed=pair.seed)
    whole = line.points[-1][1]
    low, high = _frechet_interval(pair)
    warnings = _frechet_warnings(pair)
    if line.points[0][0] <= pair.synthetic.shape[1]:
        warnings.append(
            f"the smallest subset, {line.points[0][0]} images, is not above the feature dimension "
            f"{pair.synthetic.shape[1]}: distances do not follow 1/n there and the extrapolation is not to be trusted"
        )
    return _result(
        pair,
        line.value,
        (low - whole + line.value, high - whole + line.value),
        UNSTABLE.format(pair.frechet_resamples, " of the distance at full n, shifted to the extrapolation"),
        warnings=warnings,
        details={"slope": line.slope, "points": line.points, "resamples": pair.frechet_resamples},
    )


def kid(pair: Pair) -> dict[str, Any]:
    """Kernel distance: unbiased, so it can be below 0 and needs fewer images than FID."""
    found = kernel.kernel_distance(
        pair.synthetic,
        pair.real,
        synthetic_groups=pair.synthetic_groups,
        real_groups=pair.real_groups,
        resamples=pair.resamples,
    )
    warnings = []
    if found.subset_size < kernel.SUBSET_SIZE:
        warnings.append(
            f"subsets of {found.subset_size} images, half of the smaller set, instead of {kernel.SUBSET_SIZE}: the "
            "mean is comparable with published values, the spread over subsets is not"
        )
    return _result(
        pair,
        found.value,
        found.ci,
        UNSTABLE.format(pair.resamples, " of the estimate from all images"),
        warnings=warnings,
        details={
            "subsets": found.subsets,
            "subset_size": found.subset_size,
            "sd_over_subsets": found.sd,
            "all_images": found.whole,
            "kernel": "(x.y / D + 1)^3",
        },
    )


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


METRICS: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "fid": fid,
    "kid": kid,
    "fd_infinity": fd_infinity,
    "precision": precision,
    "recall": recall,
    "density": density,
    "coverage": coverage,
}


def measure(name: str, pair: Pair, *, floor: bool = True) -> dict[str, Any]:
    """Metric ``name`` of ``METRICS`` for ``pair``; with ``floor``, that of real images in ``details["floor"]``.

    The real images of the floor are cut in two, so their n is at most half; its own "n" says so, and beside it
    ``details["at_floor_n"]`` is the metric at that n where it depends on it.
    """
    found = METRICS[name](pair)
    if not floor:
        return found
    halves = real_halves(pair)
    if halves is None:
        found["warnings"].append("too few real images or patients for a floor of real against real")
        return found
    bottom = METRICS[name](halves)
    found["details"]["floor"] = {key: bottom[key] for key in ("value", "ci", "n")} | {"real_n": len(halves.real)}
    if name in ("fid", "fd_infinity"):
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
    groups = range(len(pair.real)) if pair.real_groups is None else pair.real_groups
    names, index = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    order = np.random.default_rng(pair.seed).permutation(len(names))
    sizes = np.bincount(index)[order]
    # Patients in random order until half of the images are there.
    first = set(order[: int(np.searchsorted(np.cumsum(sizes), len(index) / 2)) + 1].tolist())
    is_first = np.array([number in first for number in index])
    if min(is_first.sum(), (~is_first).sum()) <= max(pair.k, 3):
        return None
    named = np.asarray(names)[index]
    return replace(
        pair,
        synthetic=pair.real[is_first],
        real=pair.real[~is_first],
        synthetic_groups=named[is_first].tolist(),
        real_groups=named[~is_first].tolist(),
    )


def per_finding(
    name: str,
    pair: Pair,
    synthetic_labels: Mapping[str, NDArray[np.floating]],
    real_labels: Mapping[str, NDArray[np.floating]],
    *,
    least: int = LEAST,
) -> dict[str, dict[str, Any]]:
    """Metric ``name`` among the images with each finding: generated ones asked for it, real ones that have it.

    Labels (N,) and (M,) are 1, 0 or NaN. A finding with fewer than ``least`` images on a side gets "value" NaN and a
    warning that says so, so that it is seen to be missing.
    """
    found = {}
    for finding in synthetic_labels:
        if finding not in real_labels:
            continue
        of_synthetic = np.flatnonzero(np.asarray(synthetic_labels[finding]) == 1)
        of_real = np.flatnonzero(np.asarray(real_labels[finding]) == 1)
        part = replace(
            pair,
            synthetic=pair.synthetic[of_synthetic],
            real=pair.real[of_real],
            synthetic_groups=_picked(pair.synthetic_groups, of_synthetic),
            real_groups=_picked(pair.real_groups, of_real),
        )
        if min(len(of_synthetic), len(of_real)) < max(least, pair.k + 1):
            nothing = (float("nan"), float("nan"))
            few = f"{len(of_synthetic)} generated and {len(of_real)} real images; at least {least} of each are needed"
            found[finding] = _result(part, float("nan"), nothing, "none", warnings=[few], details={})
        else:
            found[finding] = measure(name, part)
    return found


def _picked(groups: Sequence[object] | None, rows: NDArray[np.intp]) -> list[object] | None:
    return None if groups is None else [groups[int(row)] for row in rows]


def _result(
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


@lru_cache(maxsize=CACHED)  # FID and FD-infinity share it; ``Pair`` is hashed by identity
def _frechet_interval(pair: Pair) -> tuple[float, float]:
    return frechet.frechet_interval(
        pair.synthetic,
        pair.real,
        groups_a=pair.synthetic_groups,
        groups_b=pair.real_groups,
        resamples=pair.frechet_resamples,
        seed=pair.seed,
    )


def _frechet_warnings(pair: Pair) -> list[str]:
    smaller, dim = min(len(pair.synthetic), len(pair.real)), pair.synthetic.shape[1]
    few = []
    if pair.frechet_resamples < pair.resamples:
        few.append(
            f"interval of {pair.frechet_resamples} resamples instead of {pair.resamples}: each costs a root of "
            "matrices of this size"
        )
    if smaller > dim:
        return few
    return [
        *few,
        f"n = {smaller} is not above the feature dimension {dim}: covariances are singular and the distance is too "
        "high; compare only at equal n, with the floor beside it",
    ]


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
        synthetic_groups=_picked(pair.synthetic_groups, of_synthetic),
        real_groups=_picked(pair.real_groups, of_real),
    )
    return cut, manifolds(cut.real, cut.synthetic, k=pair.k)


def _share(cut: Pair, whole: Pair, values: NDArray[np.float64], groups: Sequence[object] | None) -> dict[str, Any]:
    warnings = []
    if len(cut.synthetic) < 1000:
        warnings.append(
            f"n = {len(cut.synthetic)}: neighbours are far apart below some 1,000 images; compare at equal n"
        )
    return _result(
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
