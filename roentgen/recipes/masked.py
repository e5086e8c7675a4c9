"""Train a masked generative transformer on the codes of chest X-rays with their texts (MaskGIT; Muse; RayGen).

    roentgen train masked --config quick-masked --manifest MANIFEST --codes runs/tokens/tokenizer --out runs/quick
    roentgen train masked --manifest MANIFEST --model runs/quick/model --out runs/more
    accelerate launch train/masked.py --config train/configs/mini-masked.yaml --manifest MANIFEST --codes FOLDER

Starts from an image tokenizer (`codes`, see train/tokenizer.py) and a text encoder, or from an earlier masked
transformer (`model`). Writes ``OUT/model``, a folder for ``roentgen generate --model``, checkpoints, sample grids and
TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from roentgen import config as cfg
from roentgen.config import as_dict, flat, parse_groups, require
from roentgen.data.images import open_source
from roentgen.devices import keep_freed_memory
from roentgen.files import hold_folder, require_writable, write_atomic
from roentgen.generators.base import check_text
from roentgen.generators.masked.build import parameters, start
from roentgen.generators.masked.cached import code_cache
from roentgen.generators.masked.model import Masked
from roentgen.generators.masked.objective import Objective
from roentgen.generators.masked.process import Process
from roentgen.generators.masked.transformer import Shape
from roentgen.models.text_encoders import LongTexts
from roentgen.recipes import CONFIGS
from roentgen.training import batches as feeding
from roentgen.training.checkpoints import Checkpoints, RunState, prepare_for_sharding
from roentgen.training.encoded import text_cache
from roentgen.training.loader import Prefetcher
from roentgen.training.order import Order
from roentgen.training.progress import Clock, draw_grid, finite_means, validation_error
from roentgen.training.schedule import EMA, SCHEDULES
from roentgen.training.setup import make_accelerator, make_optimizer
from roentgen.training.trackers import Log, Trackers


@dataclass(frozen=True)
class Recipe:
    """The recipe: what must stay the same between a run and its continuation; every count is in images seen."""

    shape: Annotated[Shape, "size of a new transformer"] = field(default_factory=Shape)
    process: Annotated[Process, "what is masked when"] = field(default_factory=Process)
    pixels: Annotated[cfg.Pixels, "side of the images of a new transformer"] = 256
    text_layer: Annotated[Literal["last", "penultimate"], "hidden layer of the text encoder"] = "last"
    text_window: Annotated[int | None, cfg.Range(3, 4096), "tokens read at once (default: the encoder's limit)"] = None
    text_chunks: Annotated[int, cfg.Range(1, 64), "windows of a long text"] = 1
    images: Annotated[cfg.Count, cfg.Short("-n"), "length of the learning-rate schedule"] = 10_000
    batch_size: Annotated[cfg.BatchSize, "images a step, over all processes and accumulated parts"] = 32
    rate: Annotated[cfg.Rate, "peak learning rate (AdamW)"] = 1e-3
    schedule: Annotated[Literal["cosine", "constant"], "cosine or constant, after the warm-up"] = "cosine"
    warmup: Annotated[cfg.CountFromZero, "images of linear warm-up"] = 1000
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw, or adamw8bit (bitsandbytes, on a GPU)"] = "adamw"
    caption_dropout: Annotated[cfg.ShareBelowOne, "share of empty texts, for classifier-free guidance"] = 0.1
    composed: Annotated[cfg.Share, "share of texts composed afresh from labels instead of the manifest's text"] = 0.0
    balance: Annotated[float, cfg.Range(0, 10), "0 draws images as they come, 1 every finding equally often"] = 0.0
    ema_halflife: Annotated[cfg.HalfLife, "half-life of the weight average"] = 5_000
    text_states: Annotated[Literal["cache", "online"], "encoded once and kept on disk, or in every step"] = "cache"
    precision: Annotated[Literal["bf16", "fp16", "no"], "bf16, fp16 or no"] = "bf16"
    seed: Annotated[cfg.Seed, "seed of weights, order, masks and texts"] = 0


@dataclass(frozen=True)
class Run:
    """The run: what may change when it is continued. Data and models are compared by their content."""

    manifest: Annotated[Path, "manifest with `train` and `val` images, or a folder of shards (roentgen data shard)"]
    out: Annotated[Path, cfg.Short("-o"), "run folder"]
    model: Annotated[
        cfg.PathOrName | None, "masked transformer to start from; leave out to start from `codes` and `text_encoder`"
    ] = None
    codes: Annotated[Path | None, "image tokenizer (see train/tokenizer.py)"] = None
    text_encoder: Annotated[
        cfg.PathOrName | None, "mini, radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP)"
    ] = None
    name: Annotated[cfg.Text, "name that the result carries"] = "masked"
    until: Annotated[cfg.Count | None, "images after which to stop, when that is before the schedule's end"] = None
    accumulate: Annotated[cfg.BatchSize, "parts into which a process splits its share of the batch, to save memory"] = 1
    compile: Annotated[bool, "torch.compile the transformer: minutes at the start, faster steps on a GPU"] = False
    workers: Annotated[cfg.Workers, "threads that make batches ahead"] = 2
    trackers: Trackers = ("tensorboard",)
    log_every: Annotated[cfg.Count, "images between log lines"] = 640
    validate_every: Annotated[cfg.Count, "images between validation losses (fixed masks)"] = 10_000
    sample_every: Annotated[cfg.Count, "images between sample grids"] = 10_000
    checkpoint_every: Annotated[cfg.Count, "images between checkpoints"] = 10_000
    prompts: Annotated[tuple[cfg.Text, ...], cfg.Filled(), "prompts of the sample grid"] = (
        "no acute cardiopulmonary process", "left pleural effusion", "right pleural effusion", "cardiomegaly",
        "PA view. Pneumothorax.", "AP view. Infiltration.", "consolidation", "emphysema",
    )  # fmt: skip
    steps: Annotated[cfg.Steps, "sampling steps of the grid, and default of the saved model"] = 8
    guidance: Annotated[cfg.Guidance, "guidance scale of the grid, and default of the saved model"] = 2.0
    sampling: Annotated[
        dict[str, Any] | None, "the family's further settings, of the grid and of the saved model (docs/families.md)"
    ] = None
    cache: Annotated[Path | None, "folder for codes and text states (default OUT/cache)"] = None
    dry_run: Annotated[bool, "print what would be done and stop"] = False


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="roentgen train masked", about=__doc__, configs=CONFIGS)
    fresh = [run.codes, run.text_encoder]
    require(
        all(given is not None for given in fresh) if run.model is None else fresh == [None, None],
        "give either --model, or both --codes and --text-encoder",
    )
    accelerator = make_accelerator(precision=recipe.precision, accumulate=run.accumulate, trackers=run.trackers)
    keep_freed_memory()
    device, processes, on_main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    parts = processes * run.accumulate
    require(
        recipe.batch_size % parts == 0,
        f"--batch-size {recipe.batch_size} must be a multiple of processes x --accumulate ({parts})",
    )

    # ---- Prepare: the model to start from and the data. Nothing is written before all of it is good.
    torch.manual_seed(recipe.seed)
    model = start(
        model=run.model, codes=run.codes, text_encoder=run.text_encoder, shape=recipe.shape, process=recipe.process,
        pixels=recipe.pixels, layer=recipe.text_layer, window=recipe.text_window, chunks=recipe.text_chunks,
        name=run.name,
    )  # fmt: skip
    chosen = {"steps": run.steps, "guidance": run.guidance, **(run.sampling or {})}
    sampling = model.sampling(**chosen)
    for prompt in run.prompts:
        check_text(prompt, "--prompts")
        model.check(prompt, "--prompts")
    source = open_source(run.manifest, splits=("train", "val"), size=model.pixels)
    rows, val_rows = (np.flatnonzero(source.table["split"] == split) for split in ("train", "val"))
    require(len(rows) > 0 and len(val_rows) > 0, f"--manifest {run.manifest} needs rows in the splits train and val")
    train = source.table.iloc[rows]
    labels = feeding.manifest_labels(train)
    read = model.reader.count(train["text"].tolist())
    if on_main:
        describe(model, recipe, len(train), read)
    if run.dry_run:
        return 0
    require_writable(run.out, "--out")
    lock = hold_folder(run.out, "--out") if on_main else None

    # Codes and, where no text is composed afresh, text states: once for the whole run.
    folder = run.cache or run.out / "cache"
    parallel = {
        "device": device, "process": accelerator.process_index, "processes": processes,
        "wait": accelerator.wait_for_everyone}  # fmt: skip
    codes = code_cache(model.codes, source, folder=folder, **parallel)
    states = None
    if recipe.text_states == "cache" and recipe.composed == 0:
        states = text_cache(model.reader, model.text_encoder, source.table["text"].tolist(), folder=folder, **parallel)

    # The loss, which belongs to the model, and the batches: functions of the batch's number.
    sharded = prepare_for_sharding(accelerator, recipe.batch_size // processes // run.accumulate)
    objective = model.objective = Objective(model, device=device, autocast=accelerator.autocast)
    local = recipe.batch_size // processes
    shards = None if source.groups is None else source.groups[rows]
    maker = feeding.BatchMaker(
        source=source, rows=torch.from_numpy(rows), labels=labels, weights=torch.ones(len(rows)),
        order=Order(
            len(rows), weights=feeding.balanced_weights(train, recipe.balance), groups=shards, seed=recipe.seed
        ),
        reader=model.reader, latents=codes, states=states, draw=objective.draw, batch_size=recipe.batch_size,
        share=slice(accelerator.process_index * local, (accelerator.process_index + 1) * local),
        composed=recipe.composed, dropout=recipe.caption_dropout, seed=recipe.seed, pin=device.type == "cuda",
    )  # fmt: skip

    # Network, optimiser, average, and the state of an earlier run.
    if run.compile:
        model.transformer.compile(dynamic=False)
    model.transformer.train()
    optimizer = make_optimizer(recipe.optimizer, [{"params": parameters(model), "lr": recipe.rate}], device)
    network = objective.network
    objective.network, optimizer = accelerator.prepare(network, optimizer)
    ema = EMA([objective.network], halflife=recipe.ema_halflife)
    settings = {**flat(as_dict(recipe)), "data": feeding.content_key(source.table), "start": model.info.hash}
    checkpoints, free = Checkpoints(run.out / "checkpoints"), frozenset(as_dict(run))
    state = RunState(
        checkpoints, accelerator, network=network, optimizer=optimizer, ema=ema, settings=settings, free=free
    )
    images, end = state.restore(), min(recipe.images, run.until or recipe.images)

    # ---- Loop.
    log = Log(run.trackers, run.out, as_dict(recipe)) if on_main else None
    numbers = range(images // recipe.batch_size, -(-end // recipe.batch_size))
    batches = Prefetcher(maker.make, numbers, ahead=2 * run.workers, threads=run.workers)
    clock = Clock(batches, device, images)
    running: list[torch.Tensor] = []  # (2, n) a part: error and loss of each sample
    fed: list[tuple[int, torch.Tensor]] = []  # their batch and rows
    bar = tqdm(total=end, initial=images, unit="img", file=sys.stderr, disable=not on_main)
    for batch in batches:
        for group in optimizer.param_groups:
            schedule = {"peak": recipe.rate, "warmup": recipe.warmup, "total": recipe.images, "floor": 0.02}
            group["lr"] = SCHEDULES[recipe.schedule](images, **schedule)
        for part in batch.to(device).parts(run.accumulate):
            with accelerator.accumulate(objective.network):
                losses = model.loss(part)
                accelerator.backward(losses.total.mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(objective.network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            running.append(torch.stack([losses.error.detach(), losses.total.detach()]))
            fed.append((batch.number, part.rows))
        images += recipe.batch_size
        ema.update(images, recipe.batch_size)
        bar.update(recipe.batch_size)

        due = {
            every: images >= end or images % every < recipe.batch_size
            for every in (run.log_every, run.validate_every, run.sample_every, run.checkpoint_every)
        }
        if due[run.log_every] or due[run.checkpoint_every]:
            # The one place where the loop waits for the device: never a checkpoint of a loss that is not finite.
            error, total = finite_means(accelerator, running, fed, source.table, checkpoints, ema)
            rate = clock.lap(images)
            if log is not None:
                left = (end - images) / rate / 60
                print(
                    f"{images} images, {error:.4f} nats a code, loss {total:.4f}, {rate:.1f} images/s, "
                    f"{left:.0f} min left",
                    flush=True,
                )
                for key, value in {"error": error, "loss": total, "images_per_second": rate}.items():
                    log.add_scalar(f"train/{key}", value, images)
        if due[run.checkpoint_every]:  # before anything that the run could do without
            state.save(images)
        if due[run.validate_every] or (due[run.sample_every] and not sharded):
            ema.swap()
            model.transformer.eval()
            if due[run.validate_every]:
                error = validation_error(objective, maker, val_rows, accelerator)
                if log is not None:
                    print(f"{images} images, validation {error:.4f} nats a code", flush=True)
                    log.add_scalar("val/error", error, images)
            if due[run.sample_every] and on_main and not sharded:
                draw_grid(model.on(device), run.prompts, sampling, run.out / "samples" / f"{images:09d}.png")
            model.transformer.train()
            ema.swap()
        if any(due.values()):
            clock.pause()
    bar.close()

    # ---- Save: the average becomes the model, and the model a folder.
    ema.swap()
    full = state.full_weights(objective.network)
    if on_main:
        if full is not None:
            model.transformer.load_state_dict(full)
        facts: dict[str, Any] = {
            "name": run.name,
            "images_seen": images,
            "training_images": len(train),
            "defaults": chosen,
            "vocabulary": feeding.shareable_words(train, labels, recipe.composed),
        }
        model.save(run.out / "model", facts)
        result = {"settings": {**flat(as_dict(run)), **settings}, "images": images, "training_images": len(train),
                "text": vars(read), "speed": clock.summary(processes)}  # fmt: skip
        write_atomic(run.out / "training.json", (json.dumps(result, indent=1) + "\n").encode())
        print(run.out / "model")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()
    return 0


def describe(model: Masked, recipe: Recipe, train: int, read: LongTexts) -> None:
    """Print images, steps, parameters, codes, and what becomes of the texts."""
    network = model.transformer
    million = sum(p.numel() for p in network.parameters()) / 1e6
    print(
        f"{train} training images; {recipe.images} images to see = {recipe.images / train:.1f} epochs, "
        f"{-(-recipe.images // recipe.batch_size)} steps of {recipe.batch_size}"
    )
    print(
        f"transformer {million:.1f} M; {network.fit.side}x{network.fit.side} positions with codebooks of "
        f"{', '.join(map(str, network.fit.codes))} codes, images of {model.pixels} px"
    )
    print(
        f"texts of up to {model.reader.chunks} x {model.reader.window} tokens (longest {read.longest}): "
        f"{read.cut} of {read.total} ({read.cut / read.total:.1%}) are cut",
        flush=True,
    )
