"""Train a KL autoencoder for chest X-rays (Rombach et al. 2022, section 3.1, one channel).

    roentgen train autoencoder --config mini-autoencoder --manifest data/openchest/manifest.csv --out runs/autoencoder
    accelerate launch -m roentgen train autoencoder --config mini-autoencoder --manifest MANIFEST --out runs/autoencoder

Writes ``OUT/vae`` (a diffusers ``AutoencoderKL`` with latents of mean 0 and overall sd 1), checkpoints, sample
grids and TensorBoard logs. The same command again continues a run that was stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL

from roentgen import config as cfg
from roentgen.config import as_dict, parse_settings, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import train_and_val
from roentgen.errors import UserError
from roentgen.files import new_files, require_writable, write_atomic
from roentgen.images import from_autoencoder, make_grid, save_image, to_autoencoder
from roentgen.models.autoencoder import losses as R
from roentgen.models.autoencoder import pca
from roentgen.models.autoencoder.channels import with_channels
from roentgen.models.autoencoder.fast_norm import use_fast_group_norm
from roentgen.models.loading import load_vae
from roentgen.provenance import portable
from roentgen.recipes import CONFIGS, Basics
from roentgen.training.checkpoints import Checkpoints
from roentgen.training.loop import descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import EMA, cosine_rate
from roentgen.training.setup import make_accelerator, share_of_batch
from roentgen.training.trackers import Log, Trackers


@dataclass(frozen=True, kw_only=True)
class Settings(Basics):
    """Settings of the autoencoder recipe; every count is in images."""

    size: Annotated[cfg.Pixels, "side of the square image in pixels"] = 256
    crop: Annotated[
        cfg.Pixels, "side of the random training crop; a convolutional autoencoder learns the same from crops, sooner"
    ] = 128
    channels: Annotated[
        tuple[Annotated[int, cfg.Range(1, 4096)], ...], "width of each level; the factor is 2 ** (levels - 1)"
    ] = (16, 32, 64, 128, 256)
    layers: Annotated[int, cfg.Range(1, 64), "residual blocks a level in the encoder (the decoder has one more)"] = 1
    groups: Annotated[int, cfg.Range(1, 4096), "groups of the group norms"] = 16
    latent_channels: Annotated[int, cfg.Range(1, 1024), "channels of the latents"] = 16
    encoder: Annotated[
        Literal["learned", "pca", "start"],
        "`learned`, `pca` for blockwise principal components, which need no training, or `start` to keep that "
        "of `start`, which must be such a projection: only the decoder learns",
    ] = "learned"
    whitening: Annotated[
        cfg.Share,
        "0 leaves the latents the pixels' spectrum, 1 gives every channel the same variance; with `start` the "
        "same of the variances that its latents have",
    ] = 0.5
    start: Annotated[
        Path | None, "autoencoder folder to start from instead of random weights (its shape must be the one set here)"
    ] = None
    images: Annotated[cfg.Count, cfg.Short("-n"), "length of the learning-rate schedule"] = 32_000
    until: Annotated[cfg.Count | None, "images after which to stop, when that is before the schedule's end"] = None
    batch_size: Annotated[cfg.BatchSize, "images a step, over all processes"] = 8
    rate: Annotated[cfg.Rate, "peak learning rate of AdamW"] = 1e-3
    warmup: Annotated[cfg.CountFromZero, "images of linear warm-up"] = 1_000
    kl_weight: Annotated[cfg.Weight, "weight of the KL term per latent element"] = 1e-3
    features_weight: Annotated[
        cfg.Weight,
        "weight of the difference in a frozen ImageNet network's features (roentgen.models.autoencoder.perceptual)",
    ] = 0.0
    adversary_weight: Annotated[cfg.Weight, "weight of the adversary on those features"] = 0.0
    consistency_weight: Annotated[
        cfg.Weight,
        "weight of the change that encoding the reconstruction again makes, in variances of the latents: "
        "detail that is added must not change what the latents say",
    ] = 0.0
    latent_noise: Annotated[
        cfg.Weight,
        "largest sd, over that of the latents, of noise added to the latents that the decoder sees: a "
        "generator's latents are never exact",
    ] = 0.0
    gain_jitter: Annotated[
        cfg.Share, "largest relative change of an image's contrast about its mean, drawn anew each time"
    ] = 0.0
    beta1: Annotated[cfg.ShareBelowOne, "first moment of AdamW; with an adversary .5 is usual"] = 0.9
    sharp_share: Annotated[
        cfg.Share | None, "share of the batch drawn from images stored at full `size` (None: as they come)"
    ] = None
    degrade: Annotated[cfg.Share, "share of those whose input, not target, is reduced to half resolution"] = 0.5
    ema_halflife: Annotated[cfg.HalfLife, "half-life of the weight average"] = 2_000
    precision: Annotated[Literal["bf16", "no"], "bf16 or no"] = "bf16"
    trackers: Trackers = ("tensorboard",)
    log_every: Annotated[cfg.Count, "images between log lines"] = 800
    sample_every: Annotated[cfg.Count, "images between reconstruction grids and validation"] = 8_000
    checkpoint_every: Annotated[cfg.Count, "images between checkpoints"] = 8_000


# Settings that may change between a run and its continuation.
FREE = frozenset(
    {"until", "out", "manifest", "cache", "trackers", "log_every", "sample_every", "checkpoint_every", "dry_run"}
)


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train autoencoder", about=__doc__, configs=CONFIGS)
    factor = 2 ** (len(s.channels) - 1)
    require(
        s.crop % factor == 0 and 0 < s.crop <= s.size,
        f"--crop must be a multiple of {factor}, at most --size",
    )
    require(s.encoder != "start" or s.start is not None, "--encoder start needs --start")
    require(
        s.encoder != "learned" or not (s.consistency_weight or s.latent_noise),
        "--consistency-weight and --latent-noise need --encoder pca or start",
    )
    accelerator = make_accelerator(precision=s.precision, trackers=s.trackers)
    mine = share_of_batch(accelerator, s.batch_size)

    # Data: images that hold detail at full size may be drawn more often than those that were stored smaller.
    train, val = train_and_val(s.manifest, allow_empty_text=True)
    if accelerator.is_main_process:
        print(
            f"{len(train)} training images, {len(val)} validation images; factor {factor}, "
            f"{s.latent_channels} latent channels; {s.images} images to see in batches of {s.batch_size}",
            flush=True,
        )
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    cache = s.cache or s.out / "cache"
    with accelerator.main_process_first():
        data = load_pixels(train["image"].tolist(), size=s.size, cache=cache)
        held_out = load_pixels(val["image"].tolist(), size=s.size, cache=cache)
    low_resolution = torch.from_numpy(data.native * 2 <= s.size)
    weights = draw_weights(train, low_resolution, s.sharp_share)

    # Model, optimiser, average.
    torch.manual_seed(s.seed)
    vae = start_vae(s)
    some = data.pixels[:: max(1, len(train) // 1000)]
    linear = projection(s, vae, some)
    variance = torch.ones(1, device=accelerator.device)  # of the latents, (1, C, 1, 1), where they are known
    if linear is not None:
        variance = linear.latent_std(some).square().view(1, -1, 1, 1).to(accelerator.device)
        # Latents are final from here on: a diffusion model may train on them while the decoder still learns.
        if accelerator.is_main_process:
            with new_files(s.out / "vae-initial") as made:
                vae.save_pretrained(made)
    use_fast_group_norm(vae).to(memory_format=torch.channels_last)
    trained = [p for p in vae.parameters() if p.requires_grad]
    betas = (s.beta1, 0.99 if s.beta1 > 0.5 else 0.95)
    optimizer = torch.optim.AdamW(trained, lr=s.rate, betas=betas, weight_decay=0.0)
    model, optimizer = accelerator.prepare(R.Autoencode(vae), optimizer)
    critic = None
    if s.features_weight or s.adversary_weight:
        critic = R.Critic(accelerator, features=s.features_weight, adversary=s.adversary_weight, rate=s.rate)
    ema = EMA([vae], halflife=s.ema_halflife)
    checkpoints = Checkpoints(s.out / "checkpoints")
    settings = as_dict(s)
    states = {"model": vae, "optimizer": optimizer, "ema": ema} | ({} if critic is None else {"critic": critic})
    end = min(s.images, s.until or s.images)
    images = checkpoints.resume(states, settings, free=FREE).get("images", 0)
    log = Log(s.trackers, s.out, as_dict(s)) if accelerator.is_main_process else None
    accelerator.print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.1f} M parameters; starting at {images} images")

    started, images_then = time.perf_counter(), images
    running: list[torch.Tensor] = []
    for step in steps(images, end, batch_size=s.batch_size, show=accelerator.is_main_process):
        # The batch: what it holds depends on the seed and its number alone.
        chosen = batch_indices(weights, len(train), size=s.batch_size, seed=s.seed, batch=step.number)
        generator = batch_generator(s.seed, step.number)
        picked = R.random_crops(torch.from_numpy(np.asarray(data.pixels[chosen.numpy()])), s.crop, generator)
        noise = torch.randn(s.batch_size, s.latent_channels, s.crop // factor, s.crop // factor, generator=generator)
        degraded = (torch.rand(s.batch_size, generator=generator) < s.degrade) & ~low_resolution[chosen]
        target = to_autoencoder(picked[mine].numpy()).to(accelerator.device)
        low = low_resolution[chosen][mine].to(accelerator.device)
        if s.gain_jitter:
            gain = 1 + s.gain_jitter * (2 * torch.rand(s.batch_size, 1, 1, 1, generator=generator) - 1)[mine]
            middle = target.mean((1, 2, 3), keepdim=True)
            target = ((target - middle) * gain.to(target.device) + middle).clamp(-1, 1)
        # A decoder that also sees half-resolution latents of sharp targets learns to draw the detail back in.
        degraded_here = degraded[mine].view(-1, 1, 1, 1).to(accelerator.device)
        source = torch.where(degraded_here, R.blur_by_two(target), target)

        # One step: reconstruction plus a light pull of the posterior towards N(0, 1).
        rate = cosine_rate(step.before, peak=s.rate, warmup=s.warmup, total=s.images, floor=0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # A frozen encoder is its projection: cheaper than running it, and the same to bf16 precision.
        code = linear.encode(source) if linear is not None else None
        seen = code
        if s.latent_noise and code is not None:
            strength = s.latent_noise * torch.rand(s.batch_size, 1, 1, 1, generator=generator)[mine].to(variance.device)
            extra = torch.randn(noise.shape, generator=generator)[mine].to(variance.device)
            seen = code + strength * variance.sqrt() * extra
        with accelerator.autocast():
            output, mean, logvar = model(
                source.contiguous(memory_format=torch.channels_last), noise[mine].to(accelerator.device), seen
            )
        error = R.reconstruction_loss(output.float(), target, low)
        loss = error.mean()
        parts: dict[str, torch.Tensor] = {}
        if s.encoder == "learned":
            loss = loss + s.kl_weight * R.gaussian_kl(mean.float(), logvar.float()).mean()
        if s.consistency_weight and linear is not None and code is not None:
            change = (linear.encode(output.float()) - code).square() / variance
            loss = loss + s.consistency_weight * change.mean()
            parts["consistency"] = change.detach().mean()
        if critic is not None:
            judged, said = critic.judge(output.float(), target, generator)
            loss = loss + judged
            parts.update(said)
        descend(accelerator, loss, optimizer, trained)
        if critic is not None:
            parts.update(critic.learn(rate))
        images = step.images
        ema.update(images, s.batch_size)
        running.append(error.detach().mean())

        if log is not None and step.due(s.log_every):
            level = torch.stack(running).mean().item()
            require(
                math.isfinite(level), f"loss is not finite at image {images}; the last checkpoint in {s.out} is good"
            )
            speed = (images - images_then) / (time.perf_counter() - started)
            others = "".join(f", {name} {float(value):.4f}" for name, value in parts.items())
            print(f"{images} images, error {level:.4f}{others}, rate {rate:.2e}, {speed:.1f} images/s", flush=True)
            log.add_scalar("train/error", level, images)
            log.add_scalar("train/images_per_second", speed, images)
            running.clear()
        # Before the pictures: whatever happens to them, the training is kept.
        if log is not None and step.due(s.checkpoint_every):
            checkpoints.save_parts(images, states, settings=settings)
        if log is not None and step.due(s.sample_every):
            ema.swap()
            before, after = reconstruct(vae, held_out.pixels[:16], accelerator.device, s.precision)
            ema.swap()
            missed = float(np.abs(before.astype(float) - after).mean())
            print(f"{images} images, validation error {missed:.2f} grey levels", flush=True)
            log.add_scalar("val/grey_levels", missed, images)
            grid = make_grid([*before[:8], *after[:8]], [], len(before[:8]))
            marks = {"synthetic": "true", "note": "real above, reconstruction below"}
            name = s.out / "samples" / f"{images:08d}.png"
            save_image(grid, name, format="png", provenance=marks, overwrite=True)

    # The finished autoencoder: averaged weights, latents whitened over training images.
    if accelerator.is_main_process:
        ema.swap()
        if s.encoder == "learned":
            shown = np.linspace(0, len(train) - 1, num=min(512, len(train))).astype(int)

            def encode(x: torch.Tensor) -> torch.Tensor:
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
                    mean: torch.Tensor = vae.encode(x.to(accelerator.device)).latent_dist.mean
                return mean

            mean, std = pca.latent_moments(encode, data.pixels[shown], batch_size=8)
            R.whiten_latents(vae, mean, std)
        with new_files(s.out / "vae") as made:
            vae.save_pretrained(made)
        seconds = time.perf_counter() - started
        told = {"settings": portable(settings), "images": images, "seconds_this_run": seconds}
        write_atomic(s.out / "training.json", json.dumps(told, indent=1).encode())
        print(s.out / "vae")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def draw_weights(train: pd.DataFrame, low_resolution: torch.Tensor, sharp: float | None) -> torch.Tensor | None:
    """How often each image is drawn (N,), up to a factor; None is all alike. ``sharp``: the setting ``sharp_share``."""
    own = torch.from_numpy(train["weight"].to_numpy(float)) if "weight" in train else torch.ones(len(train)).double()
    if sharp is None or not 0 < int(low_resolution.sum()) < len(train):
        return own if "weight" in train else None
    return own * torch.where(
        low_resolution, (1 - sharp) / (own * low_resolution).sum(), sharp / (own * ~low_resolution).sum()
    )


def start_vae(s: Settings) -> Any:
    """The ``AutoencoderKL`` that training starts from, of random weights or those of ``start``."""
    levels = len(s.channels)
    vae: Any = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=tuple(s.channels),
        layers_per_block=s.layers,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=s.latent_channels,
        norm_num_groups=s.groups,
        sample_size=s.size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    if s.start is not None:
        try:
            vae.load_state_dict(with_channels(load_vae(s.start), 1).state_dict())
        except RuntimeError:
            raise UserError(
                f"--start {s.start}: its shape is not that of --channels, --layers, --groups and --latent-channels"
            ) from None
    return vae


def projection(s: Settings, vae: Any, pixels: np.ndarray) -> pca.BlockPCA | None:
    """The linear map that the encoder of ``vae`` is set to or has, frozen; None for an encoder that learns.

    ``pixels`` (N, H, W) uint8 are images to fit it on.
    """
    if s.encoder == "learned":
        return None
    if s.encoder == "pca":
        block = 2 ** (len(s.channels) - 1)
        fitted = pca.fit(pixels, block=block, channels=s.latent_channels, whitening=s.whitening)
        pca.install(fitted, vae)
        return fitted
    linear = pca.recover(vae)
    if linear is None:
        raise UserError(f"--start {s.start}: its encoder is no projection; use --encoder learned")
    if s.whitening:
        std = linear.latent_std(pixels)
        scale = std**-s.whitening
        R.whiten_latents(vae, torch.zeros_like(scale), (std * scale).square().mean().sqrt() / scale)
        linear = pca.recover(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return linear


@torch.no_grad()
def reconstruct(vae: Any, pixels: np.ndarray, device: torch.device, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W) and its reconstruction from the posterior mean, uint8."""
    parts = []
    for start in range(0, len(pixels), 4):
        x = to_autoencoder(np.asarray(pixels[start : start + 4])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts.append(from_autoencoder(vae.decode(vae.encode(x).latent_dist.mode()).sample.float()))
    return np.asarray(pixels), np.concatenate(parts)
