"""Frechet distance of generated to real images: as it is, without end of images, by finding, and as n grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.pairs import UNSTABLE, Pair, against_real, measured, pair_of
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.noticed import COLLAPSE, LOOKS, Noticed
from roentgen.metrics.reading import labels_of
from roentgen.metrics.reconstruction import rows_of_originals

LEAST = 50
"""Per-finding figures of fewer images than this on either side are not given: they would be noise."""
SIZES, SMALLEST = 15, 0.1
"""How many sizes FD-infinity is fitted to, and the share of the images that the least of them is."""


def fid(pair: Pair) -> Result:
    """Frechet distance in these features."""
    return pair.result(
        frechet.feature_distance(pair.synthetic, pair.real),
        pair.frechet_interval,
        UNSTABLE.format(pair.frechet_resamples, ", shifted to the value"),
        notes=_notes(pair),
        feature_dimension=pair.synthetic.shape[1],
        resamples=pair.frechet_resamples,
    )


def fd_infinity(pair: Pair) -> Result:
    """Frechet distance for infinitely many generated images (Chong & Forsyth 2020).

    A finite sample raises the distance by a term in 1/n. The distances of random subsets of the generated images, of
    ``SIZES`` sizes evenly spaced from ``SMALLEST`` of them to all, to all real images lie near a straight line over
    1/n; its intercept is the value. The bias of the finite real set stays: compare at equal size. It may be negative
    for sets that are alike. The law holds for n well above the dimension only.
    """
    x, dim = pair.synthetic, pair.synthetic.shape[1]
    first = max(2, round(SMALLEST * len(x)))
    if first >= len(x):
        raise ValueError(f"{len(x)} images are too few for {SIZES} sizes")
    rng = np.random.default_rng(pair.seed)
    sizes = np.unique(np.linspace(first, len(x), SIZES).round().astype(int)).tolist()
    distances = [frechet.feature_distance(x[rng.choice(len(x), n, replace=False)], pair.real) for n in sizes]
    slope, value = map(float, np.polyfit([1 / n for n in sizes], distances, 1))
    low, high = pair.frechet_interval
    notes = _notes(pair)
    if first <= dim:
        notes.append(
            f"the smallest subset, {first} images, is not above the feature dimension "
            f"{dim}: distances do not follow 1/n there and the extrapolation is not to be trusted"
        )
    return pair.result(
        value,
        (low - distances[-1] + value, high - distances[-1] + value),
        UNSTABLE.format(pair.frechet_resamples, " of the distance at full n, shifted to the extrapolation"),
        notes=notes,
        slope=slope,
        points=[{"n": n, "value": distance} for n, distance in zip(sizes, distances, strict=True)],
        resamples=pair.frechet_resamples,
    )


def _notes(pair: Pair) -> list[str]:
    smaller, dim = min(len(pair.synthetic), len(pair.real)), pair.synthetic.shape[1]
    found = []
    if pair.frechet_resamples < pair.resamples:
        found.append(
            f"interval of {pair.frechet_resamples} resamples instead of {pair.resamples}: each costs a root of "
            "matrices of this size"
        )
    if smaller <= dim:
        found.append(
            f"n = {smaller} is not above the feature dimension {dim}: covariances are singular and the distance is too "
            "high; compare only at equal n, with the floor beside it"
        )
    return found


CURVE = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the images at which a Frechet distance is drawn against n."""


def fid_by_n(pair: Pair) -> dict[str, list[dict[str, Any]]]:
    """Frechet distance of n of the images against n real ones, for growing n: generated, and real against real.

    Both curves fall with n; what is left between them at equal n is the model's.
    """
    curves = {"generated": pair}
    if pair.halves is not None:
        curves["real against real (two halves of the patients)"] = pair.halves
    rng = np.random.default_rng(pair.seed)
    found: dict[str, list[dict[str, Any]]] = {}
    every = {round(share * min(len(pair.synthetic), len(pair.real))) for share in CURVE}
    for name, part in curves.items():
        x, y = part.synthetic, part.real
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
    found = measured(fid, inputs, extractor, bound="floor", falls_with_n=True)
    details = {**found.details, "by_n": fid_by_n(pair_of(inputs, extractor))}
    return found.plus(details=details, reconstructed=reconstructed_fid(inputs, extractor))


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
    return measured(fd_infinity, inputs, extractor, bound="floor", falls_with_n=True)


Labels = Mapping[str, NDArray[np.floating]]


def fid_by_finding(pair: Pair, synthetic: Labels, real: Labels) -> dict[str, Result]:
    """Frechet distance among the images with each finding: generated ones asked for it, real ones that have it.

    Labels (N,) and (M,) are 1, 0 or NaN. A finding with fewer than ``LEAST`` images on a side has the value NaN and a
    note that says so, so that it is seen to be missing.
    """
    found = {}
    for finding in [name for name in synthetic if name in real]:
        made, others = (np.flatnonzero(labels[finding] == 1) for labels in (synthetic, real))
        part = pair.picked(made, others)
        if min(len(made), len(others)) < LEAST:
            few = f"{len(made)} generated and {len(others)} real images; at least {LEAST} of each are needed"
            found[finding] = part.result(math.nan, NOTHING, "none", notes=[few])
        else:
            found[finding] = against_real(fid, part, bound="floor")
    return found


@measure(
    "fid_by_finding", "Fréchet distance by finding, mean", suite="standard", better="lower", each_extractor=True,
    by_finding=ByFinding("Fréchet distance by finding", "Fréchet distance to real images with the finding"),
)  # fmt: skip
def measure_fid_by_finding(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Frechet distance of the images with a finding to the real images with it; the value is the mean."""
    labels = [dict(zip(inputs.real.findings, matrix.T, strict=True)) for matrix in labels_of(inputs)]
    found = fid_by_finding(pair_of(inputs, extractor), *labels)
    known = {name: part for name, part in found.items() if math.isfinite(part.value)}
    if not known:
        raise Unavailable(f"no finding has {LEAST} images on both sides")
    rows = [{"finding": name, **part.entry, "floor": part.floor} for name, part in known.items()]
    few = [name for name in found if name not in known]
    left = f"fewer than {LEAST} images on a side, so without a distance of their own: {', '.join(few)}"
    return Result(
        float(np.mean([part.value for part in known.values()])),
        NOTHING,
        sum(part.n for part in known.values()),
        "none for the mean; by finding: " + next(iter(known.values())).ci_method,
        details={"findings": rows},
    ).plus(notes=[*([left] if few else []), *(note for part in known.values() for note in part.notes), *inputs.notes])
