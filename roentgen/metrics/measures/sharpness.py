"""Fine detail: power by band, coherence, contrast and clipping, beside real images and reconstructions of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics import sharpness
from roentgen.metrics.bootstrap import cluster_weights, percentile_interval
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet, look
from roentgen.metrics.measure import PIXELS, Case, Floats, Found, Unavailable, pixels
from roentgen.provenance import portable

MOST = 2000
"""Images of each set, at most."""
REBUILT = 200
"""Real images that go through the autoencoder, at most."""
FEW = 20
BLOCK = 64
GRAIN = 8  # images of white noise, of which one is enough to two digits


def by_spectrum(case: Case) -> tuple[str, str]:
    return "pixels" + ("" if case.autoencoder is None else f"; autoencoder of {portable(case.autoencoder)}"), (
        f"grey uint8; shorter side to at most {PIXELS} px (that of the generated images where it is smaller) by "
        "antialiased bicubic, centre crop; real images with a smaller shorter side left out; float64, Hann window"
    )


def measure_sharpness(case: Case, extractor: Extractor) -> Found:
    """Share of power at 32 to 64 cycles an image; in the rows the other bands, coherence, contrast and clipping."""
    mine = _some(np.arange(len(case.synthetic)), case.seed)
    sides = _sides(case.synthetic, mine)
    size = min(PIXELS, int(sides.min()))
    if size < sharpness.MIN_SIDE:
        raise Unavailable(f"sharpness needs images of at least {sharpness.MIN_SIDE} pixels, these have {size}")
    everything = np.arange(len(case.real))
    large = everything[_sides(case.real, everything) >= size]
    theirs = _some(large, case.seed)
    groups = case.bootstrap_groups
    summaries = {"generated": _summary(_each(case.synthetic, mine, size), [groups[row] for row in mine], case)}
    flat = _flat(summaries["generated"])
    warnings = [f"{flat} generated image(s) are constant and have no power"] if flat else []
    if len(theirs):
        patients = case.real.patients
        summaries["real"] = _summary(_each(case.real, theirs, size), [patients[row] for row in theirs], case)
    if len(theirs) < FEW:
        warnings.append(
            f"{len(theirs)} of {len(case.real)} real images are stored at {size} px or more: too few to compare with"
        )
    rebuilt, why = _reconstructions(case, theirs, size) if len(theirs) else ({}, "no real image is large enough")
    if rebuilt:
        summaries["reconstructed"] = rebuilt
    grain = sharpness.sharpness_of(sharpness.white_noise(GRAIN, size, seed=case.seed))
    rows = [
        _row(name, summaries, {sharpness.COHERENCE: grain[sharpness.COHERENCE]})
        for name in (sharpness.DETAIL_SHARE, *(n for n in sharpness.names_of(size) if n != sharpness.DETAIL_SHARE))
    ]
    sources = case.real.table.get("source")
    each = summaries["generated"]["each"]
    whole = np.full((2, len(case.synthetic)), np.nan)
    whole[:, mine] = each[sharpness.DETAIL_SHARE], each[sharpness.COHERENCE]
    return {
        **{key: rows[0][key] for key in ("value", "ci", "n")},
        "ci_method": f"95 % percentile, bootstrap by patient or prompt, {case.resamples} resamples",
        "warnings": warnings,
        "per_image": {sharpness.DETAIL_SHARE: whole[0], sharpness.COHERENCE: whole[1]},
        "details": {
            "rows": rows,
            **{key: rows[0][key] for key in ("floor", "ceiling", "reconstructed") if key in rows[0]},
            "size": size,
            "real_images": {
                "used": len(theirs),
                "large_enough": len(large),
                "all": len(case.real),
                "rule": f"stored with a shorter side of at least {size} px; smaller ones say nothing of high bands",
                "sources": {} if sources is None else dict(Counter(str(sources.iloc[row]) or "–" for row in theirs)),
            },
            "reconstructions": why,
        },
    }


def _some(rows: NDArray[np.integer], seed: int, most: int = MOST) -> NDArray[np.int64]:
    """At most ``most`` of ``rows``, drawn by ``seed``, in their order."""
    drawn = np.random.default_rng([seed, 3]).permutation(len(rows))[:most]
    return np.asarray(rows[np.sort(drawn)], dtype=np.int64)


def _sides(images: ImageSet, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Shorter side (n,) as stored, from the headers."""
    paths = images.paths
    with ThreadPoolExecutor(4) as pool:
        return np.array([min(size) for size, _ in pool.map(look, [paths[row] for row in rows])], dtype=np.int64)


def _each(images: ImageSet, rows: NDArray[np.integer], size: int) -> dict[str, Floats]:
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    parts = [sharpness.each_sharpness(pixels(images, block, size)) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _summary(each: dict[str, Floats], groups: Sequence[object], case: Case) -> dict[str, Any]:
    """Mean, interval and n of every figure; ``each`` as it was."""
    weights = cluster_weights(groups, case.resamples, case.seed)
    found: dict[str, Any] = {"each": each}
    for name, values in each.items():
        known = np.isfinite(values)
        if known.any():
            total = weights[:, known].sum(axis=1)
            draws = np.divide(
                weights[:, known] @ values[known], total, out=np.full(len(total), np.nan), where=total > 0
            )
            mean = float(values[known].mean())
            found[name] = {"value": mean, "ci": percentile_interval(draws), "n": int(known.sum())}
        else:
            found[name] = {"value": float("nan"), "ci": (float("nan"), float("nan")), "n": 0}
    return found


def _flat(summary: dict[str, Any]) -> int:
    return int((~np.isfinite(summary["each"][sharpness.DETAIL_SHARE])).sum())


def _row(name: str, summaries: dict[str, dict[str, Any]], floors: dict[str, float]) -> dict[str, Any]:
    row = {"name": name, "group": "pixels", **summaries["generated"][name]}
    if name in floors:
        row["floor"] = {"value": floors[name], "what": "white grain"}
    if "real" in summaries:
        row["ceiling"] = {**summaries["real"][name], "what": f"real images, n = {summaries['real'][name]['n']:,}"}
    if "reconstructed" in summaries:
        row["reconstructed"] = summaries["reconstructed"][name]
    return row


def _reconstructions(case: Case, rows: NDArray[np.int64], size: int) -> tuple[dict[str, Any], str]:
    """The figures of real images after the model's autoencoder, and what was done; none where there is no model."""
    if case.autoencoder is None:
        return {}, "left out: no model with an autoencoder is known (--autoencoder)"
    model = autoencoder(case.autoencoder, case.device)
    chosen = _some(rows, case.seed, REBUILT)
    paths = case.real.paths
    own = model.pixels
    parts = []
    for start in range(0, len(chosen), 8):
        batch = np.stack([resize_center_crop(read_image(paths[row]), own) for row in chosen[start : start + 8]])
        again = [resize_center_crop(image, size) for image in model.reconstruct(batch)]
        parts.append(sharpness.each_sharpness(np.stack(again)))
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    summary = _summary(each, [case.real.patients[row] for row in chosen], case)
    return summary, f"{len(chosen)} real images at {own} px through the autoencoder of {model.info.name} and back"


@lru_cache(maxsize=1)
def autoencoder(name: str, device: str) -> Any:
    """The model ``name``, for its autoencoder; Unavailable where it cannot be loaded."""
    from roentgen.generators.generate import load_model

    try:
        return load_model(name, device=device)
    except UserError as error:
        raise Unavailable(f"--autoencoder: {error}", bad_input=True) from None
