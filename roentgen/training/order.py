"""The order of training images: which of them make up which batch, a function of seed and batch number."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from roentgen.data.images import epoch_order


def batch_generator(seed: int, batch: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, global batch number, stream) alone, so that resuming needs no RNG state.

    ``stream`` keeps independent uses (data order, noise, text) of one batch apart.
    """
    generator = torch.Generator()
    # SplitMix64's odd constants spread the three integers over the 64-bit seed space.
    mixed = (seed * 0x9E3779B97F4A7C15 + batch * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
    generator.manual_seed(mixed)
    return generator


def batch_indices(weights: Tensor | None, count: int, *, size: int, seed: int, batch: int) -> Tensor:
    """Indices (size,) of the samples of global batch number ``batch``.

    With ``weights`` (count,) samples are drawn with replacement in proportion to them; without, every epoch is a
    permutation of all ``count`` samples and batches run across epoch boundaries.
    """
    if weights is not None:
        return torch.multinomial(weights, size, replacement=True, generator=batch_generator(seed, batch, 1))
    positions = torch.arange(batch * size, (batch + 1) * size)
    epochs = positions // count
    orders = {int(e): torch.randperm(count, generator=batch_generator(seed, int(e), 2)) for e in epochs.unique()}
    return torch.stack([orders[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])


class Order:
    """Which samples make up which batch: a function of (seed, batch number), whatever was read before.

    Args:
        count: samples.
        weights: sampling weight of each sample (count,), drawn with replacement; None goes through permutations.
        groups: number of the shard that holds each sample, so that an epoch reads nearly in sequence; None for files.
        seed: of the order.
    """

    def __init__(self, count: int, *, weights: Tensor | None, groups: Any, seed: int) -> None:
        self.count = count
        self.weights = weights
        self.seed = seed
        # Batches run across the end of an epoch, so two epochs are in use at a time.
        self._epoch = lru_cache(maxsize=3)(lambda epoch: epoch_order(count, groups, seed=seed, epoch=epoch))

    def batch(self, number: int, size: int) -> Tensor:
        """Indices int64 (size,) of global batch ``number``."""
        if self.weights is not None:
            return batch_indices(self.weights, self.count, size=size, seed=self.seed, batch=number)
        positions = torch.arange(number * size, (number + 1) * size)
        epochs = positions // self.count
        return torch.cat([self._epoch(int(e))[positions[epochs == e] % self.count] for e in epochs.unique()])
