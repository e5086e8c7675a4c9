"""Sharpness: does an image hold as much fine detail as real ones, and is that detail anatomy or grain?

Three views of it, none of which needs a network:

- **Power by band.** The share of an image's power (without its mean) at spatial frequencies of 16 to 32, 32 to 48, ...
  cycles an image, counted by distance from 0 in every direction. Blur empties the high bands, grain fills them.
- **Coherence** of what lies at 32 to 64 cycles: the structure tensor J of that band, smoothed by a Gaussian of 4 px at
  256 px, gives sum sqrt((Jxx - Jyy)^2 + 4 Jxy^2) / sum (Jxx + Jyy) (Bigun & Granlund 1987). 1 is lines that all run one
  way in each place, 0 no direction at all. Ribs, vessels and the edges of the heart have a direction and grain has none
  beyond the luck of the few grains below the window: real X-rays reach about 0.4, white noise about 0.25. So detail
  that is only grain raises the power and lowers the coherence.
- **Contrast** (standard deviation of grey levels) and the shares of pixels that are nearly white or nearly black.

Spectra are of the image less its mean under a Hann window, in double precision. Only images that were stored at the
size at which they are measured, or larger, say anything about high bands: enlarging adds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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
        **{name: mean_of_known(values) for name, values in found.items()},
    }


def mean_of_known(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


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


def names_of(size: int) -> Sequence[str]:
    """Names of the figures in their order, for images of ``size`` pixels."""
    bands = [band_name(low, high) for low, high in bands_of(size)]
    return [*bands, DETAIL_SHARE, COHERENCE, CONTRAST, CLIPPED_WHITE, CLIPPED_BLACK]


def white_noise(count: int, size: int, *, seed: int) -> NDArray[Any]:
    """Grain without anatomy, uint8 (count, size, size): what the coherence is of detail that has no direction."""
    noise = np.random.default_rng(seed).normal(128, 30, (count, size, size))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)
