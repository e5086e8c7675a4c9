"""Train or fine-tune a Stable Diffusion pipeline on chest X-rays with their texts.

    roentgen train finetune --config quickstart --manifest data/sample/manifest.csv --out runs/quickstart
    roentgen train finetune --manifest MANIFEST --model mini --out runs/lora --lora.rank 8 --images 2000 --dry-run
    accelerate launch -m roentgen train finetune --config quickstart --manifest MANIFEST --out runs/quickstart

Starts from any Stable Diffusion pipeline (a name, a folder or a hub id: `model`), or from nothing but an autoencoder
and a text encoder (`vae`, `text`, `unet`). Writes ``OUT/pipeline``, an ordinary diffusers pipeline, checkpoints, sample
grids and TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
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
from roentgen.generators.diffusion import objective as training
from roentgen.generators.diffusion.build import TextChoice, start
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.diffusion.objective import Lora, Loss, Objective, Train
from roentgen.models.card import model_licence, sources_of, write_card
from roentgen.models.lora import merge_lora, save_lora
from roentgen.provenance import portable
from roentgen.recipes import CONFIGS
from roentgen.recipes.overview import describe, describe_needs
from roentgen.training import batches as feeding
from roentgen.training.checkpoints import Checkpoints, RunState, prepare_for_sharding
from roentgen.training.encoded import latent_cache, text_cache
from roentgen.training.loader import Prefetcher
from roentgen.training.order import Order
from roentgen.training.progress import Clock, draw_grid, finite_means, validation_error
from roentgen.training.reward import reward_of
from roentgen.training.schedule import EMA, SCHEDULES
from roentgen.training.setup import attention, make_accelerator, make_optimizer, use_xformers
from roentgen.training.trackers import Log, Trackers


@dataclass(frozen=True)
class Recipe:
    """The recipe: what must stay the same between a run and its continuation; every count is in images seen."""

    unet: Annotated[dict[str, Any] | None, "new UNet2DConditionModel, when starting from nothing"] = None
    text_layer: Annotated[Literal["last", "penultimate"], "hidden layer of the text encoder"] = "last"
    text_window: Annotated[int | None, cfg.Range(3, 4096), "tokens read at once (default: the encoder's limit)"] = None
    text_chunks: Annotated[int | None, cfg.Range(1, 64), "windows of a long text (default: as the pipeline)"] = None
    images: Annotated[cfg.Count, cfg.Short("-n"), "length of the learning-rate schedule"] = 10_000
    batch_size: Annotated[cfg.BatchSize, "images a step, over all processes and accumulated parts"] = 16
    train: Annotated[Train, "what is trained"] = field(default_factory=Train)
    lora: Annotated[Lora, "low-rank adapters"] = field(default_factory=Lora)
    rate: Annotated[cfg.Rate, "peak learning rate of the U-Net (AdamW)"] = 5e-5
    text_rate: Annotated[cfg.Rate, "peak learning rate of the text encoder"] = 1e-5
    decoder_rate: Annotated[cfg.Rate, "peak learning rate of the autoencoder's decoder"] = 1e-5
    schedule: Annotated[Literal["cosine", "constant"], "cosine or constant, after the warm-up"] = "cosine"
    warmup: Annotated[cfg.CountFromZero, "images of linear warm-up"] = 500
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw, or adamw8bit (bitsandbytes, on a GPU)"] = "adamw"
    caption_dropout: Annotated[cfg.ShareBelowOne, "share of empty texts, for classifier-free guidance"] = 0.1
    composed: Annotated[cfg.Share, "share of texts composed afresh from labels instead of the manifest's text"] = 0.0
    balance: Annotated[float, cfg.Range(0, 10), "0 draws images as they come, 1 every finding equally often"] = 0.0
    prediction_type: Annotated[Literal["epsilon", "v_prediction"] | None, "default: the pipeline's"] = None
    loss: Annotated[Loss, "options of the loss"] = field(default_factory=Loss)
    reward: Annotated[Path | None, "folder of a classifier whose likelihood of the text is raised"] = None
    reward_weight: Annotated[cfg.Weight, "weight of that term"] = 0.0
    reward_positive: Annotated[cfg.Weight, "weight of findings that a text names against those it does not"] = 4.0
    ema_halflife: Annotated[cfg.HalfLife, "half-life of the weight average"] = 10_000
    latents: Annotated[Literal["cache", "online"], "encoded once and kept on disk, or in every step"] = "cache"
    text_states: Annotated[Literal["cache", "online"], "the same for a frozen text encoder's output"] = "cache"
    precision: Annotated[Literal["bf16", "fp16", "no"], "bf16, fp16 or no"] = "bf16"
    seed: Annotated[cfg.Seed, "seed of order, noise, timesteps and texts"] = 0


@dataclass(frozen=True)
class Run:
    """The run: what may change when it is continued. Data and models are compared by their content."""

    manifest: Annotated[Path, "manifest with `train` and `val` images, or a folder of shards (roentgen data shard)"]
    out: Annotated[Path, cfg.Short("-o"), "run folder"]
    model: Annotated[
        cfg.PathOrName | None,
        "pipeline to start from (name, folder or hub id); leave out to start from `vae`, `text` and `unet`",
    ] = None
    vae: Annotated[
        Path | None,
        "autoencoder folder (roentgen train autoencoder), when starting from nothing or in place of the model's own",
    ] = None
    text: Annotated[
        Path | None,
        "folder of roentgen train text-encoder, with tokenizer/ and text_encoder/, when starting from nothing",
    ] = None
    text_encoder: Annotated[
        cfg.PathOrName | None, "clip (the pipeline's), radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP)"
    ] = None
    name: Annotated[cfg.Text, "name that the result carries"] = "finetuned"
    until: Annotated[cfg.Count | None, "images after which to stop, when that is before the schedule's end"] = None
    accumulate: Annotated[cfg.BatchSize, "parts into which a process splits its share of the batch, to save memory"] = 1
    gradient_checkpointing: Annotated[bool, "trade time for memory in the U-Net and the text encoder"] = False
    compile: Annotated[bool, "torch.compile the U-Net: minutes at the start, faster steps on a GPU"] = False
    xformers: Annotated[bool, "attention by xformers instead of PyTorch's own"] = False
    workers: Annotated[cfg.Workers, "threads that make batches ahead"] = 2
    trackers: Trackers = ("tensorboard",)
    log_every: Annotated[cfg.Count, "images between log lines"] = 640
    validate_every: Annotated[cfg.Count, "images between validation losses (fixed noise and timesteps)"] = 10_000
    sample_every: Annotated[cfg.Count, "images between sample grids"] = 10_000
    checkpoint_every: Annotated[cfg.Count, "images between checkpoints"] = 10_000
    prompts: Annotated[tuple[cfg.Text, ...], cfg.Filled(), "prompts of the sample grid"] = (
        "no acute cardiopulmonary process", "left pleural effusion", "right pleural effusion", "cardiomegaly",
        "PA view. Pneumothorax.", "AP view. Infiltration.", "consolidation", "emphysema",
    )  # fmt: skip
    sampler: Annotated[Literal["dpm++", "unipc", "ddim", "pndm"], "as steps"] = "dpm++"
    steps: Annotated[cfg.Steps, "sampling steps of the grid, and default of the saved pipeline"] = 25
    guidance: Annotated[cfg.Guidance, "guidance scale of the grid, and default of the saved pipeline"] = 4.0
    cache: Annotated[Path | None, "folder for latents and text states (default OUT/cache)"] = None
    dry_run: Annotated[bool, "print what would be done and stop"] = False


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="roentgen train finetune", about=__doc__, configs=CONFIGS)
    check(recipe, run)
    accelerator = make_accelerator(precision=recipe.precision, accumulate=run.accumulate, trackers=run.trackers)
    keep_freed_memory()
    device, processes, on_main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    parts = processes * run.accumulate
    require(
        recipe.batch_size % parts == 0,
        f"--batch-size {recipe.batch_size} must be a multiple of processes x --accumulate ({parts})",
    )

    # ---- Prepare: the model to start from, the data, what is used late. Nothing is written before all of it is good.
    torch.manual_seed(recipe.seed)
    model = start_model(recipe, run)
    sampling = model.sampling(steps=run.steps, guidance=run.guidance, sampler=run.sampler)
    for prompt in run.prompts:
        check_text(prompt, "--prompts")
        model.check(prompt, "--prompts")
    source = open_source(run.manifest, splits=("train", "val"), size=model.pixels)
    rows, val_rows = (np.flatnonzero(source.table["split"] == split) for split in ("train", "val"))
    require(len(rows) > 0, f"--manifest {run.manifest} needs rows in the split train")
    train = source.table.iloc[rows]
    labels = feeding.manifest_labels(train)
    rates = (recipe.rate, recipe.text_rate, recipe.decoder_rate)
    groups = training.set_trained(model, recipe.train, recipe.lora, rates=rates)
    read = model.reader.count(train["text"].tolist())
    if on_main:
        describe(model, source, labels, read, recipe, processes)
        if run.dry_run:
            describe_needs(model, source, recipe, run, processes)
    if run.dry_run:
        return 0
    require_writable(run.out, "--out")
    lock = hold_folder(run.out, "--out") if on_main else None

    # Latents and, where the text encoder is frozen, text states: once for the whole run.
    folder = run.cache or run.out / "cache"
    parallel = {
        "device": device, "process": accelerator.process_index, "processes": processes,
        "wait": accelerator.wait_for_everyone}  # fmt: skip
    latents = None if recipe.latents == "online" else latent_cache(model.vae, source, folder=folder, **parallel)
    states = None
    if not training.learns_text(model) and recipe.text_states == "cache" and recipe.composed == 0:
        texts = source.table["text"].tolist()
        states = text_cache(model.reader, model.text_encoder, texts, folder=folder, **parallel)

    # The loss, which belongs to the model, and the batches: functions of the batch's number.
    sharded = prepare_for_sharding(accelerator, recipe.batch_size // processes // run.accumulate)
    if not sharded:  # FSDP takes contiguous weights only
        model.unet.to(memory_format=torch.channels_last)
    else:
        model.vae.to(memory_format=torch.contiguous_format)
        accelerator.print("no sample grids are drawn in this run: no process holds the whole model")
    objective = model.objective = Objective(
        model, recipe.loss, recipe.train, device=device, precision=recipe.precision, latents_online=latents is None,
        text_online=not training.learns_text(model) and states is None, autocast=accelerator.autocast,
        read=source.read_many,
    )  # fmt: skip
    local = recipe.batch_size // processes
    shards = None if source.groups is None else source.groups[rows]
    order = Order(len(rows), weights=feeding.balanced_weights(train, recipe.balance), groups=shards, seed=recipe.seed)
    maker = feeding.BatchMaker(
        source=source, rows=torch.from_numpy(rows), order=order, labels=labels,
        weights=feeding.balanced_loss_weights(train, recipe.loss.balance), reader=model.reader, latents=latents,
        states=states,
        draw=objective.draw, batch_size=recipe.batch_size,
        share=slice(accelerator.process_index * local, (accelerator.process_index + 1) * local),
        composed=recipe.composed, dropout=recipe.caption_dropout, seed=recipe.seed, pin=device.type == "cuda",
    )  # fmt: skip
    if recipe.reward is not None:
        small = partial(open_source, run.manifest, splits=("train", "val"))
        objective.reward = reward_of(
            recipe.reward, small, maker, objective.mean_latents, positive_weight=recipe.reward_positive, device=device
        )
        objective.reward_weight = recipe.reward_weight

    # Network, optimiser, average, and the state of an earlier run.
    torch.backends.cudnn.benchmark = True  # shapes never change
    if run.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if run.xformers:
        use_xformers(model.unet)
    if run.compile:
        model.unet.compile(dynamic=False)
    model.unet.train()
    optimizer = make_optimizer(recipe.optimizer, groups, device)
    peaks = [group["lr"] for group in groups]
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
    running: list[torch.Tensor] = []  # (3, n) a part: error, loss, reward loss of each sample
    fed: list[tuple[int, torch.Tensor]] = []  # their batch and rows
    bar = tqdm(total=end, initial=images, unit="img", file=sys.stderr, disable=not on_main)
    for batch in batches:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            schedule = {"peak": peak, "warmup": recipe.warmup, "total": recipe.images, "floor": 0.02}
            group["lr"] = SCHEDULES[recipe.schedule](images, **schedule)
        for part in batch.to(device).parts(run.accumulate):
            # Gradient checkpointing runs the forward pass again in the backward one.
            with accelerator.accumulate(objective.network), attention(device, model.latent_shape):
                losses = model.loss(part)
                accelerator.backward(losses.total.mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(objective.network.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            running.append(torch.stack([losses.error.detach(), losses.total.detach(), losses.missed.detach()]))
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
            error, total, missed = finite_means(accelerator, running, fed, source.table, checkpoints, ema)
            rate = clock.lap(images)
            if log is not None:
                left = (end - images) / rate / 60
                print(
                    f"{images} images, error {error:.4f}, loss {total:.4f}, reward loss {missed:.4f}, "
                    f"{rate:.1f} images/s, {left:.0f} min left",
                    flush=True,
                )
                told = {"error": error, "loss": total, "reward_loss": missed, "images_per_second": rate}
                for key, value in told.items():
                    log.add_scalar(f"train/{key}", value, images)
        if due[run.checkpoint_every]:  # before anything that the run could do without
            state.save(images)
        if due[run.validate_every] or (due[run.sample_every] and not sharded):
            ema.swap()
            if due[run.validate_every] and len(val_rows):
                error = validation_error(objective, maker, val_rows, accelerator)
                if log is not None:
                    print(f"{images} images, validation error {error:.4f}", flush=True)
                    log.add_scalar("val/error", error, images)
            if due[run.sample_every] and on_main and not sharded:
                draw_grid(model.on(device), run.prompts, sampling, run.out / "samples" / f"{images:09d}.png")
                model.unet.train()
            ema.swap()
        if any(due.values()):
            clock.pause()
    bar.close()

    # ---- Save: the average becomes the model, and the model a folder.
    ema.swap()
    full = state.full_weights(objective.network)
    if on_main:
        if full is not None:
            model = start_model(recipe, run)
            training.set_trained(model, recipe.train, recipe.lora, rates=(0.0, 0.0, 0.0))
            training.denoiser_of(model, recipe.train).load_state_dict(full)
        facts = {
            "name": run.name,
            "images_seen": images,
            "training_images": len(train),
            "defaults": {"steps": run.steps, "guidance": run.guidance, "sampler": run.sampler},
            "vocabulary": feeding.shareable_words(train, labels, recipe.composed),
        }
        save_result(model, recipe, run, facts)
        written = portable({**flat(as_dict(run)), **settings})
        result = {"settings": written, "images": images, "training_images": len(train), "text": vars(read),
                  "speed": clock.summary(processes), "sources": sources_of(train),
                  "licence": model_licence(model.info.folder) if run.model else None}  # fmt: skip
        write_atomic(run.out / "training.json", (json.dumps(result, indent=1) + "\n").encode())
        for made in filter(Path.is_dir, (run.out / "pipeline", run.out / "lora")):
            write_card(made, result, name=run.name)
        print(run.out / "pipeline")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()
    return 0


def check(recipe: Recipe, run: Run) -> None:
    """Settings that no type can rule out."""
    train, lora = recipe.train, recipe.lora
    require(
        train.unet or train.text_encoder or train.vae_decoder,
        "--train.unet, --train.text-encoder and --train.vae-decoder are all false: nothing to train",
    )
    require(
        lora.rank == 0 or (lora.unet and train.unet) or (lora.text_encoder and train.text_encoder),
        "--lora.rank is set, but no adapter is trained: set --lora.unet with --train.unet, or the text encoder's two",
    )
    fresh = [run.vae, run.text, recipe.unet]
    require(
        all(f is not None for f in fresh) if run.model is None else run.text is None and recipe.unet is None,
        "give either --model (with --vae to replace its autoencoder), or all of --vae, --text and --unet",
    )


def start_model(recipe: Recipe, run: Run) -> Diffusion:
    """The model that training starts from."""
    choice = TextChoice(run.text_encoder, recipe.text_layer, recipe.text_window, recipe.text_chunks)
    return start(model=run.model, vae=run.vae, text=run.text, unet=recipe.unet, choice=choice, name=run.name,
                 prediction_type=recipe.prediction_type, loss=recipe.loss)  # fmt: skip


def save_result(model: Diffusion, recipe: Recipe, run: Run, facts: dict[str, Any]) -> None:
    """Write ``OUT/pipeline`` and, where adapters were trained, ``OUT/lora``; the pipeline has them merged in."""
    modules = training.adapted(model, recipe.train, recipe.lora)
    if any(module is not None for module in modules):
        save_lora(run.out / "lora", *modules)
        wanted = (recipe.train.unet, recipe.train.text_encoder)
        whole = any(trained and module is None for trained, module in zip(wanted, modules, strict=True))
        if whole or model.projected or recipe.train.vae_decoder or run.text_encoder not in (None, "clip") or run.vae:
            print(f"{run.out / 'lora'} holds the adapters only; what else is new is in {run.out / 'pipeline'}")
        for module in filter(None, modules):
            merge_lora(module)
    model.save(run.out / "pipeline", facts)
