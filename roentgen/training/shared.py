"""What the recipes of both families of generators share: their settings, the data they read and the batches of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from roentgen import config as cfg
from roentgen.config import require
from roentgen.data.images import ImageSource, open_source
from roentgen.devices import keep_freed_memory
from roentgen.files import require_writable
from roentgen.folders import hold_folder
from roentgen.generators.base import check_text
from roentgen.models.text_encoders import LongTexts, TextReader
from roentgen.prompts import Labels
from roentgen.training import batches
from roentgen.training.order import Order
from roentgen.training.setup import make_accelerator, share_of_batch
from roentgen.training.trackers import Trackers

BatchSize = Annotated[cfg.BatchSize, "images a step, over all processes and accumulated parts"]
TextChunks = Annotated[
    int | None, cfg.Range(1, 64), "windows of a long text (default: as the model that is started from, else 1)"
]
WarmUp = Annotated[cfg.CountFromZero, "images of linear warm-up"]
HalfLife = Annotated[cfg.HalfLife, "half-life of the weight average"]


@dataclass(frozen=True)
class SharedRecipe:
    """Settings that must stay the same between a run and its continuation; every count is in images seen."""

    text_layer: Annotated[Literal["last", "penultimate"], "hidden layer of the text encoder"] = "last"
    text_window: Annotated[int | None, cfg.Range(3, 4096), "tokens read at once (default: the encoder's limit)"] = None
    text_chunks: TextChunks = None
    images: Annotated[cfg.Count, cfg.Short("-n"), "length of the learning-rate schedule"] = 10_000
    batch_size: BatchSize = 16
    schedule: Annotated[
        Literal["cosine", "constant", "plateau"],
        "after the warm-up: cosine, constant, or a tenth whenever ten validations in a row were no better",
    ] = "cosine"
    warmup: WarmUp = 500
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw, or adamw8bit (bitsandbytes, on a GPU)"] = "adamw"
    caption_dropout: Annotated[cfg.ShareBelowOne, "share of empty texts, for classifier-free guidance"] = 0.1
    composed: Annotated[cfg.Share, "share of texts composed afresh from labels instead of the manifest's text"] = 0.0
    balance: Annotated[float, cfg.Range(0, 10), "0 draws images as they come, 1 every finding equally often"] = 0.0
    ema_halflife: HalfLife = 10_000
    text_states: Annotated[
        Literal["cache", "online"], "a frozen text encoder's output: kept on disk, or made in every step"
    ] = "cache"
    precision: Annotated[Literal["bf16", "fp16", "no"], "bf16, fp16 or no"] = "bf16"
    seed: Annotated[cfg.Seed, "seed of everything that is drawn: new weights, order, noise or masks, texts"] = 0


@dataclass(frozen=True)
class SharedRun:
    """Settings that may change when a run is continued. Data and models are compared by their content."""

    manifest: Annotated[Path, "manifest with `train` and `val` images, or a folder of shards (roentgen data shard)"]
    out: Annotated[Path, cfg.Short("-o"), "run folder"]
    until: Annotated[cfg.Count | None, "images after which to stop, when that is before the schedule's end"] = None
    accumulate: Annotated[cfg.BatchSize, "parts into which a process splits its share of the batch, to save memory"] = 1
    compile: Annotated[bool, "torch.compile the network: minutes at the start, faster steps on a GPU"] = False
    workers: Annotated[cfg.Workers, "threads that make batches ahead"] = 2
    trackers: Trackers = ("tensorboard",)
    log_every: Annotated[cfg.Count, "images between log lines"] = 640
    validate_every: Annotated[cfg.Count, "images between validation losses (of fixed draws)"] = 10_000
    sample_every: Annotated[cfg.Count, "images between sample grids"] = 10_000
    checkpoint_every: Annotated[cfg.Count, "images between checkpoints"] = 10_000
    prompts: Annotated[tuple[cfg.Text, ...], cfg.Filled(), "prompts of the sample grid"] = (
        "no acute cardiopulmonary process", "left pleural effusion", "right pleural effusion", "cardiomegaly",
        "PA view. Pneumothorax.", "AP view. Infiltration.", "consolidation", "emphysema",
    )  # fmt: skip
    cache: Annotated[Path | None, "folder for encoded images and text states (default OUT/cache)"] = None
    dry_run: Annotated[bool, "print what would be done and stop"] = False


def begin(recipe: SharedRecipe, run: SharedRun) -> Accelerator:
    """The accelerator of a run, and PyTorch's seed; UserError where the batch cannot be shared out."""
    accelerator = make_accelerator(precision=recipe.precision, accumulate=run.accumulate, trackers=run.trackers)
    keep_freed_memory()
    parts = accelerator.num_processes * run.accumulate
    require(
        recipe.batch_size % parts == 0,
        f"--batch-size {recipe.batch_size} must be a multiple of processes x --accumulate ({parts})",
    )
    torch.manual_seed(recipe.seed)
    return accelerator


def hold(out: Path, accelerator: Accelerator) -> IO[str] | None:
    """The main process's claim on the run folder until ``finish``; UserError where it cannot be written or is taken."""
    require_writable(out, "--out")
    return hold_folder(out, "--out") if accelerator.is_main_process else None


def finish(accelerator: Accelerator, lock: IO[str] | None) -> None:
    """The end of a run, of all processes together."""
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()


class Reads(Protocol):
    """What data is read for: a generator with its reader of texts."""

    reader: TextReader

    @property
    def pixels(self) -> int: ...
    def check(self, text: str, flag: str = ...) -> None: ...


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from: images and their table, rows int64 of the splits in it, and what a model reads of texts.

    ``labels`` are those of the training rows.
    """

    source: ImageSource
    rows: NDArray[np.int64]
    val_rows: NDArray[np.int64]
    labels: list[Labels]
    read: LongTexts

    @cached_property
    def train(self) -> pd.DataFrame:
        """The table of the training rows."""
        return self.source.table.iloc[self.rows]

    @property
    def key(self) -> str:
        """A hash of images, texts and splits."""
        return batches.content_key(self.source.table)

    def maker(
        self, recipe: SharedRecipe, accelerator: Accelerator, reader: TextReader, *, weights: torch.Tensor, **more: Any
    ) -> batches.BatchMaker:
        """What makes this process's part of each batch: a function of the batch's number; ``more`` as ``BatchMaker``'s.

        ``weights`` float32 (M,) are loss weights of the training rows, of mean 1.
        """
        drawn = batches.balanced_weights(self.train, recipe.balance)
        shards = None if self.source.groups is None else self.source.groups[self.rows]
        return batches.BatchMaker(
            source=self.source, rows=torch.from_numpy(self.rows), labels=self.labels, weights=weights, reader=reader,
            order=Order(len(self.rows), weights=drawn, groups=shards, seed=recipe.seed), batch_size=recipe.batch_size,
            share=share_of_batch(accelerator, recipe.batch_size), composed=recipe.composed,
            dropout=recipe.caption_dropout, seed=recipe.seed, pin=accelerator.device.type == "cuda", **more,
        )  # fmt: skip

    def facts(self, run: Any, images: int, *, composed: float, defaults: dict[str, Any]) -> dict[str, Any]:
        """What the trained model's roentgen.json says of its training and its sampling."""
        return {
            "name": run.name,
            "images_seen": images,
            "training_images": len(self.rows),
            "defaults": defaults,
            "vocabulary": batches.shareable_words(self.train, self.labels, composed),
        }

    def describe(self, recipe: SharedRecipe, reader: TextReader, processes: int) -> None:
        """Print images, steps, and what becomes of the texts."""
        count, read = len(self.rows), self.read
        print(
            f"{count} training and {len(self.val_rows)} validation images; {recipe.images} images to see = "
            f"{recipe.images / count:.1f} epochs, {-(-recipe.images // recipe.batch_size)} steps of "
            f"{recipe.batch_size} on {processes} process(es)"
        )
        if not len(self.val_rows):
            print("no rows in the split val: nothing is validated, so that overfitting cannot be seen")
        print(
            f"texts of up to {reader.chunks} x {reader.window} tokens (longest {read.longest}): {read.chunked} of "
            f"{read.total} ({read.chunked / read.total:.1%}) take more than one window, {read.cut} "
            f"({read.cut / read.total:.1%}) are cut"
        )
        if read.cut and recipe.composed < 1:
            print("warning: cut texts lose their ends; raise --text-chunks or choose another text encoder", flush=True)
        if recipe.composed > 0 and (bare := sum(not row.findings for row in self.labels)):
            print(
                f"warning: {bare} of {count} training images have no finding among their labels: their texts stay as "
                "they are, whatever --composed says",
                flush=True,
            )
        if recipe.text_states == "cache" and recipe.composed > 0:
            print("text states are not cached: texts composed afresh differ in every epoch")


def read_data(recipe: SharedRecipe, run: SharedRun, model: Reads) -> TrainingData:
    """The data of a run; UserError, too, for a prompt of the sample grid that ``model`` cannot read."""
    for prompt in run.prompts:
        check_text(prompt, "--prompts")
        model.check(prompt, "--prompts")
    source = open_source(run.manifest, splits=("train", "val"), size=model.pixels)
    rows, val_rows = (np.flatnonzero(source.table["split"] == split) for split in ("train", "val"))
    require(len(rows) > 0, f"--manifest {run.manifest} needs rows in the split train")
    require(
        recipe.schedule != "plateau" or len(val_rows) > 0,
        f"--schedule plateau: --manifest {run.manifest} has no `val` images whose error it could follow",
    )
    train = source.table.iloc[rows]
    return TrainingData(
        source, rows, val_rows, batches.manifest_labels(train), model.reader.count(train["text"].tolist())
    )
