"""The network: every masked code from those that are known and from the text, all at once, in both directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roentgen.config import Filled, Range


@dataclass(frozen=True)
class Shape:
    """Size of the transformer."""

    width: Annotated[int, Range(8, 8192), "width of the transformer"] = 320
    layers: Annotated[int, Range(1, 128), "layers of the transformer"] = 6
    heads: Annotated[int, Range(1, 128), "attention heads of a layer"] = 5
    hidden: Annotated[int, Range(8, 65_536), "width of the feed-forward layers"] = 1280
    activation: Annotated[Literal["gelu", "geglu"], "of the feed-forward layers"] = "gelu"
    patch: Annotated[
        Literal[1, 2], "2 joins 2x2 positions to one of the transformer, between convolutions on the full grid"
    ] = 2
    stem: Annotated[int, Range(8, 8192), "width of a position outside the transformer (with patch 1: its width)"] = 96
    head: Annotated[int, Range(2, 8192), "width in which codes are told apart"] = 128
    pooled: Annotated[bool, "mean of the text also as scale and shift of every layer"] = True


@dataclass(frozen=True)
class Fit:
    """What a transformer has to agree with: side of the grid, size of each group's codebook, width of text states."""

    side: Annotated[int, Range(1, 1024)]
    codes: Annotated[tuple[Annotated[int, Range(2, 65_536)], ...], Filled()]
    text: Annotated[int, Range(1, 65_536)]


class Attention(nn.Module):
    """Multi-head attention over ``context``, with normed queries and keys (Henry et al. 2020; Dehghani et al. 2023)."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """x (N, T, D), context (N, L, C), seen bool (N, L): what may be read -> (N, T, D)."""
        n, length, width = x.shape
        query = self.query(x).view(n, length, self.heads, -1).transpose(1, 2)
        key, value = self.pair(context).view(n, context.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if seen is None else seen[:, None, None, :]
        read = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value, attn_mask=mask)
        return self.out(read.transpose(1, 2).reshape(n, length, width))


class FeedForward(nn.Module):
    """Two linear layers with GELU, or its gated form (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.gated = activation == "geglu"
        self.up = nn.Linear(width, hidden * (1 + self.gated))
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.down(x * F.gelu(gate))
        return self.down(F.gelu(x))


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each on a normed input.

    Where the text is pooled, it scales and shifts the norms' outputs by one projection for all layers and an offset of
    each (Chen et al. 2023, PixArt-alpha, section 2.3).
    """

    def __init__(self, shape: Shape, text: int) -> None:
        super().__init__()
        width = shape.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, shape.heads, width)
        self.reading = Attention(width, shape.heads, text)
        self.feed = FeedForward(width, shape.hidden, shape.activation)
        self.offset = nn.Parameter(torch.zeros(4, width)) if shape.pooled else None

    def forward(self, x: Tensor, text: Tensor, seen: Tensor, pooled: Tensor | None) -> Tensor:
        """x (N, T, D), text (N, L, C), seen bool (N, L), pooled (N, 4, D) or None -> (N, T, D)."""
        first, second, third = (norm for norm in self.norms)
        if pooled is None or self.offset is None:
            inner = first(x)
            x = x + self.attention(inner, inner)
            x = x + self.reading(second(x), text, seen)
            return x + self.feed(third(x))
        scale, shift, scale_2, shift_2 = (pooled + self.offset)[:, :, None].unbind(1)
        inner = first(x) * (1 + scale) + shift
        x = x + self.attention(inner, inner)
        x = x + self.reading(second(x), text, seen)
        return x + self.feed(third(x) * (1 + scale_2) + shift_2)


class Convolve(nn.Module):
    """A residual block of two 3x3 convolutions on the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """x (N, P, S) -> (N, P, S)."""
        grid = self.norm(x).transpose(1, 2).unflatten(2, (side, side))
        return x + self.second(F.gelu(self.first(grid))).flatten(2).transpose(1, 2)


class Codes(nn.Module):
    """One group of codes: its embedding, and its head.

    Codes that are neighbours among the latents start as neighbours here, in both: what is learned of one of a few
    hundred shades of grey then holds for the next one too.
    """

    def __init__(self, count: int, stem: int, head: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count + 1, stem)  # the last stands for a mask
        self.features = nn.Sequential(nn.LayerNorm(stem), nn.Linear(stem, head))
        self.table = nn.Parameter(torch.empty(count, head))
        self.bias = nn.Parameter(torch.zeros(count))
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.table, std=1 / math.sqrt(head))

    @torch.no_grad()
    def start_from(self, centres: Tensor) -> None:
        """Begin with random smooth functions (Rahimi & Recht 2007) of the centres (K, C) of the codes."""
        scale = 0.25 * centres.std(0).square().sum().sqrt().clamp(min=1e-6)
        for target, size in ((self.embedding.weight[:-1], 0.5), (self.table, 1.0)):
            width = target.shape[1]
            # Several scales, so that both the rough value and its neighbourhood can be read off.
            frequency = torch.randn(centres.shape[1], width) / (scale * 4 ** torch.linspace(-0.5, 1, width))
            waves = torch.cos(centres @ frequency + 2 * math.pi * torch.rand(width))
            target.copy_(size * waves * math.sqrt(2.0) * (1.0 if size < 1 else 1 / math.sqrt(width)))

    def logits(self, x: Tensor) -> Tensor:
        """x (M, S) -> (M, K)."""
        return F.linear(self.features(x), self.table, self.bias)


class MaskedTransformer(nn.Module):
    """Codes with masks and a text to distributions over the masked codes.

    ``fit`` is what it was made for, ``shape`` its size.
    """

    def __init__(self, fit: Fit, shape: Shape) -> None:
        super().__init__()
        self.fit, self.shape = fit, shape
        self.positions = fit.side**2
        side, stem = fit.side // shape.patch, shape.stem if shape.patch > 1 else shape.width
        self.codes = nn.ModuleList(Codes(count, stem, shape.head) for count in fit.codes)
        self.place = nn.Parameter(torch.randn(self.positions, stem) * 0.5)
        if shape.patch > 1:
            self.before, self.after = Convolve(stem), Convolve(stem)
            self.join = nn.Linear(4 * stem, shape.width)
            self.part = nn.Linear(shape.width, 4 * stem)
            self.place_joined = nn.Parameter(torch.randn(side**2, shape.width) * 0.02)
        blocks = [Block(shape, fit.text) for _ in range(shape.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(shape.width)
        self.text_norm = nn.LayerNorm(fit.text)
        self.pool: nn.Sequential | None = None
        if shape.pooled:
            first, changes = nn.Linear(fit.text, shape.width), nn.Linear(shape.width, 4 * shape.width)
            nn.init.zeros_(changes.weight)  # the text scales and shifts nothing at first
            nn.init.zeros_(changes.bias)
            self.pool = nn.Sequential(first, nn.SiLU(), changes)
        for block in blocks:  # residual branches begin near nothing
            for last in (block.attention.out, block.reading.out, block.feed.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * shape.layers))
                nn.init.zeros_(last.bias)

    def forward(self, codes: Tensor, text: Tensor, seen: Tensor, targets: Tensor | None = None) -> Tensor:
        """Features of positions, or with ``targets`` the loss of each masked code.

        Args:
            codes: int64 (N, P, G), -1 where masked.
            text: states (N, L, C) of the text encoder.
            seen: bool (N, L), states that may be read.
            targets: int64 (N, P, G), the true codes.

        Returns:
            Features (N, P, S) for ``logits``; or the cross-entropy in nats, float32 (N, P, G), 0 where not masked.
        """
        x = self.features(codes, text, seen)
        if targets is None:
            return x
        loss = torch.zeros(targets.shape, device=x.device)
        for group in range(len(self.fit.codes)):
            sites = codes[..., group] < 0
            logits = self.logits(x[sites], group).float()
            loss[..., group][sites] = F.cross_entropy(logits, targets[..., group][sites], reduction="none")
        return loss

    def features(self, codes: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """See ``forward``."""
        x = self.place.expand(len(codes), -1, -1)
        for group, size in enumerate(self.fit.codes):
            chosen = codes[..., group]
            x = x + self.group(group).embedding(torch.where(chosen < 0, size, chosen))
        text = self.text_norm(text.to(x.dtype))
        pooled = None
        if self.pool is not None:
            share = seen.to(text.dtype) / seen.sum(1, keepdim=True)
            pooled = self.pool(torch.einsum("nl,nlc->nc", share, text)).unflatten(1, (4, -1))
        if self.shape.patch == 1:
            return self.norm(self._think(x, text, seen, pooled))
        side = self.fit.side
        half = side // 2
        x = self.before(x, side)
        tiles = x.unflatten(1, (half, 2, half, 2)).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        inner = self._think(self.join(tiles) + self.place_joined, text, seen, pooled)
        tiles = self.part(self.norm(inner)).unflatten(1, (half, half)).unflatten(3, (2, 2, -1))
        return self.after(x + tiles.permute(0, 1, 3, 2, 4, 5).flatten(1, 4), side)

    def _think(self, x: Tensor, text: Tensor, seen: Tensor, pooled: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, text, seen, pooled)
        return x

    def logits(self, x: Tensor, group: int) -> Tensor:
        """Features (M, S) of sites -> logits (M, K) of the codes of a group."""
        return self.group(group).logits(x)

    def group(self, number: int) -> Codes:
        """Embedding and head of one group of codes."""
        found: Codes = self.codes[number]  # type: ignore[assignment]
        return found
