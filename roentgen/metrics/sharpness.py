"""Sharpness: does an image hold as much fine detail as real ones, and is that detail anatomy or grain?

Three views of it, none of which needs a network:

- **Power by band.** The share of an image's power (without its mean) at spatial frequencies of 16 to 32, 32 to 48, ...
  cycles an image, counted by distance from 0 in every direction. Blur empties the high bands, grain fills them.
- **Coherence** of what lies at 32 to 64 cycles: the structure tensor J of that band, smoothed by a Gaussian of 4 px at
  256 px, gives sum sqrt((Jxx - Jyy)^2 + 4 Jxy^2) / sum (Jxx + Jyy) (Bigun & Granlund 1987). 1 is lines that all run one
  way in each place, 0 no direction at all. Ribs, vessels and the edges of the heart have a direction and grain has none
  beyond the luck of the few grains below the window: real X-rays reach about 0.4, white noise about 0.21. So detail
  that is only grain raises the power and lowers the coherence.
- **Contrast** (standard deviation of grey levels) and the shares of pixels that are nearly white or nearly black.

Spectra are of the image less its mean under a Hann window, in double precision. Only images that were stored at the
size at which they are measured, or larger, say anything about high bands: enlarging adds none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet, look
from roentgen.metrics.measure import EvaluationInputs, Result, Unavailable, bound, measure
from roentgen.metrics.noticed import BLUR, NOISE, Noticed
from roentgen.metrics.reading import PIXELS, pixels
from roentgen.metrics.reconstruction import rows_of_originals
from roentgen.metrics.statistics import Floats, estimate, known_mean

STEP = 16
"""Width of a band, in cycles an image."""
DETAIL = (32, 64)
"""Band of the coherence and of the leading figure: rib edges, vessels, lines; in cycles an image."""
SMOOTHED = 4 / 256
"""Standard deviation of the structure tensor's smoothing, in shares of the side."""
WHITE, BLACK = 240, 15
"""Grey levels above and below which a pixel counts as clipped."""
MIN_SIDE = 2 * DETAIL[1]
AT_ONCE = 16
DETAIL_SHARE, COHERENCE = f"power at {DETAIL[0]}-{DETAIL[1]} cycles", f"coherence at {DETAIL[0]}-{DETAIL[1]} cycles"
CONTRAST, CLIPPED_WHITE, CLIPPED_BLACK = "contrast", f"pixels above {WHITE}", f"pixels below {BLACK}"


def bands_of(size: int) -> list[tuple[int, int]]:
    """Bands (low, high) in cycles an image that an image of ``size`` pixels holds whole, from 0 on."""
    return [(low, low + STEP) for low in range(0, size // 2 - STEP + 1, STEP)]


def band_name(low: int, high: int) -> str:
    return f"power at {low}-{high} cycles"


def sharpness_of(images: NDArray[np.uint8]) -> dict[str, float]:
    """Means over ``images`` uint8 (N, H, W) of every figure of ``each_sharpness``, with ``n`` and ``constant``.

    Images that are not square are cropped to their centre; nothing is resized, so give images of one size. Constant
    images have no power: they are counted in ``constant`` and left out of power and coherence (NaN if all are).
    """
    found = each_sharpness(images)
    flat = ~np.isfinite(found[DETAIL_SHARE])
    return {
        "n": len(images),
        "constant": int(flat.sum()),
        **{name: float(known_mean(values)) for name, values in found.items()},
    }


def each_sharpness(images: NDArray[np.uint8]) -> dict[str, Floats]:
    """Figures of each image, name -> (N,), for ``images`` uint8 (N, H, W) with a shorter side of at least 128 pixels.

    Shares of power by band and at 32-64 cycles, coherence, contrast in grey levels, shares of clipped pixels. Power and
    coherence of a constant image are NaN.

    Raises:
        ValueError: another type or shape, or images that are too small for the band of detail.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 (N, H, W) with N of at least 1, got {images.dtype} {images.shape}")
    size = min(images.shape[1:])
    if size < MIN_SIDE:
        raise ValueError(f"sharpness needs images of at least {MIN_SIDE} pixels, got {images.shape[1:]}")
    top, left = ((side - size) // 2 for side in images.shape[1:])
    square = images[:, top : top + size, left : left + size]
    parts = [_block(square[start : start + AT_ONCE]) for start in range(0, len(square), AT_ONCE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _block(images: NDArray[np.uint8]) -> dict[str, Floats]:
    """``each_sharpness`` of square images (N, S, S)."""
    size = images.shape[1]
    grey = images.astype(np.float64)
    hann = np.hanning(size + 1)[:size]  # periodic, so that its own spectrum is three lines
    window = hann[:, None] * hann[None, :]
    # The weighted mean: what is left has no power at frequency 0, whatever the window.
    centred = grey - ((grey * window).sum((1, 2)) / window.sum())[:, None, None]
    spectrum = np.fft.fft2(centred * window)
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    power = np.abs(spectrum) ** 2
    total = power.sum((1, 2))
    some = np.ptp(images, axis=(1, 2)) > 0

    def share(low: int, high: int) -> Floats:
        inside = power[:, (radius >= low) & (radius < high)].sum(1)
        return np.divide(inside, total, out=np.full(len(images), np.nan), where=some)

    found = {band_name(low, high): share(low, high) for low, high in bands_of(size)}
    return found | {
        DETAIL_SHARE: share(*DETAIL),
        COHERENCE: np.where(some, _coherence(spectrum, frequency, radius), np.nan),
        CONTRAST: grey.std((1, 2)),
        CLIPPED_WHITE: (images > WHITE).mean((1, 2)),
        CLIPPED_BLACK: (images < BLACK).mean((1, 2)),
    }


def _coherence(spectrum: NDArray[np.complex128], frequency: Floats, radius: Floats) -> Floats:
    """Coherence (N,) of the band of detail, from spectra (N, S, S); derivatives and smoothing in frequency too."""
    size = len(frequency)
    band = spectrum * ((radius >= DETAIL[0]) & (radius < DETAIL[1]))
    dy = np.fft.ifft2(1j * frequency[:, None] * band).real
    dx = np.fft.ifft2(1j * frequency[None, :] * band).real
    # The transform of a Gaussian of SMOOTHED * size pixels; a window that is 0 at the edges makes wrapping harmless.
    smooth = np.exp(-0.5 * (2 * np.pi * SMOOTHED * radius) ** 2)

    def smoothed(values: Floats) -> Floats:
        return np.asarray(np.fft.ifft2(np.fft.fft2(values) * smooth).real)

    trace = dx * dx + dy * dy
    difference, cross = smoothed(dx * dx - dy * dy), smoothed(dx * dy)
    along = np.sqrt(difference**2 + 4 * cross**2).sum((1, 2))
    whole = trace.sum((1, 2))  # smoothing keeps the sum
    found: Floats = np.divide(along, whole, out=np.full(len(whole), np.nan), where=whole > 1e-12 * size)
    return found


def white_noise(count: int, size: int, *, seed: int) -> NDArray[Any]:
    """Grain without anatomy, uint8 (count, size, size): what the coherence is of detail that has no direction."""
    noise = np.random.default_rng(seed).normal(128, 30, (count, size, size))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


MOST = 2000
"""Images of each set, at most."""
FEW = 20
BLOCK = 64
GRAIN = 8  # images of white noise, of which one is enough to two digits


BY_SPECTRUM = (
    "pixels",
    (
        f"grey uint8; shorter side to at most {PIXELS} px (that of the generated images where it is smaller) by "
        "antialiased bicubic, centre crop; real images with a smaller shorter side left out; float64, Hann window"
    ),
)


@measure(
    "sharpness", "Sharpness,", suite="quick", better="as real", unit="share", output="", judge=BY_SPECTRUM,
    reads=("reconstructed",),
    tested={DETAIL_SHARE: "Power at 32-64 cycles", COHERENCE: "Coherence at 32-64 cycles"},
    noticed={"detail": Noticed("detail", 4, -1, (BLUR,)), "coherence": Noticed("coherence", 3, -1, (NOISE,))},
)  # fmt: skip
def measure_sharpness(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Share of power at 32 to 64 cycles an image; in the rows the other bands, coherence, contrast and clipping."""
    mine = _some(np.arange(len(inputs.synthetic)), inputs.seed)
    size = min(PIXELS, int(_sides(inputs.synthetic, mine).min()))
    if size < MIN_SIDE:
        raise Unavailable(f"sharpness needs images of at least {MIN_SIDE} pixels, these have {size}")
    large = np.flatnonzero(_sides(inputs.real, range(len(inputs.real))) >= size)
    theirs, rebuilt = _some(large, inputs.seed), _rebuilt(inputs, large)
    each = _each(inputs.synthetic, mine, size)
    entries = {"generated": _summary(each, mine, inputs.bootstrap_groups, inputs)}
    for name, images, chosen in (("real", inputs.real, theirs), ("reconstructed", inputs.reconstructed, rebuilt)):
        if images is not None and len(chosen):
            entries[name] = _summary(_each(images, chosen, size), chosen, images.patients, inputs)
    flat = len(mine) - entries["generated"][DETAIL_SHARE]["n"]
    warnings = [f"{flat} generated image(s) are constant and have no power"] if flat else []
    if len(theirs) < FEW:
        warnings.append(
            f"{len(theirs)} of {len(inputs.real)} real images are stored at {size} px or more: too few to compare with"
        )
    grain = sharpness_of(white_noise(GRAIN, size, seed=inputs.seed))[COHERENCE]
    rows = [_row(name, entries, grain) for name in dict.fromkeys((DETAIL_SHARE, *each))]
    sources = inputs.real.table.get("source")
    per_image = {name: np.full(len(inputs.synthetic), np.nan) for name in (DETAIL_SHARE, COHERENCE)}
    for name, values in per_image.items():
        values[mine] = each[name]
    return Result.of_rows(
        rows,
        inputs.bootstrap.said(),
        notes=warnings,
        per_image=per_image,
        details={
            "size": size,
            "real_images": {
                "used": len(theirs),
                "large_enough": len(large),
                "all": len(inputs.real),
                "rule": f"stored with a shorter side of at least {size} px; smaller ones say nothing of high bands",
                "sources": {} if sources is None else dict(Counter(str(sources.iloc[row]) or "–" for row in theirs)),
            },
            "reconstructions": "as many as n says" if "reconstructed" in entries else NOT_REBUILT,
        },
    )


NOT_REBUILT = (
    "left out: no model's autoencoder is known, or no real image is large enough (--autoencoder, --reconstructions)"
)


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
    parts = [each_sharpness(pixels(images, block, size)) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _summary(
    each: dict[str, Floats], rows: NDArray[np.integer], groups: Sequence[object], inputs: EvaluationInputs
) -> dict[str, Any]:
    """Mean, interval and n of every figure of the images ``rows``, whose clusters ``groups`` names."""
    weights = inputs.bootstrap.weights([groups[row] for row in rows])
    return {name: estimate(values, weights) for name, values in each.items()}


def _row(name: str, entries: dict[str, dict[str, Any]], grain: float) -> dict[str, Any]:
    found = {who: figures[name] for who, figures in entries.items()}
    row = {"name": name, "group": "pixels", **found["generated"]}
    if name == COHERENCE:
        row["floor"] = {"value": grain, "what": "white grain"}
    if real := found.get("real"):
        row["ceiling"] = bound(real, f"real images, n = {real['n']:,}")
    return row | {key: found[key] for key in ("reconstructed",) if key in found}


def _rebuilt(inputs: EvaluationInputs, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the reconstructions whose original is among the real images ``rows``."""
    if inputs.reconstructed is None:
        return np.empty(0, dtype=np.int64)
    mine, originals = rows_of_originals(inputs.reconstructed, inputs.real)
    return mine[np.isin(originals, rows)]
