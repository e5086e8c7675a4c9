"""Multi-scale structural similarity among images of one prompt: high means that they are all alike.

Wang, Simoncelli & Bovik 2003 with the usual constants: an 11 x 11 Gaussian window of standard deviation 1.5, K1 = 0.01,
K2 = 0.03, five scales that each halve the size by the mean of 2 x 2 pixels, an odd last row or column left out, and
negative factors cut to 0. What depends on one image alone is computed once an image, not once a pair.

The usual libraries do not agree with each other. pytorch-msssim takes the window inside the image only, as the paper
does (``edges="valid"``, the default here), and pads odd sizes with zeros. torchmetrics mirrors the image at its edges
in the coarsest scale alone (``edges="mirror"``), which changes the mean over real chest X-rays in its second decimal
place, and that of single groups more. So figures of the two are not comparable.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 176
"""An 11 x 11 window at the fifth scale, a sixteenth of the size (Wang, Simoncelli & Bovik 2003)."""
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
EDGES = ("valid", "mirror")


def within_group_ms_ssim(
    groups: NDArray[np.uint8], *, batch_size: int = 32, edges: str = "valid"
) -> NDArray[np.float64]:
    """Mean MS-SSIM over all pairs of each group, (G,), for ``groups`` uint8 (G, K, H, W), K at least 2.

    Grey values are taken to [0, 1]. Needs H and W of at least ``MIN_SIDE``. ``edges``: see the module's text.
    """
    if groups.dtype != np.uint8 or groups.ndim != 4 or groups.shape[1] < 2:
        raise ValueError(f"expected uint8 (G, K >= 2, H, W), got {groups.dtype} {groups.shape}")
    count, size = groups.shape[:2]
    inside = np.array(list(combinations(range(size), 2)))
    step = max(1, batch_size // len(inside))  # groups at a time
    values = []
    for start in range(0, count, step):
        part = groups[start : start + step]
        shifts = size * np.arange(len(part)).repeat(len(inside))
        pairs = np.tile(inside, (len(part), 1)) + shifts[:, None]
        images, most = part.reshape(-1, *part.shape[2:]), max(batch_size, len(pairs))
        values.append(pair_ms_ssim(images, pairs, batch_size=most, edges=edges))
    return np.concatenate(values).reshape(count, -1).mean(axis=1)


def pair_ms_ssim(
    images: NDArray[np.uint8], pairs: NDArray[np.integer], *, batch_size: int = 32, edges: str = "valid"
) -> NDArray[np.float64]:
    """MS-SSIM (P,) of ``pairs`` (P, 2), numbers of images in ``images`` uint8 (N, H, W), on grey in [0, 1].

    ``edges``: see the module's text.

    Raises:
        ValueError: other types or shapes, or images smaller than ``MIN_SIDE``.
    """
    import torch

    if images.dtype != np.uint8 or images.ndim != 3 or np.ndim(pairs) != 2 or np.shape(pairs)[1] != 2:
        raise ValueError(f"expected uint8 (N, H, W) and pairs (P, 2), got {images.dtype} {images.shape}")
    if min(images.shape[1:]) < MIN_SIDE:
        raise ValueError(f"MS-SSIM needs images of at least {MIN_SIDE} pixels, got {images.shape[1:]}")
    if edges not in EDGES:
        raise ValueError(f"edges {edges!r}: choose one of {', '.join(EDGES)}")
    values = [np.empty(0)]
    with torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            used, numbers = np.unique(pairs[start : start + batch_size], return_inverse=True)
            first, second = torch.from_numpy(numbers.reshape(-1, 2)).T
            x = torch.from_numpy(images[used]).unsqueeze(1).float() / 255
            values.append(_pairs(x, first, second, mirror=edges == "mirror").double().numpy())
    return np.concatenate(values)


def _pairs(x: Tensor, first: Tensor, second: Tensor, *, mirror: bool) -> Tensor:
    """MS-SSIM (P,) of the pairs ``first`` and ``second`` (P,) of images ``x`` float32 (N, 1, H, W) in [0, 1]."""
    import torch
    import torch.nn.functional as F

    result = torch.ones(len(first), dtype=x.dtype)
    for scale, weight in enumerate(WEIGHTS):
        last = scale + 1 == len(WEIGHTS)
        if last and mirror:
            x = F.pad(x, (WINDOW // 2,) * 4, mode="reflect")
        mean = _blur(x)
        square = _blur(x * x)
        variance = square - mean * mean
        mean_a, mean_b = mean[first], mean[second]
        covariance = _blur(x[first] * x[second]) - mean_a * mean_b
        contrast = (2 * covariance + C2) / (variance[first] + variance[second] + C2)
        if last:
            contrast = contrast * (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
        result = result * contrast.mean((1, 2, 3)).clamp(min=0) ** weight
        x = F.avg_pool2d(x, 2)
    return result


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over (N, 1, H, W) without padding: down the columns, then along the rows."""
    import torch
    import torch.nn.functional as F

    place = torch.arange(WINDOW, dtype=x.dtype) - (WINDOW - 1) / 2
    window = torch.exp(-(place**2) / (2 * SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
