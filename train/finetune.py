"""Train or fine-tune a Stable Diffusion pipeline on chest X-rays with their texts.

    accelerate launch train/finetune.py --config train/configs/quickstart.yaml

Starts from any Stable Diffusion pipeline (a name, a folder or a hub id: `model`), or from nothing but an autoencoder
and a text encoder (`vae`, `text`, `unet`). Writes ``OUT/pipeline``, an ordinary diffusers pipeline, checkpoints, sample
grids and TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from roentgen import errors
from roentgen.config import (
    BatchSize,
    Count,
    CountFromZero,
    Filled,
    Guidance,
    HalfLife,
    PathOrName,
    Range,
    Rate,
    Seed,
    Share,
    ShareBelowOne,
    Steps,
    Text,
    Weight,
    Workers,
    as_dict,
    flat,
    parse_groups,
    require,
)
from roentgen.data.images import open_source
from roentgen.files import hold_folder, require_writable
from roentgen.generators.diffusion import process as diffusion
from roentgen.generators.diffusion.build import TextChoice, load_parts
from roentgen.generators.diffusion.denoiser import Denoiser, load_trained_state, trained_state
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.generate import generate
from roentgen.images import make_grid, save_image
from roentgen.models.classifier import load_classifier
from roentgen.models.lora import add_lora, merge_lora, save_lora
from roentgen.models.text_encoders import LongTexts
from roentgen.prompts import Labels
from roentgen.training import conditioning, estimate, feeding, speed
from roentgen.training.encoded import latent_cache, text_cache
from roentgen.training.loader import Prefetcher
from roentgen.training.optim import make_optimizer, use_xformers
from roentgen.training.progress import Clock, finite_means
from roentgen.training.reconstruction import pyramid_l1
from roentgen.training.sharding import full_weights, prepare_for_sharding, restore_shards, save_shards
from roentgen.training.state import EMA, SCHEDULES, Checkpoints, Order


@dataclass(frozen=True)
class Train:
    """What is trained; the rest is frozen."""

    unet: Annotated[bool, "the U-Net"] = True
    text_encoder: Annotated[bool, "the text encoder"] = True
    vae_decoder: Annotated[bool, "the autoencoder's decoder (its encoder never is: latents stay what they are)"] = False


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of full weights."""

    rank: Annotated[int, Range(0, 4096), "rank of the adapters; 0 is full fine-tuning"] = 0
    alpha: Annotated[
        int | None,
        Range(1, 65_536),
        "scale of the adapters times their rank; null is the rank",
    ] = None
    unet: Annotated[bool, "adapters on the U-Net, where that is trained"] = True
    text_encoder: Annotated[bool, "adapters on the text encoder, where that is trained"] = True


@dataclass(frozen=True)
class Loss:
    """The diffusion loss."""

    min_snr_gamma: Annotated[
        float | None,
        Range(0, 1000, above=True),
        "min-SNR loss weight; null for none",
    ] = 5.0
    noise_offset: Annotated[Share, "strength of one noise value added to each channel as a whole"] = 0.0
    zero_terminal_snr: Annotated[
        bool,
        "rescale the noise schedule so that it ends in pure noise (needs v_prediction)",
    ] = False
    balance: Annotated[
        float,
        Range(0, 10),
        "power of the loss weight of rare findings: 0 none, 1 every finding counts as much as every other",
    ] = 0.0


@dataclass(frozen=True)
class Recipe:
    """The recipe: what must stay the same between a run and its continuation; every count is in images seen."""

    unet: Annotated[
        dict[str, Any] | None,
        "configuration of a new UNet2DConditionModel, when starting from nothing",
    ] = None
    text_layer: Annotated[
        Literal["last", "penultimate"],
        "last or penultimate hidden layer of the text encoder",
    ] = "last"
    text_window: Annotated[
        int | None,
        Range(3, 4096),
        "tokens a text encoder reads at once (default: its own limit)",
    ] = None
    text_chunks: Annotated[
        int | None,
        Range(1, 64),
        "windows that a long text may fill, each encoded by itself (default: as the pipeline has it)",
    ] = None
    images: Annotated[Count, "length of the learning-rate schedule"] = 10_000
    batch_size: Annotated[BatchSize, "images a step, over all processes and accumulated parts"] = 16
    train: Annotated[Train, "what is trained"] = Train()
    lora: Annotated[Lora, "low-rank adapters"] = Lora()
    rate: Annotated[Rate, "peak learning rate of the U-Net (AdamW)"] = 5e-5
    text_rate: Annotated[Rate, "peak learning rate of the text encoder"] = 1e-5
    decoder_rate: Annotated[Rate, "peak learning rate of the autoencoder's decoder"] = 1e-5
    schedule: Annotated[Literal["cosine", "constant"], "cosine or constant, after the warm-up"] = "cosine"
    warmup: Annotated[CountFromZero, "images of linear warm-up"] = 500
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw, or adamw8bit (bitsandbytes, on a GPU)"] = "adamw"
    caption_dropout: Annotated[ShareBelowOne, "share of empty texts, for classifier-free guidance"] = 0.1
    composed: Annotated[Share, "share of texts composed afresh from the labels instead of the manifest's text"] = 0.0
    balance: Annotated[
        float,
        Range(0, 10),
        "0 draws images as they come, 1 every finding equally often",
    ] = 0.0
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        "epsilon or v_prediction (default: that of the pipeline)",
    ] = None
    loss: Annotated[Loss, "options of the loss"] = Loss()
    reward: Annotated[
        Path | None,
        "folder of a classifier (train/classifier.py) whose likelihood of the text is raised",
    ] = None
    reward_weight: Annotated[Weight, "weight of that term"] = 0.0
    reward_positive: Annotated[Weight, "weight of findings that a text names against those it does not"] = 4.0
    ema_halflife: Annotated[HalfLife, "half-life of the weight average"] = 10_000
    latents: Annotated[
        Literal["cache", "online"],
        "cache (encoded once, kept on disk) or online (encoded in every step)",
    ] = "cache"
    text_states: Annotated[
        Literal["cache", "online"],
        "cache (a frozen text encoder's output, kept on disk) or online",
    ] = "cache"
    precision: Annotated[Literal["bf16", "fp16", "no"], "bf16, fp16 or no"] = "bf16"
    seed: Annotated[Seed, "seed of order, noise, timesteps and texts"] = 0


@dataclass(frozen=True)
class Run:
    """The run: what may change when it is continued. Data and models are compared by their content."""

    manifest: Annotated[Path, "manifest with `train` and `val` images, or a folder of shards (roentgen data shard)"]
    out: Annotated[Path, "run folder"]
    model: Annotated[
        PathOrName | None,
        "pipeline to start from (name, folder or hub id); leave out to start from `vae`, `text` and `unet`",
    ] = None
    vae: Annotated[
        Path | None,
        "autoencoder folder (see train/autoencoder.py), when starting from nothing or in place of the model's own",
    ] = None
    text: Annotated[
        Path | None,
        "folder with tokenizer/ and text_encoder/, when starting from nothing (see train/text_encoder.py)",
    ] = None
    text_encoder: Annotated[
        PathOrName | None,
        "clip (the pipeline's own), radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP)",
    ] = None
    name: Annotated[Text, "name that the result carries"] = "finetuned"
    until: Annotated[Count | None, "images after which to stop, when that is before the schedule's end"] = None
    accumulate: Annotated[BatchSize, "parts into which each process splits its share of the batch, to save memory"] = 1
    gradient_checkpointing: Annotated[bool, "trade time for memory in the U-Net and the text encoder"] = False
    compile: Annotated[
        bool,
        "compile the U-Net (torch.compile, static shapes); minutes at the start, faster steps on a GPU",
    ] = False
    xformers: Annotated[bool, "attention by xformers instead of PyTorch's own"] = False
    workers: Annotated[Workers, "threads that make batches ahead"] = 2
    log_every: Annotated[Count, "images between log lines"] = 640
    validate_every: Annotated[Count, "images between validation losses (fixed noise and timesteps)"] = 10_000
    sample_every: Annotated[Count, "images between sample grids"] = 10_000
    checkpoint_every: Annotated[Count, "images between checkpoints"] = 10_000
    prompts: Annotated[
        tuple[Text, ...],
        Filled(),
        "prompts of the sample grid",
    ] = (
        "no acute cardiopulmonary process",
        "left pleural effusion",
        "right pleural effusion",
        "cardiomegaly",
        "PA view. Pneumothorax.",
        "AP view. Infiltration.",
        "consolidation",
        "emphysema",
    )
    sampler: Annotated[
        Literal["dpm++", "unipc", "ddim", "pndm"],
        "sampler of the grid, and default of the saved pipeline",
    ] = "dpm++"
    steps: Annotated[Steps, "sampling steps of the grid, and default of the saved pipeline"] = 25
    guidance: Annotated[Guidance, "guidance scale of the grid, and default of the saved pipeline"] = 4.0
    cache: Annotated[Path | None, "folder for latents and text states (default OUT/cache)"] = None
    dry_run: Annotated[bool, "print what would be done and stop"] = False


def main(argv: Sequence[str] | None = None) -> int:
    recipe, run = parse_groups((Recipe, Run), argv, prog="train/finetune.py", about=__doc__)
    check(recipe, run)
    accelerator = Accelerator(mixed_precision=recipe.precision, gradient_accumulation_steps=run.accumulate)
    speed.keep_freed_memory()
    device, processes, on_main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    require(
        recipe.batch_size % (processes * run.accumulate) == 0,
        f"--batch-size {recipe.batch_size} must be a multiple of processes x --accumulate "
        f"({processes * run.accumulate})",
    )

    # Start: a pipeline's parts, the data's texts and labels.
    torch.manual_seed(recipe.seed)
    parts = start(recipe, run)
    kind = parts.scheduler.config.prediction_type
    side = parts.unet.config.sample_size
    latent_shape = (parts.vae.config.latent_channels, side, side)
    size = side * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    source = open_source(run.manifest, splits=("train", "val"), size=size)
    train_rows, val_rows = (np.flatnonzero(source.table["split"] == split) for split in ("train", "val"))
    require(
        len(train_rows) > 0 and len(val_rows) > 0, f"--manifest {run.manifest} needs rows in the splits train and val"
    )
    train = source.table.iloc[train_rows]
    groups = trainable(recipe, parts)
    read = parts.reader.count(train["text"].tolist())
    if on_main:
        describe(recipe, run, parts, source, read, processes)
    if run.dry_run:
        return 0
    require_writable(run.out, "--out")
    lock = hold_folder(run.out, "--out") if on_main else None

    # Latents and, where the text encoder is frozen, text states: once for the whole run.
    learns_text = any(p.requires_grad for p in parts.text_encoder.parameters())
    parallel = {
        "device": device,
        "process": accelerator.process_index,
        "processes": processes,
        "wait": accelerator.wait_for_everyone,
    }
    folder = run.cache or run.out / "cache"
    latents = None if recipe.latents == "online" else latent_cache(parts.vae, source, folder=folder, **parallel)
    states = None
    if not learns_text and recipe.text_states == "cache" and recipe.composed == 0:
        texts = source.table["text"].tolist()
        states = text_cache(parts.reader, parts.text_encoder, texts, folder=folder, **parallel)

    # Batches and the loss: functions of the batch's number and of tensors.
    abar = diffusion.cumulative_alphas(parts.scheduler).to(device)
    loss_weight = diffusion.min_snr_weights(kind, abar, recipe.loss.min_snr_gamma)
    local = recipe.batch_size // processes
    feed = feeding.Feed(
        source=source,
        rows=torch.from_numpy(train_rows),
        order=Order(
            len(train_rows),
            weights=conditioning.balanced_weights(train, recipe.balance),
            groups=None if source.groups is None else source.groups[train_rows],
            seed=recipe.seed,
        ),
        labels=conditioning.manifest_labels(train),
        weights=feeding.balanced_loss_weights(train, recipe.loss.balance),
        reader=parts.reader,
        latents=latents,
        states=states,
        latent_shape=latent_shape,
        timesteps=len(abar),
        batch_size=recipe.batch_size,
        share=slice(accelerator.process_index * local, (accelerator.process_index + 1) * local),
        composed=recipe.composed,
        dropout=recipe.caption_dropout,
        noise_offset=recipe.loss.noise_offset,
        seed=recipe.seed,
        pin=device.type == "cuda",
    )
    frozen_vae = frozen_text = None
    if recipe.latents == "online":
        frozen_vae = speed.frozen_copy(parts.vae, device, recipe.precision)
    if not learns_text and states is None:
        frozen_text = speed.frozen_copy(parts.text_encoder, device, recipe.precision)
    clean = feeding.clean_latents(frozen_vae, scale=parts.vae.config.scaling_factor)
    condition = feeding.text_conditions(frozen_text, masked=parts.reader.masked)
    reward = conditioning.no_reward
    if recipe.reward is not None:
        # The classifier reads small grey images: a linear map shows it the latents.
        judge = load_classifier(recipe.reward)
        small = open_source(run.manifest, splits=("train", "val"), size=judge.size)
        preview = feeding.preview_fit(small, latents, clean, feed, parts.vae.config.scaling_factor)
        said = dict(zip(train_rows.tolist(), feed.labels, strict=True))
        reward = conditioning.make_reward(judge, preview, said, positive_weight=recipe.reward_positive, device=device)

    # Models, optimiser, average.
    torch.backends.cudnn.benchmark = True  # shapes never change
    sharded = prepare_for_sharding(accelerator, local // run.accumulate)
    if not sharded:  # FSDP takes contiguous weights only
        parts.unet.to(memory_format=torch.channels_last)
    else:
        parts.vae.to(memory_format=torch.contiguous_format)
        accelerator.print("no sample grids are drawn in this run: no process holds the whole model")
    if run.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    if run.xformers:
        use_xformers(parts.unet)
    if run.compile:
        parts.unet.compile(dynamic=False)
    parts.unet.train()
    optimizer = make_optimizer(recipe.optimizer, groups, device)
    peaks = [group["lr"] for group in groups]
    denoiser = Denoiser(
        parts.unet,
        text_encoder=parts.text_encoder if learns_text else None,
        decoder=parts.vae if recipe.train.vae_decoder else None,
        masked=parts.reader.masked,
        chunks=parts.reader.chunks,
    )
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    ema = EMA([model], halflife=recipe.ema_halflife)

    # The state of an earlier run.
    settings = {
        **flat(as_dict(recipe)),
        **flat(as_dict(run)),
        "data": feeding.content_key(source.table),
        "start": parts.info.hash,
    }
    checkpoints = Checkpoints(run.out / "checkpoints")
    images, end = 0, min(recipe.images, run.until or recipe.images)
    if on_main:
        checkpoints.tidy()
    saved = checkpoints.latest()
    if saved is not None:
        checkpoints.check_same(saved["settings"], settings, free=frozenset(as_dict(run)))
        if sharded:
            restore_shards(accelerator, checkpoints, saved, ema)
        else:
            checkpoints.load_into(saved, denoiser, load_trained_state)
            optimizer.load_state_dict(saved["optimizer"])
            ema.load_state_dict(saved["ema"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(saved["scaler"])
        images = saved["images"]
        accelerator.print(f"continuing at {images} images")

    log = SummaryWriter(run.out / "log") if on_main else None
    batches = Prefetcher(
        feed.make,
        range(images // recipe.batch_size, -(-end // recipe.batch_size)),
        ahead=2 * run.workers,
        threads=run.workers,
    )
    clock = Clock(batches, device, images)
    running: list[torch.Tensor] = []  # (3, n) a part: error, loss, reward loss of each sample
    fed: list[tuple[int, torch.Tensor]] = []  # their batch and rows
    bar = tqdm(total=end, initial=images, unit="img", file=sys.stderr, disable=not on_main)
    for batch in batches:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = SCHEDULES[recipe.schedule](
                images, peak=peak, warmup=recipe.warmup, total=recipe.images, floor=0.02
            )
        for part in batch.to(device).parts(run.accumulate):
            with accelerator.accumulate(model):
                x0 = clean(part)
                xt = diffusion.add_noise(x0, part.noise, abar, part.t)
                with accelerator.autocast(), speed.attention(device, side**2):
                    output, pictures = model(
                        xt.contiguous(memory_format=torch.channels_last),
                        part.t,
                        condition(part.text),
                        part.used,
                        x0 / parts.vae.config.scaling_factor if recipe.train.vae_decoder else None,
                    )
                output = output.float()
                goal = diffusion.target(kind, x0, part.noise, abar, part.t)
                error = (output - goal).square().mean((1, 2, 3))
                # At large t noise hides the findings and the text must supply them; at small t the estimate shows
                # them already and the likelihood is flat. The reward's weight is that of the diffusion loss.
                estimate_of = diffusion.estimate_x0(kind, xt, output, abar, part.t) / parts.vae.config.scaling_factor
                missed = reward(estimate_of, part.texts, part.rows, accelerator.autocast)
                each = part.weight * loss_weight[part.t] * (error + recipe.reward_weight * missed)
                if pictures is not None:
                    # Neither network is in the other's loss; only the clipping of gradients sees both.
                    each = each + pyramid_l1(pictures.float(), feeding.shown(part, source, device))
                with speed.attention(device, side**2):  # gradient checkpointing runs the forward pass again
                    accelerator.backward(each.mean())
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            running.append(torch.stack([error.detach(), each.detach(), missed.detach()]))
            fed.append((batch.number, part.rows))
        images += recipe.batch_size
        ema.update(images, recipe.batch_size)
        bar.update(recipe.batch_size)

        done = images >= end
        due = {
            every: done or images % every < recipe.batch_size
            for every in (run.log_every, run.validate_every, run.sample_every, run.checkpoint_every)
        }
        if due[run.log_every] or due[run.checkpoint_every]:
            # The one place where the loop waits for the device: never a checkpoint of a loss that is not finite.
            level, total, missing = finite_means(accelerator, running, fed, source.table, checkpoints, ema)
            rate = clock.lap(images)
            if on_main:
                left = (end - images) / rate / 60
                print(
                    f"{images} images, error {level:.4f}, loss {total:.4f}, reward loss {missing:.4f}, "
                    f"{rate:.1f} images/s, {left:.0f} min left",
                    flush=True,
                )
                for key, value in (
                    ("train/error", level),
                    ("train/loss", total),
                    ("train/reward_loss", missing),
                    ("train/images_per_second", rate),
                ):
                    log.add_scalar(key, value, images)
        if due[run.validate_every]:
            ema.swap()
            level = validation_error(model, feed, val_rows, clean, condition, (kind, abar), accelerator)
            ema.swap()
            if on_main:
                print(f"{images} images, validation error {level:.4f}", flush=True)
                log.add_scalar("val/error", level, images)
        if due[run.sample_every] and on_main and not sharded:
            ema.swap()
            show(run, parts, run.out / "samples" / f"{images:09d}.png", device)
            ema.swap()
        if due[run.checkpoint_every]:
            if sharded:
                save_shards(accelerator, checkpoints, images, settings, ema)
            elif on_main:
                checkpoints.save(
                    images,
                    {
                        "model": trained_state(denoiser),
                        "optimizer": optimizer.state_dict(),
                        "ema": ema.state_dict(),
                        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
                        "settings": settings,
                    },
                )
        if any(due.values()):
            clock.pause()
    bar.close()

    # The average becomes the model, and the model a folder.
    ema.swap()
    full = full_weights(accelerator, model) if sharded else None
    if on_main:
        if full is not None:
            parts = start(recipe, run)
            trainable(recipe, parts)
            Denoiser(
                parts.unet,
                text_encoder=parts.text_encoder if learns_text else None,
                decoder=parts.vae if recipe.train.vae_decoder else None,
                masked=parts.reader.masked,
                chunks=parts.reader.chunks,
            ).load_state_dict(full)
        save_result(recipe, run, parts, feed.labels, train["text"], images)
        (run.out / "training.json").write_text(
            json.dumps(
                {
                    "settings": settings,
                    "images": images,
                    "training_images": len(train),
                    "text": vars(read),
                    "speed": clock.summary(processes),
                },
                indent=1,
            )
            + "\n"
        )
        print(run.out / "pipeline")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()
    return 0


def check(recipe: Recipe, run: Run) -> None:
    """What no setting alone can rule out."""
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


def start(recipe: Recipe, run: Run) -> Diffusion:
    """The parts that training starts from."""
    return load_parts(
        model=run.model,
        vae=run.vae,
        text=run.text,
        unet=recipe.unet,
        prediction_type=recipe.prediction_type,
        zero_terminal_snr=recipe.loss.zero_terminal_snr,
        choice=TextChoice(run.text_encoder, recipe.text_layer, recipe.text_window, recipe.text_chunks),
    )


def trainable(recipe: Recipe, parts: Diffusion) -> list[dict[str, Any]]:
    """Optimiser groups with their peak rates; everything else is frozen, adapters put in place."""
    for module, wanted in ((parts.unet, recipe.train.unet), (parts.text_encoder, recipe.train.text_encoder)):
        module.requires_grad_(wanted)
    if recipe.lora.rank:
        add_lora(
            parts.unet if recipe.train.unet and recipe.lora.unet else None,
            parts.text_encoder if recipe.train.text_encoder and recipe.lora.text_encoder else None,
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
        )
    if parts.projected:  # a new layer has to learn, whatever else does
        parts.unet.encoder_hid_proj.requires_grad_(True)
    if recipe.train.vae_decoder:
        for module in filter(None, (parts.vae.post_quant_conv, parts.vae.decoder)):
            module.requires_grad_(True)
    for name, parameter in parts.text_encoder.named_parameters():
        if name.startswith("pooler"):  # Stable Diffusion does not use it: it would never get a gradient
            parameter.requires_grad_(False)
    groups = []
    for module, rate in (
        (parts.unet, recipe.rate),
        (parts.text_encoder, recipe.text_rate),
        (parts.vae, recipe.decoder_rate),
    ):
        learning = [p for p in module.parameters() if p.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": rate})
    return groups


def describe(recipe: Recipe, run: Run, parts: Diffusion, source: Any, read: LongTexts, processes: int) -> None:
    """What the run will do, in a few lines; with --dry-run also what it will need."""
    table = source.table
    train, val = ((table["split"] == split).sum() for split in ("train", "val"))
    print(
        f"{train} training and {val} validation images; {recipe.images} images to see = "
        f"{recipe.images / train:.1f} epochs, "
        f"{-(-recipe.images // recipe.batch_size)} steps of {recipe.batch_size} on {processes} process(es)"
    )
    counts = []
    for name, module in (("U-Net", parts.unet), ("text encoder", parts.text_encoder), ("autoencoder", parts.vae)):
        total, learning = (
            sum(p.numel() for p in module.parameters() if wanted(p)) / 1e6
            for wanted in (lambda p: True, lambda p: p.requires_grad)
        )
        counts.append(f"{name} {total:.1f} M ({learning:.1f} M trained)")
    print(", ".join(counts))
    print(
        f"{parts.scheduler.config.prediction_type}; texts of up to {parts.reader.chunks} x {parts.reader.window} "
        f"tokens (longest {read.longest}): {read.chunked} of {read.total} ({read.chunked / read.total:.1%}) take more "
        f"than one window, {read.cut} ({read.cut / read.total:.1%}) are cut"
    )
    if read.cut and recipe.composed < 1:
        print("warning: cut texts lose their ends; raise --text-chunks or choose another text encoder", flush=True)
    if recipe.text_states == "cache" and recipe.composed > 0:
        print("text states are not cached: texts composed afresh differ in every epoch")
    if run.dry_run:
        chunks, window = parts.reader.chunks, parts.reader.window
        side = parts.unet.config.sample_size
        cuda = torch.cuda.is_available()
        device = estimate.device_name(torch.device("cuda" if cuda else "cpu"))
        needs = estimate.estimate(
            parts.unet,
            parts.text_encoder,
            parts.vae,
            batch_per_device=recipe.batch_size // processes // run.accumulate,
            latent_shape=(parts.vae.config.latent_channels, side, side),
            text_shape=(chunks, window),
            precision=recipe.precision,
            optimizer=recipe.optimizer,
            gradient_checkpointing=run.gradient_checkpointing,
            latents_online=recipe.latents == "online",
            text_online=recipe.text_states == "online" or recipe.composed > 0,
            accumulate=run.accumulate,
            processes=processes,
            images=len(table),
            texts=table["text"].nunique(),
        )
        rate = estimate.measured_rate(
            Path(__file__).parents[1] / "benchmarks" / "results", device=device, flops=needs.flops, processes=processes
        )
        memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
        print("\n".join(estimate.describe(needs, images=recipe.images, rate=rate, device_memory=memory)))


@torch.no_grad()
def validation_error(
    model: Any,
    feed: feeding.Feed,
    rows: np.ndarray,
    clean: Any,
    condition: Any,
    process: tuple[str, torch.Tensor],
    accelerator: Accelerator,
) -> float:
    """Mean squared error on up to 128 validation images at fixed timesteps and with fixed noise, by all processes."""
    kind, abar = process
    count = min(128, len(rows))
    chosen = torch.from_numpy(rows[np.linspace(0, len(rows) - 1, num=count).astype(int)])
    generator = torch.Generator().manual_seed(0)
    t = ((torch.arange(count) + 0.5) / count * len(abar)).long()[torch.randperm(count, generator=generator)]
    noise = torch.randn((count, *feed.latent_shape), generator=generator)
    # Every process runs the same number of batches, as sharded models demand; what is padded is not counted.
    step = min(16, -(-count // accelerator.num_processes))
    total, seen = torch.zeros((), device=accelerator.device), 0
    for start_ in range(0, count, step * accelerator.num_processes):
        first = start_ + accelerator.process_index * step
        mine = torch.arange(first, first + step)
        part = feed.fixed(chosen[mine % count], t[mine % count], noise[mine % count]).to(accelerator.device)
        x0 = clean(part)
        with accelerator.autocast():
            xt = diffusion.add_noise(x0, part.noise, abar, part.t)
            output, _ = model(xt, part.t, condition(part.text), part.used)
        error = (output.float() - diffusion.target(kind, x0, part.noise, abar, part.t)).square().mean((1, 2, 3))
        total += error[: max(0, count - first)].sum()
        seen += step
    return float(accelerator.reduce(total, "sum")) / count


def save_result(
    recipe: Recipe, run: Run, parts: Diffusion, labels: Sequence[Labels], texts: Sequence[str], images: int
) -> None:
    """Write ``OUT/pipeline`` and, where adapters were trained, ``OUT/lora``; the pipeline has them merged in."""
    adapted = [
        module if recipe.lora.rank and wanted and lora else None
        for module, wanted, lora in (
            (parts.unet, recipe.train.unet, recipe.lora.unet),
            (parts.text_encoder, recipe.train.text_encoder, recipe.lora.text_encoder),
        )
    ]
    if any(module is not None for module in adapted):
        save_lora(run.out / "lora", *adapted)
        whole = (recipe.train.text_encoder and adapted[1] is None) or (recipe.train.unet and adapted[0] is None)
        if whole or parts.projected or recipe.train.vae_decoder or run.text_encoder not in (None, "clip"):
            print(f"{run.out / 'lora'} holds the adapters only; what else is new is in {run.out / 'pipeline'}")
        for module in adapted:
            if module is not None:
                merge_lora(module)
    facts = {
        "name": run.name,
        "images_seen": images,
        "training_images": len(texts),
        "defaults": {"steps": run.steps, "guidance": run.guidance, "sampler": run.sampler},
        "vocabulary": seen_words(labels, texts, recipe.composed),
    }
    parts.save(run.out / "pipeline", facts)


def show(run: Run, parts: Diffusion, path: Path, device: torch.device) -> None:
    """Draw the sample grid with the model as it is now."""
    model = parts.on(device)
    model.unet.eval()
    settings = {"steps": run.steps, "guidance": run.guidance, "sampler": run.sampler}
    samples = list(generate(model, list(run.prompts), seed=0, num_images=2, batch_size=16, **settings))
    captions = [sample.prompt for sample in samples]
    save_image(
        make_grid([x.image for x in samples], captions, 4),
        path,
        format="png",
        provenance={"synthetic": "true"},
        overwrite=True,
    )
    parts.unet.train()


def seen_words(rows: Sequence[Any], texts: Sequence[str], composed: float) -> list[str]:
    """Words that training texts hold: those of a large sample of composed texts and all of the manifest's."""
    from roentgen.prompts import words

    found: set[str] = set()
    if composed < 1:
        found.update(w for text in texts for w in words(text))
    if composed > 0:
        seeds = range(20 * len(rows))
        drawn = conditioning.batch_texts(
            rows, texts, [i % len(rows) for i in seeds], seeds=seeds, composed=1.0, dropout=0.0
        )
        found.update(w for text in drawn for w in words(text))
    return sorted(found)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/finetune.py"))
