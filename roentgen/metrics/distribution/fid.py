"""Frechet distance of generated to real images: as it is, without end of images, by finding, and as n grows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.pairs import (
    CACHED,
    LEAST,
    UNSTABLE,
    Pair,
    against_real,
    pair_of,
    pair_result,
    per_finding,
    real_halves,
)
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, Noticed
from roentgen.metrics.reading import labels_of
from roentgen.metrics.reconstruction import rows_of_originals


def fid(pair: Pair) -> dict[str, Any]:
    """Frechet distance in these features."""
    return pair_result(
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
    return pair_result(
        pair,
        line.value,
        (low - whole + line.value, high - whole + line.value),
        UNSTABLE.format(pair.frechet_resamples, " of the distance at full n, shifted to the extrapolation"),
        warnings=warnings,
        details={
            "slope": line.slope,
            "points": [{"n": n, "value": value} for n, value in line.points],
            "resamples": pair.frechet_resamples,
        },
    )


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


CURVE = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the images at which a Frechet distance is drawn against n."""


def fid_by_n(pair: Pair) -> dict[str, list[dict[str, Any]]]:
    """Frechet distance of n of the images against n real ones, for growing n: generated, and real against real.

    Both curves fall with n; what is left between them at equal n is the model's.
    """
    halves = real_halves(pair)
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


@measure(
    "fid", "Fréchet distance (FID)", suite="quick", better="lower", each_extractor=True, reads=("reconstructed",),
    noticed={"fid": Noticed("FID", 1, 1, (*LOOKS, COLLAPSE))},
)  # fmt: skip
def measure_fid(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    found = against_real(fid, inputs, extractor, bound="floor", falls_with_n=True)
    details = {**found.details, "by_n": fid_by_n(pair_of(inputs, extractor))}
    return replace(found, details=details, reconstructed=reconstructed_fid(inputs, extractor))


def reconstructed_fid(inputs: EvaluationInputs, extractor: Extractor) -> dict[str, Any] | None:
    """Distance of reconstructions to the same real images, where there are any."""
    if inputs.reconstructed is None:
        return None
    rows, originals = rows_of_originals(inputs.reconstructed, inputs.real)
    after, before = inputs.of("reconstructed", extractor)[rows], inputs.of("real", extractor)[originals]
    if len(rows) < 2:
        return None
    value = frechet.feature_distance(after, before)
    return {"value": value, "n": len(rows), "what": f"against the same {len(rows):,} real images"}


@measure("fd_infinity", "FD-infinity", suite="standard", better="lower", each_extractor=True)
def measure_fd_infinity(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    return against_real(fd_infinity, inputs, extractor, bound="floor", falls_with_n=True)


@measure(
    "fid_by_finding", "Fréchet distance by finding, mean", suite="standard", better="lower", each_extractor=True,
    by_finding=ByFinding("Fréchet distance by finding", "Fréchet distance to real images with the finding"),
)  # fmt: skip
def measure_fid_by_finding(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Frechet distance of the images with a finding to the real images with it; the value is the mean."""
    labels = [dict(zip(inputs.real.findings, matrix.T, strict=True)) for matrix in labels_of(inputs)]
    found = per_finding(fid, pair_of(inputs, extractor), *labels, falls_with_n=True)
    known = {name: entry for name, entry in found.items() if math.isfinite(entry["value"])}
    if not known:
        raise Unavailable(f"no finding has {LEAST} images on both sides")
    rows = [
        {"finding": name, **{key: entry[key] for key in ("value", "ci", "n")}, "floor": entry["details"].get("floor")}
        for name, entry in known.items()
    ]
    few = [name for name in found if name not in known]
    left = f"fewer than {LEAST} images on a side, so without a distance of their own: {', '.join(few)}"
    warnings = dict.fromkeys(warning for entry in known.values() for warning in entry["warnings"])
    return Result(
        value=float(np.mean([row["value"] for row in rows])),
        ci=NOTHING,
        ci_method="none for the mean; by finding: " + next(iter(known.values()))["ci_method"],
        n=sum(row["n"] for row in rows),
        notes=[*([left] if few else []), *warnings, *inputs.notes],
        details={"findings": rows},
    )
