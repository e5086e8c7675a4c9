"""The loop that trains a VQ-GAN, for ``roentgen train tokenizer --kind vqgan``; no recipe of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import nn

from roentgen.config import BatchSize, Count, CountFromZero, Pixels, Range, Rate, Weight, require
from roentgen.data.images import ImageSource
from roentgen.generators.masked import vqgan as V
from roentgen.generators.masked.tokenizer import MOST_CODES, use
from roentgen.images import to_autoencoder
from roentgen.models.autoencoder.losses import pyramid_l1, random_crops
from roentgen.models.autoencoder.perceptual import hinge
from roentgen.training.checkpoints import Checkpoints
from roentgen.training.loop import descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import set_cosine
from roentgen.training.setup import make_accelerator, share_of_batch


@dataclass(frozen=True)
class Vq:
    """The VQ-GAN, where `kind` is vqgan; every count is in images."""

    channels: Annotated[
        tuple[Annotated[int, Range(1, 4096)], ...], "width of each level; the factor is 2 ** (levels - 1)"
    ] = (16, 32, 64, 128, 256)
    layers: Annotated[int, Range(1, 64), "residual blocks a level"] = 1
    norm_groups: Annotated[int, Range(1, 4096), "groups of the group norms"] = 16
    width: Annotated[int, Range(1, 4096), "channels of the latents and of the codes"] = 16
    codes: Annotated[int, Range(2, MOST_CODES), "codes of the codebook"] = 1024
    images: Annotated[Count, "images to see"] = 20_000
    until: Annotated[Count | None, "images after which to stop, when that is before the end"] = None
    batch_size: Annotated[BatchSize, "images a step, over all processes"] = 8
    crop: Annotated[Pixels, "side of the random training crop"] = 128
    rate: Annotated[Rate, "peak learning rate (Adam), cosine after the warm-up"] = 4e-4
    warmup: Annotated[CountFromZero, "images of linear warm-up"] = 400
    codes_weight: Annotated[Weight, "weight of the codebook's and the commitment loss"] = 1.0
    perceptual: Annotated[Weight, "weight of the perceptual loss"] = 0.5
    adversary: Annotated[Weight, "weight of the patch adversary"] = 0.1
    adversary_from: Annotated[CountFromZero, "images before it joins"] = 8_000
    revive_after: Annotated[Count, "images without use after which a code starts anew"] = 800
    precision: Annotated[Literal["bf16", "no"], "bf16 or no"] = "bf16"
    log_every: Annotated[Count, "images between log lines"] = 800
    checkpoint_every: Annotated[Count, "images between checkpoints"] = 4_000


FREE = frozenset({"until", "log_every", "checkpoint_every"})


def build(v: Vq, size: int) -> Any:
    """A new ``VQModel`` of one grey channel."""
    from diffusers import VQModel

    levels = len(v.channels)
    return VQModel(
        in_channels=1, out_channels=1, block_out_channels=tuple(v.channels), layers_per_block=v.layers,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=v.width, vq_embed_dim=v.width, num_vq_embeddings=v.codes, norm_num_groups=v.norm_groups,
        sample_size=size, mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip


def train_vqgan(v: Vq, source: ImageSource, out: Path, *, seed: int, settings: dict[str, Any]) -> Any:
    """The trained ``VQModel``. The same call again continues a run that was stopped, to the same weights."""
    factor = 2 ** (len(v.channels) - 1)
    require(v.crop % factor == 0, f"--vq.crop {v.crop}: must be a multiple of {factor}")
    require(v.crop <= source.size, f"--vq.crop {v.crop}: must be at most --size {source.size}")
    accelerator = make_accelerator(precision=v.precision)
    mine = share_of_batch(accelerator, v.batch_size, "--vq.batch-size")
    torch.manual_seed(seed)
    inner, critic = build(v, source.size), V.Patches()
    nn.init.normal_(inner.quantize.embedding.weight, std=1.0)  # as the latents' spread, not 1 / codes
    named, perceptual = V.perceptual_loss()
    accelerator.print(f"perceptual loss: {named}")
    options: dict[str, Any] = {"betas": (0.5, 0.9)}
    optimizer = torch.optim.Adam(inner.parameters(), v.rate, **options)
    against = torch.optim.Adam(critic.parameters(), v.rate, **options)
    network, critic_, optimizer, against = accelerator.prepare(V.Vqgan(inner), critic, optimizer, against)
    checkpoints, end = Checkpoints(out / "checkpoints"), min(v.images, v.until or v.images)
    parts = {"model": inner, "critic": critic, "optimizer": optimizer, "against": against}
    saved = checkpoints.resume(parts, settings, free=FREE)
    last_used, images = saved.get("last_used", torch.zeros(v.codes, dtype=torch.int64)), saved.get("images", 0)
    if saved:
        accelerator.print(f"continuing at {images} images")
    weights = torch.from_numpy(source.table["weight"].to_numpy(float)) if "weight" in source.table else None
    told: list[float] = []
    for step in steps(images, end, batch_size=v.batch_size, show=accelerator.is_main_process):
        chosen = batch_indices(weights, len(source.table), size=v.batch_size, seed=seed, batch=step.number)
        pixels = torch.from_numpy(source.read_many(chosen.numpy()))
        crops = random_crops(pixels, v.crop, batch_generator(seed, step.number))
        x = to_autoencoder(crops[mine]).to(accelerator.device)
        for one in (optimizer, against):
            set_cosine(one, step.before, peak=v.rate, warmup=v.warmup, total=v.images, floor=0.02)
        judged = v.adversary > 0 and step.before >= v.adversary_from

        with accelerator.autocast():
            output, code_loss, codes, latents = network(x)
        output = output.float()
        error = pyramid_l1(output, x).mean()
        loss = error + v.codes_weight * code_loss + v.perceptual * perceptual(output, x)
        if judged:
            critic.requires_grad_(False)
            loss = loss - v.adversary * critic_(output).mean()
            critic.requires_grad_(True)
        descend(accelerator, loss, optimizer, inner.parameters())
        if judged:
            accelerator.backward(hinge([critic_(x)], [critic_(output.detach())]))
            against.step()
            against.zero_grad()
        images = step.images
        # Every process sees all codes and latents, so that all revive the same ones.
        all_codes, all_latents = accelerator.gather(codes), accelerator.gather(latents)
        revived = V.revive(
            inner.quantize.embedding.weight, last_used, all_codes.cpu(), all_latents.float(), now=images,
            after=v.revive_after, seed=seed,
        )  # fmt: skip
        told.append(float(error.detach()))
        if accelerator.is_main_process and step.due(v.log_every):
            require(bool(np.isfinite(told).all()), f"the loss is not finite at image {images}; lower --vq.rate")
            share, perplexity = use(all_codes.cpu(), v.codes)
            print(
                f"{images} images, error {np.mean(told):.4f}, {share:.0%} of the codes in this batch, perplexity "
                f"{perplexity:.0f}, {revived} revived",
                flush=True,
            )
            told.clear()
        if accelerator.is_main_process and step.due(v.checkpoint_every):
            checkpoints.save_parts(images, parts, last_used=last_used, settings=settings)
    accelerator.wait_for_everyone()
    return inner.cpu().eval().requires_grad_(False)
