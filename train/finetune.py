"""Train or fine-tune a Stable Diffusion pipeline on chest X-rays with their texts.

    accelerate launch train/finetune.py --config train/configs/quickstart.yaml

Starts from any Stable Diffusion pipeline (a name, a folder or a hub id: `model`), or from nothing but an autoencoder
and a text encoder (`vae`, `text`, `unet`). Writes ``OUT/pipeline``, an ordinary diffusers pipeline, checkpoints, sample
grids and TensorBoard logs. The same command again continues a run that was stopped, to the same weights.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from roentgen import diffusion, errors
from roentgen.data.dataset import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.images import make_grid, save_image, to_autoencoder
from roentgen.models.classifier import load_classifier
from roentgen.models.text_encoders import tokenize
from roentgen.pipeline import generate
from roentgen.training import conditioning
from roentgen.training.assembly import Parts, as_model, load_parts, save_pipeline
from roentgen.training.fast_norm import use_fast_group_norm
from roentgen.training.latents import cached_latents
from roentgen.training.settings import as_dict, parse_settings, require, require_writable
from roentgen.training.state import EMA, Checkpoints, batch_generator, batch_indices, cosine_rate


@dataclass(frozen=True)
class Settings:
    """Settings of the fine-tuning recipe; every count is in images seen.

    Args:
        manifest: manifest with `train` and `val` images.
        out: run folder.
        model: pipeline to start from (name, folder or hub id); leave out to start from `vae`, `text` and `unet`.
        vae: autoencoder folder, when starting from nothing (see train/autoencoder.py).
        text: folder with tokenizer/ and text_encoder/, when starting from nothing (see train/text_encoder.py).
        unet: configuration of a new UNet2DConditionModel, when starting from nothing.
        name: name that the result carries.
        images: length of the learning-rate schedule.
        until: images after which to stop, when that is before the schedule's end.
        batch_size: images a step, over all processes and accumulated parts.
        accumulate: parts into which each process splits its share of the batch, to save memory.
        train_unet: train the U-Net.
        train_text_encoder: train the text encoder.
        rate: peak learning rate of the U-Net (AdamW).
        text_rate: peak learning rate of the text encoder.
        warmup: images of linear warm-up.
        caption_dropout: share of empty texts, for classifier-free guidance.
        composed: share of texts composed afresh from the labels instead of the manifest's text.
        balance: 0 draws images as they come, 1 every finding equally often.
        prediction_type: epsilon or v_prediction (default: that of the pipeline).
        min_snr_gamma: min-SNR loss weight; null for none.
        reward: folder of a classifier (train/classifier.py) whose likelihood of the text is raised.
        reward_weight: weight of that term.
        reward_positive: weight of findings that a text names against those it does not.
        ema_halflife: half-life of the weight average.
        precision: bf16, fp16 or no.
        gradient_checkpointing: trade time for memory in the U-Net.
        seed: seed of order, noise, timesteps and texts.
        log_every: images between log lines.
        validate_every: images between validation losses (fixed noise and timesteps).
        sample_every: images between sample grids.
        checkpoint_every: images between checkpoints.
        prompts: prompts of the sample grid.
        steps: sampling steps of the grid, and default of the saved pipeline.
        guidance: guidance scale of the grid, and default of the saved pipeline.
        cache: folder for decoded images and latents (default OUT/cache).
        dry_run: print what would be done and stop.
    """

    manifest: Path
    out: Path
    model: str | None = None
    vae: Path | None = None
    text: Path | None = None
    unet: dict[str, Any] | None = None
    name: str = "finetuned"
    images: int = 10_000
    until: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    train_unet: bool = True
    train_text_encoder: bool = True
    rate: float = 5e-5
    text_rate: float = 1e-5
    warmup: int = 500
    caption_dropout: float = 0.1
    composed: float = 0.0
    balance: float = 0.0
    prediction_type: str | None = None
    min_snr_gamma: float | None = 5.0
    reward: Path | None = None
    reward_weight: float = 0.0
    reward_positive: float = 4.0
    ema_halflife: float = 10_000
    precision: str = "bf16"
    gradient_checkpointing: bool = False
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
    steps: int = 25
    guidance: float = 4.0
    cache: Path | None = None
    dry_run: bool = False


# Settings that may change between a run and its continuation.
FREE = frozenset(
    {
        "until",
        "out",
        "manifest",
        "cache",
        "log_every",
        "validate_every",
        "sample_every",
        "checkpoint_every",
        "prompts",
        "dry_run",
        "accumulate",
        "gradient_checkpointing",
        "name",
        "steps",
        "guidance",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="train/finetune.py", description=(__doc__ or "").splitlines()[0])
    check(s)
    accelerator = Accelerator(mixed_precision=s.precision)
    pieces = accelerator.num_processes * s.accumulate
    require(
        s.batch_size % pieces == 0,
        f"--batch_size {s.batch_size} must be a multiple of processes x --accumulate ({pieces})",
    )

    # Start: a pipeline's parts, the data's labels.
    table = read_manifest(s.manifest, splits=["train", "val"])
    train, val = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    require(len(train) > 0 and len(val) > 0, f"--manifest {s.manifest} needs rows in the splits train and val")
    torch.manual_seed(s.seed)
    parts = load_parts(model=s.model, vae=s.vae, text=s.text, unet=s.unet, prediction_type=s.prediction_type)
    kind = parts.scheduler.config.prediction_type
    rows = conditioning.manifest_labels(train)
    weights = conditioning.balanced_weights(train, s.balance)
    ids_val, _ = tokenize(parts.tokenizer, val["text"].tolist())
    cut = tokenize(parts.tokenizer, train["text"].tolist())[1] if s.composed < 1 else 0
    groups = trainable(s, parts)
    if accelerator.is_main_process:
        describe(s, parts, len(train), len(val), cut, accelerator)
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")

    # Latents, once for the whole run.
    cache = s.cache or s.out / "cache"
    size = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    with accelerator.main_process_first():
        pixels = load_pixels(table["image"].tolist(), size=size, cache=cache).pixels
        everything = cached_latents(parts.vae, pixels, cache=cache, device=accelerator.device)
    data, held_out = (everything.take((table["split"] == split).to_numpy()) for split in ("train", "val"))
    scale = parts.vae.config.scaling_factor
    abar = diffusion.cumulative_alphas(parts.scheduler).to(accelerator.device)
    loss_weight = diffusion.min_snr_weights(kind, abar, s.min_snr_gamma)

    # Models, optimiser, average, and the state of an earlier run.
    if accelerator.device.type == "cpu":
        use_fast_group_norm(parts.unet)
    parts.unet.to(memory_format=torch.channels_last)
    if s.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    parts.unet.train()
    parts.text_encoder.to(accelerator.device)
    parts.unet.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        groups, betas=(0.9, 0.99), weight_decay=0.01, fused=accelerator.device.type in ("cuda", "cpu")
    )
    unet = accelerator.prepare(parts.unet) if s.train_unet else parts.unet
    text_encoder = accelerator.prepare(parts.text_encoder) if s.train_text_encoder else parts.text_encoder
    optimizer = accelerator.prepare(optimizer)
    modules = {"unet": parts.unet, "text_encoder": parts.text_encoder}
    ema = EMA(modules.values(), halflife=s.ema_halflife)
    checkpoints = Checkpoints(s.out / "checkpoints")
    settings = as_dict(s)
    images, end = 0, min(s.images, s.until or s.images)
    saved = checkpoints.latest()
    if saved is not None:
        checkpoints.check_same(saved["settings"], settings, free=FREE)
        for key, module in modules.items():
            module.load_state_dict(saved[key])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        images = saved["images"]
        accelerator.print(f"continuing at {images} images")
    judge, judged, preview = None, [], None
    if s.reward is not None:
        # The classifier reads small grey images: a linear map shows it the latents.
        classifier = load_classifier(s.reward)
        judge, judged = classifier.net.requires_grad_(False).to(accelerator.device), classifier.findings
        shown = slice(None, None, max(1, len(table) // 500))
        small = load_pixels(table["image"].tolist()[shown], size=classifier.size).pixels
        preview = conditioning.fit_preview(torch.from_numpy(everything.mean[shown]).float(), to_autoencoder(small))
        preview.to(accelerator.device)
    log = SummaryWriter(s.out / "log") if accelerator.is_main_process else None

    local = s.batch_size // pieces
    first_part = accelerator.process_index * s.accumulate
    started, images_then = time.perf_counter(), images
    running: list[torch.Tensor] = []
    bar = tqdm(total=end, initial=images, unit="img", file=sys.stderr, disable=not accelerator.is_main_process)
    while images < end:
        # The batch depends on the seed and its number alone: not on processes, accumulation or earlier batches.
        number = images // s.batch_size
        chosen = batch_indices(weights, len(train), size=s.batch_size, seed=s.seed, batch=number)
        generator = batch_generator(s.seed, number)
        shape = (s.batch_size, *data.mean.shape[1:])
        noise, posterior_noise = (
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
        )
        t = diffusion.stratified_timesteps(s.batch_size, len(abar), generator)
        seeds = torch.randint(0, 2**62, (s.batch_size,), generator=generator).tolist()
        texts = conditioning.batch_texts(
            rows, train["text"], chosen.tolist(), seeds=seeds, composed=s.composed, dropout=s.caption_dropout
        )
        ids, _ = tokenize(parts.tokenizer, texts)
        picked = chosen.numpy()
        clean = (
            torch.from_numpy(data.mean[picked]).float() + torch.from_numpy(data.std[picked]).float() * posterior_noise
        )
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(images, peak=group["peak"], warmup=s.warmup, total=s.images, floor=0.02)

        for part in range(first_part, first_part + s.accumulate):
            mine = slice(part * local, (part + 1) * local)
            x0 = (clean[mine] * scale).to(accelerator.device)
            eps, step = noise[mine].to(accelerator.device), t[mine].to(accelerator.device)
            xt = diffusion.add_noise(x0, eps, abar, step)
            with accelerator.autocast():
                states = text_encoder(ids[mine].to(accelerator.device)).last_hidden_state
                output = unet(xt.contiguous(memory_format=torch.channels_last), step, states).sample.float()
            goal = diffusion.target(kind, x0, eps, abar, step)
            error = (output - goal).square().mean((1, 2, 3))
            loss = (loss_weight[step] * error).mean()
            likelihood = torch.zeros_like(error)
            if judge is not None and preview is not None:
                # At large t noise hides the findings and the text must supply them; at small t the estimate shows
                # them already and the likelihood is flat. The weight is that of the diffusion loss.
                said = [
                    x.to(accelerator.device)
                    for x in conditioning.reward_targets(texts[mine], [rows[i] for i in chosen[mine].tolist()], judged)
                ]
                estimate = preview(diffusion.estimate_x0(kind, xt, output, abar, step) / scale)
                with accelerator.autocast():
                    likelihood = conditioning.reward_loss(judge, estimate, *said, positive_weight=s.reward_positive)
                loss = loss + s.reward_weight * (loss_weight[step] * likelihood.float()).mean()
            accelerator.backward(loss / s.accumulate)
            running.append(torch.stack([error.detach().mean(), loss.detach(), likelihood.detach().float().mean()]))
        accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        images += s.batch_size
        ema.update(images, s.batch_size)
        bar.update(s.batch_size)

        done = images >= end
        due = {
            every: done or images % every < s.batch_size
            for every in (s.log_every, s.validate_every, s.sample_every, s.checkpoint_every)
        }
        if accelerator.is_main_process and due[s.log_every]:
            level, total, missed = torch.stack(running).mean(0).tolist()
            require(
                np.isfinite(total),
                f"loss is not finite at image {images}; the last checkpoint in {s.out} is good",
            )
            speed = (images - images_then) / (time.perf_counter() - started)
            left = (end - images) / speed / 60
            print(
                f"{images} images, error {level:.4f}, loss {total:.4f}, "
                f"reward loss {missed:.4f}, {speed:.1f} images/s, {left:.0f} min left",
                flush=True,
            )
            for key, value in (
                ("train/error", level),
                ("train/loss", total),
                ("train/reward_loss", missed),
                ("train/images_per_second", speed),
            ):
                log.add_scalar(key, value, images)
            running.clear()
        if accelerator.is_main_process and due[s.validate_every]:
            ema.swap()
            level = validation_error(parts, held_out, ids_val, scale, abar, kind, accelerator.device)
            ema.swap()
            print(f"{images} images, validation error {level:.4f}", flush=True)
            log.add_scalar("val/error", level, images)
        if accelerator.is_main_process and due[s.sample_every]:
            ema.swap()
            show(s, parts, s.out / "samples" / f"{images:09d}.png", accelerator.device)
            ema.swap()
        if accelerator.is_main_process and due[s.checkpoint_every]:
            states_now = {key: module.state_dict() for key, module in modules.items()}
            checkpoints.save(
                images,
                {
                    **states_now,
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "settings": settings,
                },
            )
    bar.close()

    if accelerator.is_main_process:
        ema.swap()
        words = seen_words(rows, train["text"], s.composed)
        facts = {
            "name": s.name,
            "images_seen": images,
            "training_images": len(train),
            "defaults": {"steps": s.steps, "guidance": s.guidance, "sampler": "dpm++"},
            "vocabulary": words,
        }
        save_pipeline(s.out / "pipeline", parts, facts)
        (s.out / "training.json").write_text(
            json.dumps(
                {
                    "settings": settings,
                    "images": images,
                    "seconds_this_run": round(time.perf_counter() - started),
                },
                indent=1,
            )
        )
        print(s.out / "pipeline")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def check(s: Settings) -> None:
    """Settings that no type can rule out."""
    require(
        s.images > 0 and s.batch_size > 0 and s.accumulate > 0,
        "--images, --batch_size and --accumulate must be positive",
    )
    require(
        s.train_unet or s.train_text_encoder,
        "--train_unet and --train_text_encoder are both false: nothing to train",
    )
    require(
        0 <= s.caption_dropout < 1 and 0 <= s.composed <= 1,
        "--caption_dropout and --composed must be in [0, 1]",
    )
    require(s.precision in ("bf16", "fp16", "no"), f"--precision {s.precision} is unknown; use bf16, fp16 or no")
    fresh = [s.vae, s.text, s.unet]
    require(
        (s.model is None) == all(f is not None for f in fresh) and (s.model is None or not any(fresh)),
        "give either --model, or all of --vae, --text and --unet",
    )


def trainable(s: Settings, parts: Parts) -> list[dict[str, Any]]:
    """Optimiser groups; everything else is frozen."""
    groups = []
    for module, wanted, rate in (
        (parts.unet, s.train_unet, s.rate),
        (parts.text_encoder, s.train_text_encoder, s.text_rate),
    ):
        module.requires_grad_(wanted)
        if wanted:
            groups.append({"params": list(module.parameters()), "peak": rate, "lr": rate})
    # CLIP's pooled output is not used by Stable Diffusion; DDP wants to know of parameters without gradients.
    return groups


def describe(s: Settings, parts: Parts, train: int, val: int, cut: int, accelerator: Accelerator) -> None:
    """What the run will do, in a few lines."""
    count = {
        k: sum(p.numel() for p in m.parameters()) / 1e6
        for k, m in (("U-Net", parts.unet), ("text encoder", parts.text_encoder), ("autoencoder", parts.vae))
    }
    print(
        f"{train} training and {val} validation images; {s.images} images to see = {s.images / train:.1f} epochs, "
        f"{-(-s.images // s.batch_size)} steps of {s.batch_size} on {accelerator.num_processes} process(es)"
    )
    print(
        ", ".join(f"{k} {v:.1f} M" for k, v in count.items())
        + f"; {parts.scheduler.config.prediction_type}; window {parts.tokenizer.model_max_length} tokens"
    )
    if cut:
        print(
            f"warning: {cut} of {train} training texts ({cut / train:.1%}) are longer than the window and are cut",
            flush=True,
        )


@torch.no_grad()
def validation_error(
    parts: Parts,
    held_out: Any,
    ids: torch.Tensor,
    scale: float,
    abar: torch.Tensor,
    kind: str,
    device: torch.device,
) -> float:
    """Mean squared error on up to 128 validation images at fixed timesteps and with fixed noise."""
    chosen = np.linspace(0, len(held_out.mean) - 1, num=min(128, len(held_out.mean))).astype(int)
    generator = torch.Generator().manual_seed(0)
    t = ((torch.arange(len(chosen)) + 0.5) / len(chosen) * len(abar)).long()[
        torch.randperm(len(chosen), generator=generator)
    ]
    errors_ = []
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        x0 = (torch.from_numpy(held_out.mean[part]).float() * scale).to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        step = t[start : start + 32].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            states = parts.text_encoder(ids[part].to(device)).last_hidden_state
            output = parts.unet(diffusion.add_noise(x0, eps, abar, step), step, states).sample.float()
        errors_.append((output - diffusion.target(kind, x0, eps, abar, step)).square().mean((1, 2, 3)))
    return torch.cat(errors_).mean().item()


def show(s: Settings, parts: Parts, path: Path, device: torch.device) -> None:
    """Draw the sample grid with the model as it is now."""
    model = as_model(parts, s.name, device)
    samples = list(
        generate(model, list(s.prompts), seed=0, num_images=2, steps=s.steps, guidance=s.guidance, batch_size=16)
    )
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
