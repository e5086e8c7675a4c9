"""An encoder that needs no training: blockwise principal components, written into an ``AutoencoderKL``'s weights.

Chest X-rays are smooth: 16 principal components of their 16 x 16 pixel blocks hold all but a few grey levels of them.
Such a projection is known in seconds, where a convolutional encoder takes hours of CPU time to reach it, and the
decoder then learns against a target that does not move. ``install`` sets an ordinary diffusers encoder so that it
computes exactly this projection: a 2 x 2 block at a time on the way down (the downsampling convolutions), nothing in
the residual branches (their last convolution is zero), and a linear readout through GroupNorm and SiLU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from roentgen.images import to_autoencoder

# Constants written beside each code before the GroupNorm, in units of the code's sd: large enough that the norm's scale
# hardly depends on the image (relative error sd^2 / (2 K^2)), small enough for bf16 to keep the code.
ANCHOR = 30.0
# Posterior sd of the latents, in units of their sd: a KL autoencoder's posterior is narrow, ours is narrow and fixed.
POSTERIOR_STD = 0.02


@dataclass(frozen=True)
class BlockPCA:
    """latents = ((block - mean) @ components) * scale for each block of block x block pixels in [-1, 1].

    ``mean`` (block^2,), ``components`` (block^2, C), ``scale`` (C,); ``std`` (C,) is the codes' sd before scaling.
    ``shift`` (C,) is added to the latents.
    """

    block: int
    mean: Tensor
    components: Tensor
    scale: Tensor
    std: Tensor
    shift: Tensor | float = 0.0

    def encode(self, x: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [-1, 1] -> latents (N, C, H / block, W / block)."""
        weight = (self.components * self.scale).T.reshape(-1, 1, self.block, self.block).to(x)
        bias = (self.shift - self.mean @ (self.components * self.scale)).to(x)
        return nn.functional.conv2d(x, weight, bias, stride=self.block)

    def latent_std(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Standard deviation (C,) float32 of the latents of uint8 images (N, H, W), moments in float64."""
        return latent_moments(self.encode, pixels, batch_size=64)[1]


@torch.no_grad()
def latent_moments(
    encode: Callable[[Tensor], Tensor], pixels: NDArray[np.uint8], *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Mean and sd (C,) float32 of the latents (n, C, h, w) of uint8 images (N, H, W), accumulated in float64.

    ``encode`` takes (n, 1, H, W) in [-1, 1].
    """
    total, square, count = torch.zeros(1).double(), torch.zeros(1).double(), 0
    for start in range(0, len(pixels), batch_size):
        z = encode(to_autoencoder(np.asarray(pixels[start : start + batch_size]))).double().cpu()
        total, square = total + z.sum((0, 2, 3)), square + z.square().sum((0, 2, 3))
        count += z.numel() // z.shape[1]
    mean = total / count
    return mean.float(), (square / count - mean.square()).sqrt().float()


def fit(pixels: NDArray[np.uint8], *, block: int, channels: int, whitening: float) -> BlockPCA:
    """Principal components of the blocks of uint8 images (N, H, W), moments in float64.

    Latent channel k gets sd proportional to sd_k ** (1 - ``whitening``), and all channels together unit variance:
    1 makes every channel equal, 0 leaves the pixels' own spectrum, where coarse structure outweighs detail.
    """
    total, moment, count = np.zeros(block**2), np.zeros((block**2, block**2)), 0
    for start in range(0, len(pixels), 64):
        part = np.asarray(pixels[start : start + 64], dtype=np.float64) / 127.5 - 1
        n, h, w = part.shape
        blocks = part.reshape(n, h // block, block, w // block, block).transpose(0, 1, 3, 2, 4).reshape(-1, block**2)
        total += blocks.sum(0)
        moment += blocks.T @ blocks
        count += len(blocks)
    mean = total / count
    values, vectors = np.linalg.eigh(moment / count - np.outer(mean, mean))
    components = vectors[:, ::-1][:, :channels]
    components = components * np.where(components.sum(0) < 0, -1, 1)  # eigh leaves the sign open
    std = np.sqrt(np.maximum(values[::-1][:channels], 1e-12))
    latent_std = std ** (1 - whitening)
    latent_std = latent_std / np.sqrt(np.mean(latent_std**2))
    as_tensor = [torch.from_numpy(np.ascontiguousarray(a)).float() for a in (mean, components, latent_std / std, std)]
    return BlockPCA(block, *as_tensor)


@torch.no_grad()
def install(pca: BlockPCA, vae: Any) -> None:
    """Set the encoder of ``vae`` so that its posterior mean is ``pca.encode`` (to bf16 precision), and freeze it.

    ``vae`` must have 2 ** (levels - 1) == pca.block, four channels a pixel of the block on the way down, and
    16 * latent channels at the last level with as many groups as latent channels.
    """
    encoder, codes = vae.encoder, pca.components.shape[1]
    levels = len(encoder.down_blocks)
    for parameter in encoder.parameters():
        parameter.zero_()
    # Pixel in channel 0; every downsampling moves its 2 x 2 block into channels (order: row, column, then old channel).
    encoder.conv_in.weight[0, 0, 1, 1] = 1
    held, side = 1, 1
    order = torch.zeros(1, 2, dtype=torch.long)  # channel -> (row, column) inside the block so far
    for level, block in enumerate(encoder.down_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                for k in range(held):
                    resnet.conv_shortcut.weight[k, k, 0, 0] = 1
        if block.downsamplers is None:
            continue
        conv = block.downsamplers[0].conv  # 3 x 3, stride 2, padded below and right: taps 0 and 1 are the block
        corners = [(r, c) for r in (0, 1) for c in (0, 1)]
        new_order = torch.cat([order + torch.tensor([r * side, c * side]) for r, c in corners])
        if level == levels - 2:
            # The last one projects on the components at once.
            basis = (pca.components * pca.scale).view(pca.block, pca.block, codes)
            for q, (r, c) in enumerate(corners):
                for k in range(held):
                    row, column = new_order[q * held + k].tolist()
                    conv.weight[:codes, k, r, c] = basis[row, column]
            conv.bias[:codes] = -(pca.mean @ (pca.components * pca.scale))
            held = codes
        else:
            for q, (r, c) in enumerate(corners):
                for k in range(held):
                    conv.weight[q * held + k, k, r, c] = 1
            held, side, order = 4 * held, 2 * side, new_order
    # Readout: in each group of the last norm +z, -z, +K, -K, so that the norm divides by a constant, and
    # silu(a) - silu(-a) = a. The codes reach the groups through the last level's shortcut.
    width = encoder.conv_norm_out.num_channels
    group = width // encoder.conv_norm_out.num_groups
    latent_std = pca.std * pca.scale
    shortcut = encoder.down_blocks[-1].resnets[0].conv_shortcut
    shortcut.weight.zero_()
    encoder.conv_norm_out.weight.fill_(1)
    for k in range(codes):
        first = k * group
        shortcut.weight[first, k, 0, 0] = 1
        shortcut.weight[first + 1, k, 0, 0] = -1
        anchor = ANCHOR * float(latent_std[k])
        shortcut.bias[first + 2], shortcut.bias[first + 3] = anchor, -anchor
        norm = float(((2 * latent_std[k] ** 2 + 2 * anchor**2) / group) ** 0.5)
        encoder.conv_out.weight[k, first, 1, 1] = norm
        encoder.conv_out.weight[k, first + 1, 1, 1] = -norm
    encoder.conv_out.bias[codes:] = 2 * np.log(POSTERIOR_STD)
    for conv, size in ((vae.quant_conv, 2 * codes), (vae.post_quant_conv, codes)):
        if conv is not None:
            conv.weight.copy_(torch.eye(size).view(size, size, 1, 1))
            conv.bias.zero_()
    encoder.requires_grad_(False)
    if vae.quant_conv is not None:
        vae.quant_conv.requires_grad_(False)


@torch.no_grad()
def recover(vae: Any) -> BlockPCA | None:
    """The projection that ``install`` wrote into ``vae``, read off by unit blocks; None for any other autoencoder.

    ``components`` are then the rows of the linear map as they are, ``scale`` and ``std`` 1: only ``encode`` and
    ``block`` mean what they say. It takes the latents of ten thousand images in seconds, where the encoder takes an
    hour of CPU time. Latents of an encoder that is not linear to bf16 precision give None.
    """
    if type(vae).__name__ != "AutoencoderKL" or vae.quant_conv is None:
        return None
    block, channels = 2 ** (len(vae.config.block_out_channels) - 1), vae.config.in_channels
    weight, dtype = vae.encoder.conv_in.weight, vae.encoder.conv_in.weight.dtype
    if bool(weight.flatten(2)[..., [0, 1, 2, 3, 5, 6, 7, 8]].any()) or vae.config.scaling_factor is None:
        return None  # installed encoders read the middle of the first kernel alone

    def encode(x: Tensor) -> Tensor:
        return vae.encode(x.to(vae.device, dtype).expand(-1, channels, -1, -1)).latent_dist.mean.float().cpu()

    origin = encode(torch.zeros(1, 1, block, block))
    units = torch.eye(block**2).view(-1, 1, block, block)
    # Small steps keep the codes in the range where the norm of the readout is constant.
    step = 1.0 / block
    rows = torch.cat([encode(step * part) for part in units.split(64)]).sub(origin).flatten(1) / step
    ones = torch.ones(rows.shape[1])
    found = BlockPCA(block, torch.zeros(block**2), rows, ones, ones, origin.flatten())
    generator = torch.Generator().manual_seed(0)
    trial = torch.rand((2, 1, 2 * block, 2 * block), generator=generator) * 2 - 1
    expected = encode(trial)
    close = (found.encode(trial) - expected).abs().max() <= 0.02 * expected.abs().max()
    return found if bool(close) else None


def check(pca: BlockPCA, vae: Any, pixels: Tensor) -> float:
    """Largest difference between ``vae``'s posterior mean and ``pca.encode`` on (N, 1, H, W) in [-1, 1], over sd 1."""
    with torch.no_grad():
        return float((vae.encode(pixels).latent_dist.mean - pca.encode(pixels)).abs().max())
