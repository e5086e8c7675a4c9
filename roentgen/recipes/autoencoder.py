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

import numpy as np
import torch

from roentgen.config import as_dict, parse_settings, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import train_and_val
from roentgen.files import new_files, require_writable, write_atomic
from roentgen.images import make_grid, save_image, to_autoencoder
from roentgen.models.autoencoder import losses as R
from roentgen.models.autoencoder import pca
from roentgen.models.autoencoder.fast_norm import use_fast_group_norm
from roentgen.provenance import portable
from roentgen.recipes import CONFIGS
from roentgen.recipes.autoencoder_parts import (
    FREE,
    Settings,
    draw_weights,
    generated_latents,
    projection,
    reconstruct,
    start_vae,
    trained_parameters,
)
from roentgen.training.checkpoints import Checkpoints
from roentgen.training.loop import descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import EMA, set_cosine
from roentgen.training.setup import make_accelerator, share_of_batch
from roentgen.training.trackers import Log


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
    require(
        s.generator is None or (s.encoder == "start" and not s.whitening),
        "--generator needs --encoder start and --whitening 0: its latents are those of --start",
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
    trained = trained_parameters(s, vae)
    betas = (s.beta1, 0.99 if s.beta1 > 0.5 else 0.95)
    optimizer = torch.optim.AdamW(trained, lr=s.rate, betas=betas, weight_decay=0.0)
    model, optimizer = accelerator.prepare(R.Autoencode(vae), optimizer)
    drawn: torch.Tensor | None = None  # latents of a generator
    if s.generator is not None:
        with accelerator.main_process_first():
            drawn = generated_latents(s, train["text"].tolist(), cache, accelerator.device)
    spikes = R.Spikes(vae.decoder) if s.spike_weight else None
    spectrum = R.SpectrumLoss(accelerator, s.crop) if s.spectrum_weight else None
    critic = None
    if s.features_weight or s.adversary_weight:
        critic = R.Critic(
            accelerator, features=s.features_weight, adversary=s.adversary_weight, rate=s.rate, worst=s.worst_places
        )
    ema = EMA([vae], halflife=s.ema_halflife)
    checkpoints = Checkpoints(s.out / "checkpoints")
    settings = as_dict(s)
    states = {"model": vae, "optimizer": optimizer, "ema": ema}
    states |= {name: part for name, part in (("critic", critic), ("spectrum", spectrum)) if part is not None}
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
        for one in (optimizer, *([] if critic is None else [critic.optimizer])):
            set_cosine(one, step.before, peak=s.rate, warmup=s.warmup, total=s.images, floor=0.02)
        # A frozen encoder is its projection: cheaper than running it, and the same to bf16 precision.
        code = linear.encode(source) if linear is not None else None
        seen = code
        if s.latent_noise and code is not None:
            strength = s.latent_noise * torch.rand(s.batch_size, 1, 1, 1, generator=generator)[mine].to(variance.device)
            extra = torch.randn(noise.shape, generator=generator)[mine].to(variance.device)
            seen = code + strength * variance.sqrt() * extra
        own_noise, said = noise[mine].to(accelerator.device), None
        if drawn is not None and seen is not None:  # what the generator says, beside what the images say
            taken = torch.randint(len(drawn), (s.batch_size,), generator=generator)
            said = R.random_crops(drawn[taken], s.crop // factor, generator)[mine].to(accelerator.device)
            seen, own_noise = torch.cat([seen, said]), torch.cat([own_noise, torch.zeros_like(said)])
        with accelerator.autocast():
            output, mean, logvar = model(source.contiguous(memory_format=torch.channels_last), own_noise, seen)
        output, generated = output[: len(target)].float(), output[len(target) :].float()
        error = R.reconstruction_loss(output, target, low if s.finest_band else torch.ones_like(low))
        loss = error.mean()
        parts: dict[str, torch.Tensor] = {}
        if s.encoder == "learned":
            loss = loss + s.kl_weight * R.gaussian_kl(mean.float(), logvar.float()).mean()
        if s.consistency_weight and linear is not None and code is not None:
            change = (linear.encode(output) - code).square() / variance
            loss = loss + s.consistency_weight * change.mean()
            parts["consistency"] = change.detach().mean()
        if said is not None and linear is not None:
            change = (linear.encode(generated) - said).square() / variance
            loss = loss + s.generator_consistency * change.mean()
        if critic is not None:
            judged, verdicts = critic.judge(output, target, generator, generated if said is not None else None)
            loss = loss + judged
            parts.update(verdicts)
        if spikes is not None:
            over = spikes()
            loss = loss + s.spike_weight * over
            parts["spikes"] = over.detach()
        if spectrum is not None:
            pulled, parts["spectrum"] = spectrum(target, [output] if said is None else [output, generated])
            loss = loss + s.spectrum_weight * pulled
        descend(accelerator, loss, optimizer, trained)
        if critic is not None:
            parts.update(critic.learn())
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
            rate = optimizer.param_groups[0]["lr"]
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
