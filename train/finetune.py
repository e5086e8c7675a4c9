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
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from roentgen import errors
from roentgen.data.images import open_source
from roentgen.files import hold_folder, require_writable
from roentgen.generators.diffusion import process as diffusion
from roentgen.generators.diffusion.build import TextChoice, load_parts
from roentgen.generators.diffusion.denoiser import Denoiser, load_trained_state, trained_state
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.diffusion.sampling import SAMPLERS
from roentgen.generators.generate import generate
from roentgen.images import make_grid, save_image
from roentgen.models.classifier import load_classifier
from roentgen.models.text_encoders import LongTexts
from roentgen.prompts import Labels
from roentgen.training import conditioning, estimate, feeding, speed
from roentgen.training.cache import latent_cache, text_cache
from roentgen.training.loader import Prefetcher
from roentgen.training.lora import add_lora, merge_lora, save_lora
from roentgen.training.optim import make_optimizer, use_xformers
from roentgen.training.progress import Clock, finite_means
from roentgen.training.reconstruction import pyramid_l1
from roentgen.training.settings import as_dict, flat, parse_settings, require
from roentgen.training.sharding import full_weights, prepare_for_sharding, restore_shards, save_shards
from roentgen.training.state import EMA, SCHEDULES, Checkpoints, Order


@dataclass(frozen=True)
class Train:
    """What is trained; the rest is frozen.

    Args:
        unet: the U-Net.
        text_encoder: the text encoder.
        vae_decoder: the autoencoder's decoder (its encoder never is: latents stay what they are).
    """

    unet: bool = True
    text_encoder: bool = True
    vae_decoder: bool = False


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of full weights.

    Args:
        rank: rank of the adapters; 0 is full fine-tuning.
        alpha: scale of the adapters times their rank; null is the rank.
        unet: adapters on the U-Net, where that is trained.
        text_encoder: adapters on the text encoder, where that is trained.
    """

    rank: int = 0
    alpha: int | None = None
    unet: bool = True
    text_encoder: bool = True


@dataclass(frozen=True)
class Loss:
    """The diffusion loss.

    Args:
        min_snr_gamma: min-SNR loss weight; null for none.
        noise_offset: strength of one noise value added to each channel as a whole.
        zero_terminal_snr: rescale the noise schedule so that it ends in pure noise (needs v_prediction).
        balance: power of the loss weight of rare findings: 0 none, 1 every finding counts as much as every other.
    """

    min_snr_gamma: float | None = 5.0
    noise_offset: float = 0.0
    zero_terminal_snr: bool = False
    balance: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Settings of the fine-tuning recipe; every count is in images seen.

    Args:
        manifest: manifest with `train` and `val` images, or a folder of shards (roentgen data shard).
        out: run folder.
        model: pipeline to start from (name, folder or hub id); leave out to start from `vae`, `text` and `unet`.
        vae: autoencoder folder (see train/autoencoder.py), when starting from nothing or in place of the model's own.
        text: folder with tokenizer/ and text_encoder/, when starting from nothing (see train/text_encoder.py).
        unet: configuration of a new UNet2DConditionModel, when starting from nothing.
        text_encoder: clip (the pipeline's own), radbert, sapbert, cxr-bert, a folder or hub id (BERT or CLIP).
        text_layer: last or penultimate hidden layer of the text encoder.
        text_window: tokens a text encoder reads at once (default: its own limit).
        text_chunks: windows that a long text may fill, each encoded by itself (default: as the pipeline has it).
        name: name that the result carries.
        images: length of the learning-rate schedule.
        until: images after which to stop, when that is before the schedule's end.
        batch_size: images a step, over all processes and accumulated parts.
        accumulate: parts into which each process splits its share of the batch, to save memory.
        train: what is trained.
        lora: low-rank adapters.
        rate: peak learning rate of the U-Net (AdamW).
        text_rate: peak learning rate of the text encoder.
        decoder_rate: peak learning rate of the autoencoder's decoder.
        schedule: cosine or constant, after the warm-up.
        warmup: images of linear warm-up.
        optimizer: adamw, or adamw8bit (bitsandbytes, on a GPU).
        caption_dropout: share of empty texts, for classifier-free guidance.
        composed: share of texts composed afresh from the labels instead of the manifest's text.
        balance: 0 draws images as they come, 1 every finding equally often.
        prediction_type: epsilon or v_prediction (default: that of the pipeline).
        loss: options of the loss.
        reward: folder of a classifier (train/classifier.py) whose likelihood of the text is raised.
        reward_weight: weight of that term.
        reward_positive: weight of findings that a text names against those it does not.
        ema_halflife: half-life of the weight average.
        latents: cache (encoded once, kept on disk) or online (encoded in every step).
        text_states: cache (a frozen text encoder's output, kept on disk) or online.
        precision: bf16, fp16 or no.
        gradient_checkpointing: trade time for memory in the U-Net and the text encoder.
        compile: compile the U-Net (torch.compile, static shapes); minutes at the start, faster steps on a GPU.
        xformers: attention by xformers instead of PyTorch's own.
        workers: threads that make batches ahead.
        seed: seed of order, noise, timesteps and texts.
        log_every: images between log lines.
        validate_every: images between validation losses (fixed noise and timesteps).
        sample_every: images between sample grids.
        checkpoint_every: images between checkpoints.
        prompts: prompts of the sample grid.
        sampler: sampler of the grid, and default of the saved pipeline.
        steps: sampling steps of the grid, and default of the saved pipeline.
        guidance: guidance scale of the grid, and default of the saved pipeline.
        cache: folder for latents and text states (default OUT/cache).
        dry_run: print what would be done and stop.
    """

    manifest: Path
    out: Path
    model: str | None = None
    vae: Path | None = None
    text: Path | None = None
    unet: dict[str, Any] | None = None
    text_encoder: str | None = None
    text_layer: str = "last"
    text_window: int | None = None
    text_chunks: int | None = None
    name: str = "finetuned"
    images: int = 10_000
    until: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    train: Train = Train()
    lora: Lora = Lora()
    rate: float = 5e-5
    text_rate: float = 1e-5
    decoder_rate: float = 1e-5
    schedule: str = "cosine"
    warmup: int = 500
    optimizer: str = "adamw"
    caption_dropout: float = 0.1
    composed: float = 0.0
    balance: float = 0.0
    prediction_type: str | None = None
    loss: Loss = Loss()
    reward: Path | None = None
    reward_weight: float = 0.0
    reward_positive: float = 4.0
    ema_halflife: float = 10_000
    latents: str = "cache"
    text_states: str = "cache"
    precision: str = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    xformers: bool = False
    workers: int = 2
    seed: int = 0
    log_every: int = 640
    validate_every: int = 10_000
    sample_every: int = 10_000
    checkpoint_every: int = 10_000
    prompts: tuple[str, ...] = (
        "no acute cardiopulmonary process",
        "left pleural effusion",
        "right pleural effusion",
        "cardiomegaly",
        "PA view. Pneumothorax.",
        "AP view. Infiltration.",
        "consolidation",
        "emphysema",
    )
    sampler: str = "dpm++"
    steps: int = 25
    guidance: float = 4.0
    cache: Path | None = None
    dry_run: bool = False


# Settings that may change between a run and its continuation. The data and the model are compared by their content.
FREE = frozenset(
    {
        "until",
        "out",
        "manifest",
        "model",
        "vae",
        "text",
        "text_encoder",
        "cache",
        "workers",
        "log_every",
        "validate_every",
        "sample_every",
        "checkpoint_every",
        "prompts",
        "dry_run",
        "accumulate",
        "gradient_checkpointing",
        "compile",
        "xformers",
        "name",
        "sampler",
        "steps",
        "guidance",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="train/finetune.py", description=(__doc__ or "").splitlines()[0])
    check(s)
    accelerator = Accelerator(mixed_precision=s.precision, gradient_accumulation_steps=s.accumulate)
    speed.keep_freed_memory()
    device, processes, on_main = accelerator.device, accelerator.num_processes, accelerator.is_main_process
    require(
        s.batch_size % (processes * s.accumulate) == 0,
        f"--batch_size {s.batch_size} must be a multiple of processes x --accumulate ({processes * s.accumulate})",
    )

    # Start: a pipeline's parts, the data's texts and labels.
    torch.manual_seed(s.seed)
    parts = start(s)
    kind = parts.scheduler.config.prediction_type
    side = parts.unet.config.sample_size
    latent_shape = (parts.vae.config.latent_channels, side, side)
    size = side * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    source = open_source(s.manifest, splits=("train", "val"), size=size)
    train_rows, val_rows = (np.flatnonzero(source.table["split"] == split) for split in ("train", "val"))
    require(
        len(train_rows) > 0 and len(val_rows) > 0, f"--manifest {s.manifest} needs rows in the splits train and val"
    )
    train = source.table.iloc[train_rows]
    groups = trainable(s, parts)
    read = parts.reader.count(train["text"].tolist())
    if on_main:
        describe(s, parts, source, read, processes)
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    lock = hold_folder(s.out, "--out") if on_main else None

    # Latents and, where the text encoder is frozen, text states: once for the whole run.
    learns_text = any(p.requires_grad for p in parts.text_encoder.parameters())
    parallel = {
        "device": device,
        "process": accelerator.process_index,
        "processes": processes,
        "wait": accelerator.wait_for_everyone,
    }
    folder = s.cache or s.out / "cache"
    latents = None if s.latents == "online" else latent_cache(parts.vae, source, folder=folder, **parallel)
    states = None
    if not learns_text and s.text_states == "cache" and s.composed == 0:
        texts = source.table["text"].tolist()
        states = text_cache(parts.reader, parts.text_encoder, texts, folder=folder, **parallel)

    # Batches and the loss: functions of the batch's number and of tensors.
    abar = diffusion.cumulative_alphas(parts.scheduler).to(device)
    loss_weight = diffusion.min_snr_weights(kind, abar, s.loss.min_snr_gamma)
    local = s.batch_size // processes
    feed = feeding.Feed(
        source=source,
        rows=torch.from_numpy(train_rows),
        order=Order(
            len(train_rows),
            weights=conditioning.balanced_weights(train, s.balance),
            groups=None if source.groups is None else source.groups[train_rows],
            seed=s.seed,
        ),
        labels=conditioning.manifest_labels(train),
        weights=feeding.balanced_loss_weights(train, s.loss.balance),
        reader=parts.reader,
        latents=latents,
        states=states,
        latent_shape=latent_shape,
        timesteps=len(abar),
        batch_size=s.batch_size,
        share=slice(accelerator.process_index * local, (accelerator.process_index + 1) * local),
        composed=s.composed,
        dropout=s.caption_dropout,
        noise_offset=s.loss.noise_offset,
        seed=s.seed,
        pin=device.type == "cuda",
    )
    frozen_vae = frozen_text = None
    if s.latents == "online":
        frozen_vae = speed.frozen_copy(parts.vae, device, s.precision)
    if not learns_text and states is None:
        frozen_text = speed.frozen_copy(parts.text_encoder, device, s.precision)
    clean = feeding.clean_latents(frozen_vae, scale=parts.vae.config.scaling_factor)
    condition = feeding.text_conditions(frozen_text, masked=parts.reader.masked)
    reward = conditioning.no_reward
    if s.reward is not None:
        # The classifier reads small grey images: a linear map shows it the latents.
        judge = load_classifier(s.reward)
        small = open_source(s.manifest, splits=("train", "val"), size=judge.size)
        preview = feeding.preview_fit(small, latents, clean, feed, parts.vae.config.scaling_factor)
        said = dict(zip(train_rows.tolist(), feed.labels, strict=True))
        reward = conditioning.make_reward(judge, preview, said, positive_weight=s.reward_positive, device=device)

    # Models, optimiser, average.
    torch.backends.cudnn.benchmark = True  # shapes never change
    sharded = prepare_for_sharding(accelerator, local // s.accumulate)
    if not sharded:  # FSDP takes contiguous weights only
        parts.unet.to(memory_format=torch.channels_last)
    else:
        parts.vae.to(memory_format=torch.contiguous_format)
        accelerator.print("no sample grids are drawn in this run: no process holds the whole model")
    if s.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    if s.xformers:
        use_xformers(parts.unet)
    if s.compile:
        parts.unet.compile(dynamic=False)
    parts.unet.train()
    optimizer = make_optimizer(s.optimizer, groups, device)
    peaks = [group["lr"] for group in groups]
    denoiser = Denoiser(
        parts.unet,
        text_encoder=parts.text_encoder if learns_text else None,
        decoder=parts.vae if s.train.vae_decoder else None,
        masked=parts.reader.masked,
        chunks=parts.reader.chunks,
    )
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    ema = EMA([model], halflife=s.ema_halflife)

    # The state of an earlier run.
    settings = {**flat(as_dict(s)), "data": feeding.content_key(source.table), "start": parts.info.hash}
    checkpoints = Checkpoints(s.out / "checkpoints")
    images, end = 0, min(s.images, s.until or s.images)
    if on_main:
        checkpoints.tidy()
    saved = checkpoints.latest()
    if saved is not None:
        checkpoints.check_same(saved["settings"], settings, free=FREE)
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

    log = SummaryWriter(s.out / "log") if on_main else None
    batches = Prefetcher(
        feed.make,
        range(images // s.batch_size, -(-end // s.batch_size)),
        ahead=2 * s.workers,
        threads=s.workers,
    )
    clock = Clock(batches, device, images)
    running: list[torch.Tensor] = []  # (3, n) a part: error, loss, reward loss of each sample
    fed: list[tuple[int, torch.Tensor]] = []  # their batch and rows
    bar = tqdm(total=end, initial=images, unit="img", file=sys.stderr, disable=not on_main)
    for batch in batches:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = SCHEDULES[s.schedule](images, peak=peak, warmup=s.warmup, total=s.images, floor=0.02)
        for part in batch.to(device).parts(s.accumulate):
            with accelerator.accumulate(model):
                x0 = clean(part)
                xt = diffusion.add_noise(x0, part.noise, abar, part.t)
                with accelerator.autocast(), speed.attention(device, side**2):
                    output, pictures = model(
                        xt.contiguous(memory_format=torch.channels_last),
                        part.t,
                        condition(part.text),
                        part.used,
                        x0 / parts.vae.config.scaling_factor if s.train.vae_decoder else None,
                    )
                output = output.float()
                goal = diffusion.target(kind, x0, part.noise, abar, part.t)
                error = (output - goal).square().mean((1, 2, 3))
                # At large t noise hides the findings and the text must supply them; at small t the estimate shows
                # them already and the likelihood is flat. The reward's weight is that of the diffusion loss.
                estimate_of = diffusion.estimate_x0(kind, xt, output, abar, part.t) / parts.vae.config.scaling_factor
                missed = reward(estimate_of, part.texts, part.rows, accelerator.autocast)
                each = part.weight * loss_weight[part.t] * (error + s.reward_weight * missed)
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
        images += s.batch_size
        ema.update(images, s.batch_size)
        bar.update(s.batch_size)

        done = images >= end
        due = {
            every: done or images % every < s.batch_size
            for every in (s.log_every, s.validate_every, s.sample_every, s.checkpoint_every)
        }
        if due[s.log_every] or due[s.checkpoint_every]:
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
        if due[s.validate_every]:
            ema.swap()
            level = validation_error(model, feed, val_rows, clean, condition, (kind, abar), accelerator)
            ema.swap()
            if on_main:
                print(f"{images} images, validation error {level:.4f}", flush=True)
                log.add_scalar("val/error", level, images)
        if due[s.sample_every] and on_main and not sharded:
            ema.swap()
            show(s, parts, s.out / "samples" / f"{images:09d}.png", device)
            ema.swap()
        if due[s.checkpoint_every]:
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
            parts = start(s)
            trainable(s, parts)
            Denoiser(
                parts.unet,
                text_encoder=parts.text_encoder if learns_text else None,
                decoder=parts.vae if s.train.vae_decoder else None,
                masked=parts.reader.masked,
                chunks=parts.reader.chunks,
            ).load_state_dict(full)
        save_result(s, parts, feed.labels, train["text"], images)
        (s.out / "training.json").write_text(
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
        print(s.out / "pipeline")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if lock is not None:
        lock.close()
    return 0


def check(s: Settings) -> None:
    """Settings that no type can rule out."""
    require(
        s.images > 0 and s.batch_size > 0 and s.accumulate > 0 and s.workers > 0,
        "--images, --batch_size, --accumulate and --workers must be positive",
    )
    for name in ("log_every", "validate_every", "sample_every", "checkpoint_every"):
        require(getattr(s, name) > 0, f"--{name} must be positive")
    require(
        s.train.unet or s.train.text_encoder or s.train.vae_decoder,
        "--train.unet, --train.text_encoder and --train.vae_decoder are all false: nothing to train",
    )
    require(s.lora.rank >= 0, "--lora.rank must be 0 (none) or positive")
    require(
        s.lora.rank == 0 or (s.lora.unet and s.train.unet) or (s.lora.text_encoder and s.train.text_encoder),
        "--lora.rank is set, but no adapter is trained: set --lora.unet with --train.unet, or the text encoder's two",
    )
    require(
        0 <= s.caption_dropout < 1 and 0 <= s.composed <= 1,
        "--caption_dropout and --composed must be in [0, 1]",
    )
    for name, value, allowed in (
        ("precision", s.precision, ("bf16", "fp16", "no")),
        ("schedule", s.schedule, tuple(SCHEDULES)),
        ("optimizer", s.optimizer, ("adamw", "adamw8bit")),
        ("latents", s.latents, ("cache", "online")),
        ("text_states", s.text_states, ("cache", "online")),
        ("text_layer", s.text_layer, ("last", "penultimate")),
        ("sampler", s.sampler, tuple(SAMPLERS)),
    ):
        require(value in allowed, f"--{name} {value} is unknown; use one of {', '.join(allowed)}")
    fresh = [s.vae, s.text, s.unet]
    require(
        all(f is not None for f in fresh) if s.model is None else s.text is None and s.unet is None,
        "give either --model (with --vae to replace its autoencoder), or all of --vae, --text and --unet",
    )


def start(s: Settings) -> Diffusion:
    """The parts that training starts from."""
    return load_parts(
        model=s.model,
        vae=s.vae,
        text=s.text,
        unet=s.unet,
        prediction_type=s.prediction_type,
        zero_terminal_snr=s.loss.zero_terminal_snr,
        choice=TextChoice(s.text_encoder, s.text_layer, s.text_window, s.text_chunks),
    )


def trainable(s: Settings, parts: Diffusion) -> list[dict[str, Any]]:
    """Optimiser groups with their peak rates; everything else is frozen, adapters put in place."""
    for module, wanted in ((parts.unet, s.train.unet), (parts.text_encoder, s.train.text_encoder)):
        module.requires_grad_(wanted)
    if s.lora.rank:
        add_lora(
            parts.unet if s.train.unet and s.lora.unet else None,
            parts.text_encoder if s.train.text_encoder and s.lora.text_encoder else None,
            rank=s.lora.rank,
            alpha=s.lora.alpha,
        )
    if parts.projected:  # a new layer has to learn, whatever else does
        parts.unet.encoder_hid_proj.requires_grad_(True)
    if s.train.vae_decoder:
        for module in filter(None, (parts.vae.post_quant_conv, parts.vae.decoder)):
            module.requires_grad_(True)
    for name, parameter in parts.text_encoder.named_parameters():
        if name.startswith("pooler"):  # Stable Diffusion does not use it: it would never get a gradient
            parameter.requires_grad_(False)
    groups = []
    for module, rate in ((parts.unet, s.rate), (parts.text_encoder, s.text_rate), (parts.vae, s.decoder_rate)):
        learning = [p for p in module.parameters() if p.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": rate})
    return groups


def describe(s: Settings, parts: Diffusion, source: Any, read: LongTexts, processes: int) -> None:
    """What the run will do, in a few lines; with --dry-run also what it will need."""
    table = source.table
    train, val = ((table["split"] == split).sum() for split in ("train", "val"))
    print(
        f"{train} training and {val} validation images; {s.images} images to see = {s.images / train:.1f} epochs, "
        f"{-(-s.images // s.batch_size)} steps of {s.batch_size} on {processes} process(es)"
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
    if read.cut and s.composed < 1:
        print("warning: cut texts lose their ends; raise --text_chunks or choose another text encoder", flush=True)
    if s.text_states == "cache" and s.composed > 0:
        print("text states are not cached: texts composed afresh differ in every epoch")
    if s.dry_run:
        chunks, window = parts.reader.chunks, parts.reader.window
        side = parts.unet.config.sample_size
        cuda = torch.cuda.is_available()
        device = estimate.device_name(torch.device("cuda" if cuda else "cpu"))
        needs = estimate.estimate(
            parts.unet,
            parts.text_encoder,
            parts.vae,
            batch_per_device=s.batch_size // processes // s.accumulate,
            latent_shape=(parts.vae.config.latent_channels, side, side),
            text_shape=(chunks, window),
            precision=s.precision,
            optimizer=s.optimizer,
            gradient_checkpointing=s.gradient_checkpointing,
            latents_online=s.latents == "online",
            text_online=s.text_states == "online" or s.composed > 0,
            accumulate=s.accumulate,
            processes=processes,
            images=len(table),
            texts=table["text"].nunique(),
        )
        rate = estimate.measured_rate(
            Path(__file__).parents[1] / "benchmarks" / "results", device=device, flops=needs.flops, processes=processes
        )
        memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
        print("\n".join(estimate.describe(needs, images=s.images, rate=rate, device_memory=memory)))


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


def save_result(s: Settings, parts: Diffusion, labels: Sequence[Labels], texts: Sequence[str], images: int) -> None:
    """Write ``OUT/pipeline`` and, where adapters were trained, ``OUT/lora``; the pipeline has them merged in."""
    adapted = [
        module if s.lora.rank and wanted and lora else None
        for module, wanted, lora in (
            (parts.unet, s.train.unet, s.lora.unet),
            (parts.text_encoder, s.train.text_encoder, s.lora.text_encoder),
        )
    ]
    if any(module is not None for module in adapted):
        save_lora(s.out / "lora", *adapted)
        whole = (s.train.text_encoder and adapted[1] is None) or (s.train.unet and adapted[0] is None)
        if whole or parts.projected or s.train.vae_decoder or s.text_encoder not in (None, "clip"):
            print(f"{s.out / 'lora'} holds the adapters only; what else is new is in {s.out / 'pipeline'}")
        for module in adapted:
            if module is not None:
                merge_lora(module)
    facts = {
        "name": s.name,
        "images_seen": images,
        "training_images": len(texts),
        "defaults": {"steps": s.steps, "guidance": s.guidance, "sampler": s.sampler},
        "vocabulary": seen_words(labels, texts, s.composed),
    }
    parts.save(s.out / "pipeline", facts)


def show(s: Settings, parts: Diffusion, path: Path, device: torch.device) -> None:
    """Draw the sample grid with the model as it is now."""
    model = parts.on(device)
    model.unet.eval()
    settings = {"steps": s.steps, "guidance": s.guidance, "sampler": s.sampler}
    samples = list(generate(model, list(s.prompts), seed=0, num_images=2, batch_size=16, **settings))
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
