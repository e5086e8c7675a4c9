"""Autoencoders from folders, their fingerprint, and latents of images."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roentgen.images import to_autoencoder
from roentgen.models.autoencoder.pca import POSTERIOR_STD, BlockPCA, recover

_LINEAR: WeakKeyDictionary[Any, BlockPCA | None] = WeakKeyDictionary()


def linear_encoder(vae: Any) -> BlockPCA | None:
    """``pca.recover`` of ``vae``, looked up once for an object; None where its encoder is not linear."""
    if vae not in _LINEAR:
        _LINEAR[vae] = recover(vae)
    return _LINEAR[vae]


def linear_posterior(vae: Any, linear: BlockPCA, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation (N, C, h, w) float32 of images (N, 1, H, W) in [-1, 1], by the projection
    ``linear`` that the encoder of ``vae`` is: a hundredth of its arithmetic."""
    mean = linear.encode(x)
    std = (0.5 * vae.quant_conv.bias[mean.shape[1] :].to(mean) + math.log(POSTERIOR_STD)).exp()
    return mean, std.view(1, -1, 1, 1).expand_as(mean)


def downsampling(vae: Any) -> int:
    """Pixels of a side of an image for one of its latents."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


@torch.no_grad()
def encode(vae: Any, pixels: NDArray[np.uint8], *, device: torch.device) -> Tensor:
    """Posterior mean and standard deviation of uint8 images (N, H, W), before the scaling factor: float16
    (N, 2, C, h, w) on ``device``, computed under bfloat16 autocast; grey is repeated for an autoencoder of colour.
    An encoder that is a linear projection is applied as one, in float32."""
    x = to_autoencoder(pixels).to(device)
    if (linear := linear_encoder(vae)) is not None:
        mean, std = linear_posterior(vae, linear, x)
        return torch.stack([mean.half(), std.half()], dim=1)
    x = x.repeat(1, vae.config.in_channels, 1, 1)
    with torch.autocast(device.type, torch.bfloat16):
        posterior = vae.to(device).encode(x).latent_dist
    return torch.stack([posterior.mean.half(), posterior.std.half()], dim=1)
