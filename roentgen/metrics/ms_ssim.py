"""Multi-scale structural similarity among images of one prompt: high means that they are all alike."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 176
"""An 11 x 11 window at the fifth scale, a sixteenth of the size (Wang, Simoncelli & Bovik 2003)."""


def within_group_ms_ssim(groups: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float64]:
    """Mean MS-SSIM over all pairs of each group, (G,), for ``groups`` uint8 (G, K, H, W), K at least 2.

    Grey values are taken to [0, 1]. Needs H and W of at least ``MIN_SIDE``.
    """
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    if groups.dtype != np.uint8 or groups.ndim != 4 or groups.shape[1] < 2:
        raise ValueError(f"expected uint8 (G, K >= 2, H, W), got {groups.dtype} {groups.shape}")
    if min(groups.shape[2:]) < MIN_SIDE:
        raise ValueError(f"MS-SSIM needs images of at least {MIN_SIDE} pixels, got {groups.shape[2:]}")
    count, size = groups.shape[:2]
    pairs = [(g, i, j) for g in range(count) for i, j in combinations(range(size), 2)]
    values: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), batch_size):
            g, i, j = np.array(pairs[start : start + batch_size]).T
            first, second = (torch.from_numpy(groups[g, k]).float().div(255).unsqueeze(1) for k in (i, j))
            batch = ms_ssim(first, second, reduction="none", data_range=1.0)
            values += batch.double().reshape(-1).tolist()
    return np.array(values).reshape(count, -1).mean(axis=1)
