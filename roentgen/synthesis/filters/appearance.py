"""Does an image look like a chest radiograph at all? Distances from real training images.

- **features**: Mahalanobis distance of the classifier's features under probabilistic PCA (Tipping & Bishop 1999, eq. 7:
  the leading directions have their own variances, what is left of the space shares one).
- **pixels**: the same of standardised 32 x 32 thumbnails: photographs and textures are far outside their subspace.
- **texture**: Mahalanobis distance of log energies at five scales, mean and spread of grey levels: noise, blur and
  wrong exposure, which a thumbnail does not show.
- **together**: root of the summed squares of how far each of the three is above its median on real images, in standard
  deviations of its logarithm: an image that is odd in all of them.

An image is rejected if any of the four is beyond nearly all of real images that were not used for the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.neighbours import standardise, thumbnails

Floats = NDArray[np.float64]

FEATURE_COMPONENTS, PIXEL_COMPONENTS = 64, 48
SCALES = 5
"""Halvings of the image whose detail counts as texture."""
DARK = 1e-6
"""Added to energies of grey levels in [0, 1] before the logarithm: less than rounding to 8 bits makes."""
MEASURES = ("features", "pixels", "texture", "together")


@dataclass(frozen=True)
class Appearance:
    """What real images look like; make one with ``fit_appearance``, or from ``arrays`` of an earlier one.

    ``arrays``: feature_mean (D,), feature_components (K, D) orthonormal, feature_variances (K + 1,) of the components
    and of what is left; the same of pixel_ (1024 wide); texture_mean (T,), texture_inverse (T, T); typical (2, 3),
    median and standard deviation of the logarithms of the first three measures.
    """

    arrays: Mapping[str, Floats]

    def coordinates(self, features: NDArray[np.floating], images: NDArray[np.uint8]) -> Floats:
        """Components (N, K + P) of features and of thumbnails, each of variance 1 on real images."""
        points = {"feature": features, "pixel": standardise(thumbnails(images))}
        parts = []
        for kind, values in points.items():
            centred = np.asarray(values, np.float64) - self.arrays[f"{kind}_mean"]
            spread = np.sqrt(self.arrays[f"{kind}_variances"][:-1])
            parts.append(centred @ self.arrays[f"{kind}_components"].T / spread)
        return np.concatenate(parts, axis=1)

    def measure(self, features: NDArray[np.floating], images: NDArray[np.uint8]) -> dict[str, Floats]:
        """The distances (N,), by ``MEASURES``, of features (N, D) and uint8 images (N, H, W); about 1 each if real."""
        found = self._single(features, images)
        median, spread = self.arrays["typical"]
        logs = np.log(np.maximum(np.stack(list(found.values()), axis=1), 1e-6))
        above = np.maximum((logs - median) / spread, 0)
        return {**found, "together": np.sqrt((above**2).sum(axis=1))}

    def _single(self, features: NDArray[np.floating], images: NDArray[np.uint8]) -> dict[str, Floats]:
        deviation = texture(images) - self.arrays["texture_mean"]
        odd = np.einsum("ni,ij,nj->n", deviation, self.arrays["texture_inverse"], deviation)
        return {
            "features": self._distance("feature", features),
            "pixels": self._distance("pixel", standardise(thumbnails(images))),
            "texture": np.sqrt(odd / deviation.shape[1]),
        }

    def _distance(self, kind: str, points: NDArray[np.floating]) -> Floats:
        centred = np.asarray(points, np.float64) - self.arrays[f"{kind}_mean"]
        variances = self.arrays[f"{kind}_variances"]
        known = centred @ self.arrays[f"{kind}_components"].T
        rest = np.clip((centred**2).sum(axis=1) - (known**2).sum(axis=1), 0, None)
        squared = ((known**2) / variances[:-1]).sum(axis=1) + rest / variances[-1]
        return np.asarray(np.sqrt(squared / centred.shape[1]))


def texture(images: NDArray[np.uint8]) -> Floats:
    """log10 energies at ``SCALES`` scales (Haar 1910: what 2 x 2 blocks hold beside their mean), mean, spread; (N, 7).

    ``images``: uint8 (N, H, W), sides a multiple of 2 ** SCALES.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or any(side % 2**SCALES for side in images.shape[1:]):
        raise ValueError(
            f"expected uint8 (N, H, W), H and W multiples of {2**SCALES}, got {images.dtype} {images.shape}"
        )
    x = images.astype(np.float64) / 255
    columns = [x.mean(axis=(1, 2)), x.std(axis=(1, 2))]
    for _ in range(SCALES):
        n, height, width = x.shape
        parts = x.reshape(n, height // 2, 2, width // 2, 2)
        x = parts.mean(axis=(2, 4))
        detail = parts - x[:, :, None, :, None]
        columns.append(np.log10((detail**2).mean(axis=(1, 2, 3, 4)) + DARK))
    return np.stack(columns, axis=1)


def fit_appearance(features: NDArray[np.floating], images: NDArray[np.uint8]) -> Appearance:
    """From features (N, D) and uint8 images (N, H, W) of real training images, N above all numbers of components.

    Large arrays are rounded as they are stored (float16), so that what is loaded again measures the same.
    """
    components = min(FEATURE_COMPONENTS, len(features) - 2, features.shape[1] - 1)
    mean, axes, variances, rest = _principal(np.asarray(features, np.float64), components)
    points = standardise(thumbnails(images)).astype(np.float64)
    pixel_mean, pixel_axes, pixel_variances, pixel_rest = _principal(points, min(PIXEL_COMPONENTS, len(points) - 2))
    textures = texture(images)
    inverse = np.linalg.inv(np.cov(textures, rowvar=False) + 1e-9 * np.eye(textures.shape[1]))
    arrays = {
        "feature_mean": mean,
        "feature_components": axes.astype(np.float16).astype(np.float64),
        "feature_variances": np.append(variances, rest),
        "pixel_mean": pixel_mean,
        "pixel_components": pixel_axes.astype(np.float16).astype(np.float64),
        "pixel_variances": np.append(pixel_variances, pixel_rest),
        "texture_mean": textures.mean(axis=0),
        "texture_inverse": inverse,
    }
    logs = np.log(np.stack(list(Appearance(arrays)._single(features, images).values()), axis=1))
    return Appearance({**arrays, "typical": np.stack([np.median(logs, axis=0), logs.std(axis=0)])})


def _principal(points: Floats, count: int) -> tuple[Floats, Floats, Floats, float]:
    """Mean (D,), the first ``count`` axes (count, D), their variances, and the mean variance of what is left."""
    mean = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(points - mean, rowvar=False))
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    axes = vectors[:, :count].T
    # The sign of an axis is the solver's whim: the largest part is made positive.
    axes = axes * np.sign(axes[np.arange(count), np.abs(axes).argmax(axis=1)])[:, None]
    rest = float(values[count:].mean()) if count < len(values) else 0.0
    return mean, axes, np.maximum(values[:count], 1e-12), max(rest, 1e-12)
