"""The way from a picture of masks to a picture of codes: how much is masked when, and which sites are filled next.

A picture has P positions with G codes each, a code for every group of latent channels; a site is one of P x G. Progress
runs from 0 (everything masked) to 1 (nothing). Training draws a progress and masks what a sampler would still have
masked there, so that the network sees in training the states that it meets in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from roentgen.config import Range

# Share masked after a share x of the way, each from 1 at x = 0 to 0 at x = 1. Cosine is that of MaskGIT (Chang et al.
# 2022, section 3.3), arccos that of Besnier & Chen (2023) and of Muse's implementations.
SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda x: torch.cos(x * math.pi / 2),
    "arccos": lambda x: torch.acos(x) * 2 / math.pi,
    "linear": lambda x: 1 - x,
    "square": lambda x: 1 - x.square(),
}


@dataclass(frozen=True)
class Process:
    """How much of each group is masked when."""

    schedule: Annotated[Literal["cosine", "arccos", "linear", "square"], "share masked along the way"] = "cosine"
    lag: Annotated[
        float, Range(0, 1), "share of the way by which a group starts after the one before it (0: all groups at once)"
    ] = 0.15

    def masked(self, progress: Tensor, groups: int) -> Tensor:
        """Share masked of each group, float64 (..., G), at ``progress`` (...) in [0, 1]; group 0 goes first."""
        lag = min(self.lag, 0.9 / max(1, groups - 1))
        first = lag * torch.arange(groups, dtype=torch.float64)
        local = ((progress.double()[..., None] - first) / (1 - lag * (groups - 1))).clamp(0, 1)
        return SCHEDULES[self.schedule](local).clamp(0, 1)

    def count(self, progress: Tensor, positions: int, groups: int) -> Tensor:
        """Sites masked of each group, int64 (..., G): all at progress 0, none at 1."""
        # Rounding up from a hair less: the cosine of pi / 2 is not quite 0.
        return torch.ceil(self.masked(progress, groups) * positions - 1e-3).long().clamp(0, positions)


def random_mask(process: Process, progress: Tensor, noise: Tensor) -> Tensor:
    """Bool (N, P, G), True where masked, at ``progress`` (N,), of which the ``noise`` (N, P, G) chooses the sites."""
    left = process.count(progress.cpu(), *noise.shape[1:]).to(noise.device)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return rank < left[:, None, :]


def halton_order(height: int, width: int) -> Tensor:
    """Positions int64 (height * width,) in an order that covers the picture evenly at every length.

    The Halton sequence of bases 2 and 3 over the picture, as Besnier et al. (2025, "Halton scheduler for masked
    generative image transformer") order the tokens: neighbours, which tell most of each other, are never filled
    together.
    """

    def radical_inverse(number: int, base: int) -> float:
        value, part = 0.0, 1.0
        while number:
            part /= base
            number, digit = divmod(number, base)
            value += part * digit
        return value

    order: dict[int, None] = {}
    number = 0
    while len(order) < height * width:
        row, column = int(radical_inverse(number, 2) * height), int(radical_inverse(number, 3) * width)
        order.setdefault(row * width + column)
        number += 1
    return torch.tensor(list(order))


def pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One code int64 (...) of each distribution (..., K), by the inverse of its cumulative sum at ``uniform`` (...)."""
    edges = probabilities.double().cumsum(-1)
    at = uniform.double()[..., None] * edges[..., -1:]
    return torch.searchsorted(edges, at, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)


def keep_top(logits: Tensor, share: float) -> Tensor:
    """``logits`` (..., K) with all but the best ``share`` of the K codes at minus infinity."""
    kept = max(1, math.ceil(share * logits.shape[-1]))
    if kept >= logits.shape[-1]:
        return logits
    least = logits.topk(kept, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def fill(codes: Tensor, proposed: Tensor, score: Tensor, count: Sequence[int]) -> Tensor:
    """``codes`` (P, G), -1 where masked, with ``proposed`` at the masked sites of highest ``score``: ``count[g]``."""
    filled = codes.clone()
    for group, number in enumerate(count):
        if number > 0:
            chosen = score[:, group].masked_fill(codes[:, group] >= 0, -math.inf).topk(number).indices
            filled[chosen, group] = proposed[chosen, group]
    return filled
