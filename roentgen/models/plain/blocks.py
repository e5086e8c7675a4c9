"""Blocks of diffusers' networks in plain torch, for sampling: modules and weights are named as diffusers names them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018), with a SiLU behind it where ``silu`` is set."""

    def __init__(self, groups: int, channels: int, eps: float, *, silu: bool = False) -> None:
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.silu(x, inplace=True) if self.silu else x


class Resnet(nn.Module):
    """Residual block: ``ResnetBlock2D`` of diffusers. ``time``: width of the time embedding, None without one."""

    def __init__(self, inner: int, outer: int, *, groups: int, eps: float, time: int | None = None) -> None:
        super().__init__()
        self.norm1 = Norm(groups, inner, eps, silu=True)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.time_emb_proj = None if time is None else nn.Linear(time, outer)
        self.norm2 = Norm(groups, outer, eps, silu=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """``x`` (N, C, h, w); ``time`` (1, D), after its SiLU: equal for all images of a step."""
        y = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None:
            y = y + self.time_emb_proj(time)[:, :, None, None]
        y = self.conv2(self.norm2(y))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class Attention(nn.Module):
    """Multi-head attention over rows (N, L, D), of themselves or of others: ``Attention`` of diffusers."""

    def __init__(self, width: int, other: int, heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(other, width, bias=bias)
        self.to_v = nn.Linear(other, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def read(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, heads, L, D / heads) of the rows that are looked at."""
        return self._split(self.to_k(others)), self._split(self.to_v(others))

    def forward(self, x: Tensor, read: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``read``: what ``read`` gave; None: of ``x`` itself."""
        keys, values = self.read(x) if read is None else read
        found = F.scaled_dot_product_attention(self._split(self.to_q(x)), keys, values)
        out: Tensor = self.to_out[0](found.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Gated(nn.Module):
    """Linear layer whose second half gates the first: ``GEGLU`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The rows' own layers of a transformer block; ``net.1`` was a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Attention among the pixels, then to the text, then layers of each: ``BasicTransformerBlock`` of diffusers."""

    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, text, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, read: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), read)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a feature map: ``Transformer2DModel`` of diffusers.

    ``linear``: the layers into and out of them are linear (SD 2.x), else 1 x 1 convolutions (SD 1.x).
    """

    def __init__(self, channels: int, text: int, heads: int, *, groups: int, linear: bool, depth: int = 1) -> None:
        super().__init__()
        self.norm = Norm(groups, channels, 1e-6)
        kind: Any = nn.Linear if linear else lambda inner, outer: nn.Conv2d(inner, outer, 1)
        self.proj_in, self.proj_out = kind(channels, channels), kind(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, text, heads) for _ in range(depth)])

    def forward(self, x: Tensor, read: list[tuple[Tensor, Tensor]]) -> Tensor:
        """``x`` (N, C, h, w); ``read``: keys and values of the text, taken from the front, a pair a block."""
        shape = x.shape[2:]
        rows = _rows(self.norm(x))
        rows = _projected(self.proj_in, rows)
        for block in self.transformer_blocks:
            rows = block(rows, read.pop(0))
        rows = _projected(self.proj_out, rows)
        return x + rows.transpose(1, 2).unflatten(2, shape)


def _rows(x: Tensor) -> Tensor:
    """(N, C, h, w) as (N, h * w, C); nothing is copied where channels come last in memory."""
    return x.flatten(2).transpose(1, 2)


def _projected(layer: Any, rows: Tensor) -> Tensor:
    """Rows through a linear layer, or through the 1 x 1 convolution that is one."""
    return F.linear(rows, layer.weight.flatten(1), layer.bias)


class Resample(nn.Module):
    """``Downsample2D`` or ``Upsample2D`` of diffusers: a convolution of stride 2, or behind doubled pixels."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)
        self.doubling: Tensor | None = None

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """``size``: height and width of what ``up`` gives, where it is not twice that of ``x``."""
        if not self.up:
            return self._convolved(x)
        doubled = torch.Size(2 * side for side in x.shape[2:])
        if x.device.type == "cpu" and size in (None, doubled):
            return F.conv_transpose2d(x, self._doubling(), self.conv.bias, stride=2, padding=1)
        return self._convolved(F.interpolate(x, size=size or doubled, mode="nearest"))

    def _convolved(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out

    def _doubling(self) -> Tensor:
        """Doubling and convolution as one transposed convolution of 4 x 4, which multiplies 16 times where they do 36.

        Of the three pixels below the kernel two are equal: their weights are summed, once.
        """
        weight = self.conv.weight
        if self.doubling is None or self.doubling.dtype != weight.dtype:
            with torch.no_grad():
                kernel = F.pad(weight.float().flip(2, 3), (0, 1, 0, 1))
                kernel = kernel + kernel.roll(1, 2)
                kernel = (kernel + kernel.roll(1, 3)).transpose(0, 1)
                self.doubling = kernel.to(weight.dtype).contiguous()
        return self.doubling
