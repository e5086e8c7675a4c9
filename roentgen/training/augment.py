"""Augmentation of chest X-rays: small changes that another exposure would make; never a flip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def jittered(x: Tensor, generator: torch.Generator, *, contrast: tuple[float, float]) -> Tensor:
    """Each of (N, 1, H, W) in [-1, 1] turned, shifted, zoomed, with other contrast (from, to) and brightness.

    Up to 7 degrees, 8 % of half the side, 0.88 to 1.08 times, brightness 0.2.
    """
    n = x.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(n, generator=generator) * (high - low) + low).to(x.device)

    angle, zoom = uniform(-0.12, 0.12), uniform(0.88, 1.08)
    rows = [
        torch.stack([zoom * angle.cos(), -zoom * angle.sin(), uniform(-0.08, 0.08)], 1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), uniform(-0.08, 0.08)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    factor, brightness = uniform(*contrast).view(-1, 1, 1, 1), uniform(-0.2, 0.2).view(-1, 1, 1, 1)
    return (x * factor + brightness).clamp(-1, 1)
