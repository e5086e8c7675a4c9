"""What a training step is fed: batches as a function of their number, and the way from them to latents and states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roentgen.data.images import ImageSource
from roentgen.files import sha256
from roentgen.generators.diffusion import process as diffusion
from roentgen.images import to_autoencoder
from roentgen.models.text_encoders import TextReader, Tokens, encode_text_states
from roentgen.prompts import Labels
from roentgen.training import conditioning
from roentgen.training.encoded import LatentCache, TextCache
from roentgen.training.state import Order, batch_generator


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch; n images, latents of C x h x w.

    number: of the global batch. rows: int64 (n,) rows of the source. texts: n texts.
    images: ``(mean, std)`` float16 (n, C, h, w) from the cache, or ``(pixels,)`` uint8 (n, S, S).
    text: tokens, or states (n, L, D). used: bool (n, L), positions of the text that the U-Net may read.
    noise, posterior: float32 (n, C, h, w). t: int64 (n,). weight: float32 (n,) loss weight of each sample.
    """

    number: int
    rows: Tensor
    texts: list[str]
    images: tuple[Tensor, ...]
    text: Tokens | Tensor
    used: Tensor
    noise: Tensor
    posterior: Tensor
    t: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``; from pinned memory without waiting for the copies."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with ``function`` of every tensor that goes to the device; ``rows`` stay where they are."""
        text = self.text
        if isinstance(text, Tokens):
            parts = (function(text.ids), function(text.attention), function(text.used))
            text = Tokens(*parts, chunks=text.chunks)
        else:
            text = function(text)
        return dataclasses.replace(
            self,
            images=tuple(map(function, self.images)),
            text=text,
            used=function(self.used),
            noise=function(self.noise),
            posterior=function(self.posterior),
            t=function(self.t),
            weight=function(self.weight),
        )

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in ``count`` equal parts."""
        size = len(self.texts) // count
        for start in range(0, len(self.texts), size):
            mine = slice(start, start + size)
            yield dataclasses.replace(
                self,
                rows=self.rows[mine],
                texts=self.texts[mine],
                images=tuple(x[mine] for x in self.images),
                text=self.text[mine],
                used=self.used[mine],
                noise=self.noise[mine],
                posterior=self.posterior[mine],
                t=self.t[mine],
                weight=self.weight[mine],
            )


@dataclass(frozen=True)
class Feed:
    """Makes batches: the same for the same number, whatever the number of processes, parts or earlier batches.

    Args:
        source: images and their table.
        rows: int64 (M,) rows of the source that are trained on.
        order: which of them make up which batch.
        labels: labels of the M rows, for composed texts.
        weights: float32 (M,) loss weights of mean 1.
        reader: tokens of texts.
        latents: cached latents of all rows of the source; None reads pixels.
        states: cached text states; None gives tokens.
        latent_shape: C, h, w.
        timesteps: number of diffusion timesteps.
        batch_size: images of a global batch.
        share: the part of it that this process makes.
        composed: share of texts composed afresh.
        dropout: share of empty texts.
        noise_offset: strength of one noise value for each channel as a whole.
        seed: of everything drawn.
        pin: whether batches go to page-locked memory.
    """

    source: ImageSource
    rows: Tensor
    order: Order
    labels: Sequence[Labels]
    weights: Tensor
    reader: TextReader
    latents: LatentCache | None
    states: TextCache | None
    latent_shape: tuple[int, int, int]
    timesteps: int
    batch_size: int
    share: slice
    composed: float
    dropout: float
    noise_offset: float
    seed: int
    pin: bool

    def make(self, number: int) -> Batch:
        """This process's share of global batch ``number``, on the CPU."""
        chosen = self.order.batch(number, self.batch_size)
        generator = batch_generator(self.seed, number)
        shape = (self.batch_size, *self.latent_shape)
        noise, posterior = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        t = diffusion.stratified_timesteps(self.batch_size, self.timesteps, generator)
        seeds = torch.randint(0, 2**62, (self.batch_size,), generator=generator).tolist()
        shift = torch.randn((self.batch_size, shape[1], 1, 1), generator=generator)
        noise = diffusion.offset_noise(noise, shift, self.noise_offset)
        mine = chosen[self.share]
        rows = self.rows[mine]
        texts = conditioning.batch_texts(
            [self.labels[i] for i in mine.tolist()],
            self.source.table["text"].iloc[rows.numpy()].tolist(),
            range(len(mine)),
            seeds=seeds[self.share],
            composed=self.composed,
            dropout=self.dropout,
        )
        batch = self.assemble(
            number, rows, texts, noise[self.share], posterior[self.share], t[self.share], self.weights[mine]
        )
        return batch.pinned() if self.pin else batch

    def fixed(self, rows: Tensor, t: Tensor, noise: Tensor) -> Batch:
        """A batch of the given rows with their own texts and the mean of their latents, for validation."""
        texts = self.source.table["text"].iloc[rows.numpy()].tolist()
        return self.assemble(0, rows, texts, noise, torch.zeros_like(noise), t, torch.ones(len(rows)))

    def assemble(
        self, number: int, rows: Tensor, texts: list[str], noise: Tensor, posterior: Tensor, t: Tensor, weight: Tensor
    ) -> Batch:
        """Read what a batch of these rows and texts needs."""
        if self.latents is not None:
            images = tuple(torch.from_numpy(x) for x in self.latents.rows(rows.numpy()))
        else:
            images = (torch.from_numpy(self.source.read_many(rows.numpy())),)
        tokens = self.reader.tokens(texts)
        text = tokens if self.states is None else self.states.states(texts)
        return Batch(number, rows, texts, images, text, tokens.used, noise, posterior, t, weight)


def clean_latents(vae: Any, *, scale: float) -> Callable[[Batch], Tensor]:
    """A function from a batch to its clean latents (n, C, h, w), float32, times ``scale``, the scaling factor.

    ``vae`` encodes images in its own dtype; None takes latents from the cache. Both draw from the same posterior with
    the batch's own noise; they differ by rounding.
    """

    def cached(batch: Batch) -> Tensor:
        mean, std = batch.images
        return (mean.float() + std.float() * batch.posterior) * scale

    @torch.no_grad()
    def encoded(batch: Batch) -> Tensor:
        (pixels,) = batch.images
        x = to_autoencoder(pixels).to(vae.dtype).expand(-1, vae.config.in_channels, -1, -1)
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        return (posterior.mean.float() + posterior.std.float() * batch.posterior) * scale

    return cached if vae is None else encoded


def text_conditions(text_encoder: Any, *, masked: bool) -> Callable[[Tokens | Tensor], Tokens | Tensor]:
    """A function from a batch's text to what the denoiser takes: states by a frozen encoder, or as it is for None."""
    if text_encoder is None:
        return lambda text: text

    @torch.no_grad()
    def states(text: Tokens | Tensor) -> Tensor:
        assert isinstance(text, Tokens)
        return encode_text_states(text_encoder, text, masked=masked)

    return states


def shown(batch: Batch, source: ImageSource, device: torch.device) -> Tensor:
    """The images of a batch, float32 (n, 1, S, S) in [-1, 1] on ``device``: what a decoder should make."""
    pixels = batch.images[0] if len(batch.images) == 1 else torch.from_numpy(source.read_many(batch.rows.numpy()))
    return to_autoencoder(pixels.to(device))


def balanced_loss_weights(table: Any, power: float) -> Tensor:
    """Loss weight (N,) float32 of each row, mean 1: ``conditioning.balanced_weights`` as a weight, not as a share."""
    weights = conditioning.balanced_weights(table.drop(columns="weight", errors="ignore"), power)
    if weights is None:
        return torch.ones(len(table))
    return (weights / weights.mean()).float()


def content_key(table: Any) -> str:
    """A short hash of what a table trains on: file names, texts and splits, wherever the files are."""
    names = (str(image).replace("\\", "/").rsplit("/", 1)[-1] for image in table["image"])
    rows = zip(names, table["text"], table["split"], strict=True)
    return sha256(*(f"{name}\t{text}\t{split}\n" for name, text, split in rows))[:16]


def preview_fit(
    small: ImageSource, latents: LatentCache | None, encode: Callable[[Batch], Tensor], feed: Feed, scale: float
) -> conditioning.LinearPreview:
    """A linear map from latents (before the scaling factor) to the small images of ``small``, fitted on 500 rows."""
    count = len(small.table)
    rows = torch.from_numpy(np.arange(0, count, max(1, count // 500)))
    pixels = to_autoencoder(small.read_many(rows.numpy()))
    if latents is not None:
        mean = torch.from_numpy(latents.rows(rows.numpy())[0]).float()
    else:
        zeros = torch.zeros((len(rows), *feed.latent_shape))
        batch = feed.fixed(rows, torch.zeros(len(rows), dtype=torch.int64), zeros)
        mean = torch.cat([encode(part) for part in batch.parts(len(rows))]) / scale
    return conditioning.fit_preview(mean, pixels)
