"""Training batches: each a function of its number, the same for any number of processes, parts or earlier batches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from roentgen.data.images import ImageSource
from roentgen.data.manifest import finding_columns
from roentgen.files import sha256
from roentgen.models.text_encoders import TextReader, Tokens
from roentgen.prompts import Labels, compose, labels_from_row, vocabulary, words
from roentgen.training.encoded import TextCache
from roentgen.training.order import Order, batch_generator


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch; n images, latents of C x h x w.

    number: of the global batch. rows: int64 (n,) rows of the source. texts: n texts.
    images: ``(mean, std)`` float16 (n, C, h, w) or ``(codes,)`` from the cache, or ``(pixels,)`` uint8 (n, S, S).
    text: tokens, or states (n, L, D). used: bool (n, L), positions of the text that the model may read.
    draws: what the model draws for each sample, by name (n, ...). weight: float32 (n,) loss weight of each sample.
    """

    number: int
    rows: Tensor
    texts: list[str]
    images: tuple[Tensor, ...]
    text: Tokens | Tensor
    used: Tensor
    draws: dict[str, Tensor]
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
            draws={name: function(x) for name, x in self.draws.items()},
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
                draws={name: x[mine] for name, x in self.draws.items()},
                weight=self.weight[mine],
            )


class EncodedImages(Protocol):
    """Images of a source as a model's family reads them: latents, codes."""

    def rows(self, indices: Any) -> tuple[Any, ...]:
        """One array (B, ...) or several of rows of the source."""
        ...


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches: the same for the same number, whatever the number of processes, parts or earlier batches.

    Args:
        source: images and their table.
        rows: int64 (M,) rows of the source that are trained on.
        order: which of them make up which batch.
        labels: labels of the M rows, for composed texts.
        weights: float32 (M,) loss weights of mean 1.
        reader: tokens of texts.
        latents: cached latents or codes of all rows of the source; None reads pixels.
        states: cached text states; None gives tokens.
        draw: what the model draws for a number of samples by a generator, by name.
        batch_size: images of a global batch.
        share: the part of it that this process makes.
        composed: share of texts composed afresh.
        dropout: share of empty texts.
        seed: of everything drawn.
        pin: whether batches go to page-locked memory.
    """

    source: ImageSource
    rows: Tensor
    order: Order
    labels: Sequence[Labels]
    weights: Tensor
    reader: TextReader
    latents: EncodedImages | None
    states: TextCache | None
    draw: Callable[[int, torch.Generator], dict[str, Tensor]]
    batch_size: int
    share: slice
    composed: float
    dropout: float
    seed: int
    pin: bool

    def make(self, number: int) -> Batch:
        """This process's share of global batch ``number``, on the CPU."""
        chosen = self.order.batch(number, self.batch_size)
        generator = batch_generator(self.seed, number)
        draws = self.draw(self.batch_size, generator)
        seeds = torch.randint(0, 2**62, (self.batch_size,), generator=generator).tolist()
        mine = chosen[self.share]
        rows = self.rows[mine]
        texts = batch_texts(
            [self.labels[i] for i in mine.tolist()],
            self.source.table["text"].iloc[rows.numpy()].tolist(),
            range(len(mine)),
            seeds=seeds[self.share],
            composed=self.composed,
            dropout=self.dropout,
        )
        mine_of_draws = {name: x[self.share] for name, x in draws.items()}
        batch = self.assemble(number, rows, texts, mine_of_draws, self.weights[mine])
        return batch.pinned() if self.pin else batch

    def fixed(self, rows: Tensor, draws: dict[str, Tensor]) -> Batch:
        """A batch of the given rows with their own texts, and with ``draws``: for validation."""
        texts = self.source.table["text"].iloc[rows.numpy()].tolist()
        return self.assemble(0, rows, texts, draws, torch.ones(len(rows)))

    def assemble(self, number: int, rows: Tensor, texts: list[str], draws: dict[str, Tensor], weight: Tensor) -> Batch:
        """Read what a batch of these rows and texts needs."""
        if self.latents is not None:
            images = tuple(torch.from_numpy(x) for x in self.latents.rows(rows.numpy()))
        else:
            images = (torch.from_numpy(self.source.read_many(rows.numpy())),)
        tokens = self.reader.tokens(texts)
        text = tokens if self.states is None else self.states.states(texts)
        return Batch(number, rows, texts, images, text, tokens.used, draws, weight)


def balanced_loss_weights(table: Any, power: float) -> Tensor:
    """Loss weight (N,) float32 of each row, mean 1: ``balanced_weights`` as a weight, not as a share."""
    weights = balanced_weights(table.drop(columns="weight", errors="ignore"), power)
    if weights is None:
        return torch.ones(len(table))
    return (weights / weights.mean()).float()


def content_key(table: Any) -> str:
    """A short hash of what a table trains on: file names, texts and splits, wherever the files are."""
    names = (str(image).replace("\\", "/").rsplit("/", 1)[-1] for image in table["image"])
    rows = zip(names, table["text"], table["split"], strict=True)
    return sha256(*(f"{name}\t{text}\t{split}\n" for name, text, split in rows))[:16]


def balanced_weights(table: pd.DataFrame, power: float) -> Tensor | None:
    """Sampling weight (N,) float64 of each row: frequency ** -power of its rarest listed finding; None for power 0.

    ``power`` 0 leaves the data as it is, 1 draws every finding equally often. Combinations of view and source do not
    count. Rows without any listed finding count as a group of their own. A column ``weight`` of the manifest
    multiplies the result, also for power 0.
    """
    own = table["weight"].to_numpy(float) if "weight" in table else None
    if power == 0:
        return None if own is None else torch.from_numpy(own.copy())
    names = finding_columns(table)
    listed = (table[names] == 1).to_numpy()
    counts = np.maximum(listed.sum(0), 1)
    rarest = np.where(listed, counts, np.inf).min(1)
    none = ~listed.any(1)
    rarest[none] = max(1, none.sum())
    return torch.from_numpy((rarest / len(table)) ** -power * (1.0 if own is None else own))


def batch_texts(
    rows: Sequence[Labels],
    texts: Sequence[str],
    chosen: Sequence[int],
    *,
    seeds: Sequence[int],
    composed: float,
    dropout: float,
) -> list[str]:
    """Texts of a batch: composed afresh from the labels in a share ``composed`` of draws, else as in the manifest.

    A share ``dropout`` becomes the empty text, which is what guidance subtracts (Ho & Salimans 2022, algorithm 1).
    Rows without a finding among their labels keep their text: there is nothing to compose it from.
    Every sample has a generator of its own, so that its text does not depend on how the batch is split.
    """
    result = []
    for index, seed in zip(chosen, seeds, strict=True):
        rng = random.Random(seed)
        if rng.random() < dropout:
            result.append("")
        elif rng.random() < composed and rows[index].findings:
            result.append(compose(rows[index], rng))
        else:
            result.append(texts[index])
    return result


def manifest_labels(table: pd.DataFrame) -> list[Labels]:
    """The labels of each row."""
    return [labels_from_row(row) for row in table.to_dict("records")]


MIN_PATIENTS = 20


def shareable_words(table: pd.DataFrame, labels: Sequence[Labels], composed: float) -> list[str]:
    """Words of the training texts that may be told to others, sorted, for a model's ``vocabulary``.

    A word is told if ``compose`` can write it, or if the texts of at least ``MIN_PATIENTS`` patients hold it; never one
    with a digit. Names and numbers of single patients stay out that way. Rows without a patient count as one together.
    """
    patients: dict[str, set[str]] = {}
    if composed < 1:
        for text, patient in zip(table["text"], table["patient_id"].astype(str), strict=True):
            for word in words(text):
                patients.setdefault(word, set()).add(patient)
    known = vocabulary()
    found = {word for word, seen in patients.items() if word in known or len(seen) >= MIN_PATIENTS}
    if composed > 0:
        draws = range(20 * len(labels))
        drawn = batch_texts(
            labels, [""] * len(labels), [i % len(labels) for i in draws], seeds=draws, composed=1.0, dropout=0.0
        )
        found.update(word for text in drawn for word in words(text))
    return sorted(word for word in found if not any(letter.isdigit() for letter in word))
