"""How far generated images are from real ones as a whole: Frechet and kernel distances, neighbours, by finding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution import pairs as distribution
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.measure import NOTHING, Case, Found, Unavailable, labels_of, one_seed

CURVE = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the images at which a Frechet distance is drawn against n."""


@lru_cache(maxsize=distribution.CACHED)  # one pair an extractor, by which the metrics share what they compute
def pair_of(case: Case, extractor: Extractor) -> distribution.Pair:
    return distribution.Pair(
        case.of("synthetic", extractor),
        case.of("real", extractor),
        synthetic_groups=case.bootstrap_groups,
        real_groups=case.real.patients,
        resamples=case.resamples,
        seed=case.seed,
    )


def measure_distribution(name: str, bound: str) -> Callable[[Case, Extractor], Found]:
    """A metric of ``distribution.METRICS``; ``bound``: whether real against real is its floor or its ceiling."""

    def compute(case: Case, extractor: Extractor) -> Found:
        pair = pair_of(case, extractor)
        least = pair.k + 1
        if min(len(pair.synthetic), len(pair.real)) < least:
            raise Unavailable(f"too few images: at least {least} on each side are needed", bad_input=True)
        found = distribution.measure(name, pair)
        found["warnings"] += one_seed(case)
        details = found["details"]
        if entry := details.pop("floor", None):
            words = f"real against real, n = {entry['n']:,}"
            if same := details.get("at_floor_n"):
                words += f"; generated at that n: {same['value']:.3g}"
            details[bound] = {**entry, "what": words}
        if "points" in details:
            details["points"] = [{"n": n, "value": value} for n, value in details["points"]]
        if name == "fid":
            details["by_n"] = fid_by_n(pair)
        return found

    return compute


def fid_by_n(pair: distribution.Pair) -> dict[str, list[dict[str, Any]]]:
    """Frechet distance of n of the images against n real ones, for growing n: generated, and real against real.

    Both curves fall with n; what is left between them at equal n is the model's.
    """
    halves = distribution.real_halves(pair)
    curves = {"generated": (pair.synthetic, pair.real)}
    if halves is not None:
        curves["real against real (two halves of the patients)"] = (halves.synthetic, halves.real)
    rng = np.random.default_rng(pair.seed)
    found: dict[str, list[dict[str, Any]]] = {}
    every = {round(share * min(len(pair.synthetic), len(pair.real))) for share in CURVE}
    for name, (x, y) in curves.items():
        most = min(len(x), len(y))
        rows, others = rng.permutation(len(x)), rng.permutation(len(y))
        sizes = sorted({n for n in every if 2 <= n <= most} | {most})
        found[name] = [{"n": n, "value": frechet.feature_distance(x[rows[:n]], y[others[:n]])} for n in sizes]
    return found


def measure_fid_by_finding(case: Case, extractor: Extractor) -> Found:
    """Frechet distance of the images with a finding to the real images with it; the value is the mean."""
    mine, theirs = labels_of(case)
    names = list(case.real.findings)
    found = distribution.per_finding(
        "fid",
        pair_of(case, extractor),
        {name: mine[:, column] for column, name in enumerate(names)},
        {name: theirs[:, column] for column, name in enumerate(names)},
    )
    known = {name: entry for name, entry in found.items() if math.isfinite(entry["value"])}
    if not known:
        raise Unavailable(f"no finding has {distribution.LEAST} images on both sides")
    rows = [
        {"finding": name, **{key: entry[key] for key in ("value", "ci", "n")}, "floor": entry["details"].get("floor")}
        for name, entry in known.items()
    ]
    few = [name for name in found if name not in known]
    left = f"fewer than {distribution.LEAST} images on a side, so without a distance of their own: {', '.join(few)}"
    return {
        "value": float(np.mean([row["value"] for row in rows])),
        "ci": NOTHING,
        "ci_method": "none for the mean; by finding: " + next(iter(known.values()))["ci_method"],
        "n": sum(row["n"] for row in rows),
        "warnings": [
            *([left] if few else []),
            *dict.fromkeys(warning for entry in known.values() for warning in entry["warnings"]),
            *case.notes,
        ],
        "details": {"findings": rows},
    }
