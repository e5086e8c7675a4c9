"""What a masked transformer learns from: what is masked in a batch, and the cross-entropy of the masked codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from roentgen.generators.base import Batch
from roentgen.generators.masked.process import random_mask
from roentgen.models.text_encoders import Tokens, encode_text_states

if TYPE_CHECKING:
    from roentgen.generators.masked.model import Masked


class Losses(NamedTuple):
    """Of each sample of a batch, (n,) float32: nats of a masked code on average, and what is minimised: nats of all
    masked codes, divided by the positions of the picture."""

    error: Tensor
    loss: Tensor


class Objective:
    """The loss of a masked transformer on batches of codes.

    Args:
        model: what is trained; ``network`` is its transformer, which a run replaces by the one that accelerate wraps.
        device: of the batches.
        autocast: context of the network's forward pass.
    """

    def __init__(
        self, model: Masked, *, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.network: Any = model.transformer
        self.process = model.process
        self.sites = (model.transformer.positions, len(model.transformer.fit.codes))
        self.text_encoder = model.text_encoder.to(device)
        self.masked_text = model.reader.masked
        self.autocast = autocast

    def __call__(self, batch: Batch) -> Losses:
        """Losses of each sample. The mean of ``loss`` is what a step minimises."""
        loss, count = self._nats(batch)
        return Losses(loss / count, batch.weight * loss / self.sites[0])

    def error(self, batch: Batch) -> Tensor:
        """Nats of a masked code (n,), for validation."""
        loss, count = self._nats(batch)
        return loss / count

    def _nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all masked codes of each sample (n,), and their number."""
        targets = batch.images[0].long()
        masked = random_mask(self.process, batch.draws["progress"], batch.draws["sites"])
        text, seen = self.condition(batch)
        with self.autocast():
            loss = self.network(torch.where(masked, -1, targets), text, seen, targets)
        return loss.float().sum((1, 2)), masked.sum((1, 2)).clamp(min=1)

    def condition(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text states (n, L, C) and which of them may be read, bool (n, L); L is that of the longest text."""
        length = int(batch.used.any(0).nonzero().max()) + 1
        if isinstance(batch.text, Tensor):
            return batch.text[:, :length].float(), batch.used[:, :length]
        tokens: Tokens = batch.text
        if tokens.chunks == 1:
            ids, attention, used = (x[:, :length] for x in (tokens.ids, tokens.attention, tokens.used))
            tokens = dataclasses.replace(tokens, ids=ids, attention=attention, used=used)
        with torch.no_grad():
            states = encode_text_states(self.text_encoder, tokens, masked=self.masked_text)
        return states[:, :length].float(), batch.used[:, :length]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Progress (count,), one in each of ``count`` equal parts of [0, 1), and noise that chooses the sites."""
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        progress = spread[torch.randperm(count, generator=generator)]
        return {"progress": progress, "sites": torch.rand((count, *self.sites), generator=generator)}

    def fixed_draw(self, count: int) -> dict[str, Tensor]:
        """The same draws whenever they are asked for: for validation."""
        return self.draw(count, torch.Generator().manual_seed(0))
