"""Known damage to real images: what a metric must notice if it measures what it says.

Images are grey uint8 (H, W); lengths are in their own pixels. Damage is for measuring only: nothing here belongs in
training, least of all the flip, which turns left into right.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from roentgen.metrics.extractor import Grey, checked

Ints = NDArray[np.int64]

CROPPED, BLURRED, BRIGHTER = 0.9, 2.0, 20.0
"""Doses of planted copies: share of each side kept, sigma in pixels, grey levels."""


def blur(image: Grey, sigma: float) -> Grey:
    """Gaussian blur of standard deviation ``sigma`` >= 0 pixels, in float, edges mirrored."""
    checked(image)
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    if sigma == 0:
        return image.copy()
    from scipy.ndimage import gaussian_filter

    return _uint8(gaussian_filter(image.astype(np.float64), sigma, mode="reflect", radius=math.ceil(4 * sigma)))


def noise(image: Grey, sd: float, *, seed: int) -> Grey:
    """White Gaussian noise of ``sd`` >= 0 grey levels, the same for the same ``seed``; clipped to [0, 255]."""
    checked(image)
    if sd < 0:
        raise ValueError(f"sd must not be negative, got {sd}")
    return _uint8(image + np.random.default_rng(seed).normal(0, sd, image.shape))


def brightness(image: Grey, shift: float) -> Grey:
    """All grey levels moved by ``shift`` and clipped: never wrapped round."""
    checked(image)
    return _uint8(image + float(shift))


def jpeg(image: Grey, quality: int) -> Grey:
    """Written as baseline JPEG of ``quality`` from 1 to 95 and read again."""
    checked(image)
    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be from 1 to 95, got {quality}")
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=int(quality))
    return np.array(Image.open(stream))


def flip(image: Grey) -> Grey:
    """Left and right exchanged: the finding is on the wrong side."""
    checked(image)
    return np.ascontiguousarray(image[:, ::-1])


def crop(image: Grey, keep: float) -> Grey:
    """The central ``keep`` in (0, 1] of each side, brought back to the image's size by bicubic resampling."""
    checked(image)
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    height, width = image.shape
    top, left = height * (1 - keep) / 2, width * (1 - keep) / 2
    box = (left, top, width - left, height - top)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))


PLANTED: dict[str, Callable[[Grey], Grey]] = {
    "exact": lambda image: image.copy(),
    "cropped": lambda image: crop(image, CROPPED),
    "blurred": lambda image: blur(image, BLURRED),
    "brighter": lambda image: brightness(image, BRIGHTER),
}
"""Copies that a search for memorised images should find."""


def plant(images: Sequence[Grey]) -> dict[str, list[Grey]]:
    """Copies of ``images`` of each kind of ``PLANTED``, in order."""
    return {kind: [make(image) for image in images] for kind, make in PLANTED.items()}


def shuffle(n: int, share: float, *, seed: int) -> Ints:
    """Whose label each of ``n`` rows gets when ``share`` of the rows exchange theirs in a circle; the rest keep it.

    A circle leaves no chosen row its own, unless one row alone is chosen.
    """
    rows = _some(n, share, seed)
    labels = np.arange(n)
    labels[rows] = np.roll(rows, 1)
    return labels


def collapse(n: int, kept: int, *, seed: int) -> Ints:
    """Which image each of ``n`` rows shows when only ``kept`` different ones are left, each as often as the others."""
    if not 1 <= kept <= n:
        raise ValueError(f"{kept} of {n} images cannot be kept")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(n, kept, replace=False)
    return np.asarray(rng.permutation(np.resize(chosen, n)), dtype=np.int64)


def replace(n: int, share: float, pool: int, *, seed: int) -> tuple[Ints, Ints]:
    """Which rows of ``n``, ``share`` of them, are replaced by which of ``pool`` others, none of them twice."""
    rows = _some(n, share, seed)
    if len(rows) > pool:
        raise ValueError(f"{len(rows)} rows cannot be replaced by {pool} different ones")
    return rows, np.random.default_rng([seed, 1]).choice(pool, len(rows), replace=False)


def _some(n: int, share: float, seed: int) -> Ints:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    return np.random.default_rng(seed).permutation(n)[: round(share * n)]


def _uint8(values: NDArray[np.floating]) -> Grey:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
