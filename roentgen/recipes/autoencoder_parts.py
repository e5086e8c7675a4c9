"""Settings of ``roentgen train autoencoder``, and what it prepares before its loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from roentgen import config as cfg
from roentgen.cache import kept
from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.generators.generate import load_model
from roentgen.images import from_autoencoder, to_autoencoder
from roentgen.models.autoencoder import losses as R
from roentgen.models.autoencoder import pca
from roentgen.models.autoencoder.channels import with_channels
from roentgen.models.loading import load_vae
from roentgen.recipes import Basics
from roentgen.training.trackers import Trackers


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
    decoder_from: Annotated[
        cfg.CountFromZero | None,
        "of the decoder, train this up block (from 0) and what comes after it; None: all of it",
    ] = None
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
    worst_places: Annotated[
        cfg.Share,
        "share of the places of a map, those that look least real, whose mean verdict counts as much as that of all: "
        "a blot that is small is seen (0: all alike)",
    ] = 0.0
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
    finest_band: Annotated[
        bool,
        "compare the finest band pixel by pixel, too; without it, features, adversary and spectrum alone teach detail",
    ] = True
    spectrum_weight: Annotated[
        cfg.Weight, "weight of the distance to the power spectrum of real images (roentgen.models.autoencoder.losses)"
    ] = 0.0
    spike_weight: Annotated[
        cfg.Weight, "weight of spikes in the decoder's last maps, which leave rings in white areas"
    ] = 0.0
    generator: Annotated[
        cfg.PathOrName | None,
        "diffusion model on these latents: the decoder sees as many crops of latents that it draws for training texts, "
        "which adversary and spectrum judge",
    ] = None
    generator_images: Annotated[cfg.Count, "latents that it draws, once, before training"] = 1_200
    generator_consistency: Annotated[cfg.Weight, "`consistency_weight` of those"] = 0.1
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


def trained_parameters(s: Settings, vae: Any) -> list[torch.nn.Parameter]:
    """The parameters of ``vae`` that learn; those before ``decoder_from`` are frozen. UserError on no such block."""
    if s.decoder_from is not None:
        decoder = vae.decoder
        if s.decoder_from >= len(decoder.up_blocks):
            raise UserError(f"--decoder-from {s.decoder_from}: the decoder has {len(decoder.up_blocks)} up blocks")
        vae.post_quant_conv.requires_grad_(False)
        for part in (decoder.conv_in, decoder.mid_block, *decoder.up_blocks[: s.decoder_from]):
            part.requires_grad_(False)
    return [p for p in vae.parameters() if p.requires_grad]


def generated_latents(s: Settings, texts: Sequence[str], cache: Path, device: torch.device) -> torch.Tensor:
    """Latents (N, C, h, w), float32, that ``generator`` draws for ``texts`` taken at random, as the decoder reads them.

    They are kept in ``cache``. UserError on a model of another family or of other latents, or on no text that it reads.
    """
    model: Any = load_model(str(s.generator), device=str(device))
    side = s.size // 2 ** (len(s.channels) - 1)
    if getattr(model, "latent_shape", None) != (s.latent_channels, side, side):
        raise UserError(f"--generator {s.generator}: its latents are not {s.latent_channels} x {side} x {side}")
    readable = [text for text in texts if text and model.batch_key(text) == 1]
    if not readable:
        raise UserError(f"--manifest {s.manifest}: --generator needs texts that are not empty")
    chosen = [readable[i] for i in np.random.default_rng(s.seed).integers(len(readable), size=s.generator_images)]

    def make() -> dict[str, np.ndarray]:
        drawn = []
        for at in tqdm(range(0, len(chosen), 16), desc="latents of the generator", unit="batch"):
            batch = chosen[at : at + 16]
            drawn.append(model.latents(batch, range(at, at + len(batch)), model.sampling()).float().cpu())
        return {"latents": (torch.cat(drawn) / model.vae.config.scaling_factor).numpy()}

    key = sha256("\n".join([str(model.info.hash), repr(model.sampling()), *chosen]))
    return torch.from_numpy(np.array(kept(cache, "generated-latents", key, make)["latents"]))
