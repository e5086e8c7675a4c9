"""Latents of a training set, encoded once and kept on disk under a key of their content."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import to_autoencoder


@dataclass(frozen=True)
class Latents:
    """Posterior ``mean`` and ``std``, both float16 (N, C, h, w), before the scaling factor."""

    mean: NDArray[np.float16]
    std: NDArray[np.float16]

    def take(self, chosen: NDArray[np.bool_]) -> Latents:
        """The rows where ``chosen`` (N,) is set."""
        return Latents(self.mean[chosen], self.std[chosen])


def load_vae(folder: Path) -> Any:
    """An ``AutoencoderKL`` from a diffusers folder, in evaluation mode, without gradients."""
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no autoencoder can be loaded from there ({str(error).splitlines()[0]})") from None
    return vae.eval().requires_grad_(False)


def fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def encode(vae: Any, pixels: NDArray[np.uint8], *, device: torch.device, batch_size: int = 8) -> Latents:
    """Latents of uint8 images (N, H, W); grey is repeated where the autoencoder takes three channels."""
    from tqdm import tqdm

    means, stds = [], []
    vae = vae.to(device)
    for start in tqdm(range(0, len(pixels), batch_size), desc="encoding latents", file=sys.stderr, leave=False):
        x = to_autoencoder(np.asarray(pixels[start : start + batch_size])).to(device)
        x = x.repeat(1, vae.config.in_channels, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
        means.append(posterior.mean.half().cpu().numpy())
        stds.append(posterior.std.half().cpu().numpy())
    return Latents(np.concatenate(means), np.concatenate(stds))


def cached_latents(vae: Any, pixels: NDArray[np.uint8], *, cache: Path, device: torch.device | None = None) -> Latents:
    """``encode`` with the result kept in ``cache``, keyed by the autoencoder's weights and the pixels.

    ``vae`` is a module or the folder of one.
    """
    if isinstance(vae, Path):
        vae = load_vae(vae)
    digest = hashlib.sha256(fingerprint(vae).encode())
    for start in range(0, len(pixels), 256):
        digest.update(np.ascontiguousarray(pixels[start : start + 256]).tobytes())
    path = cache / f"latents-{digest.hexdigest()[:20]}.npz"
    if not path.exists():
        result = encode(vae, pixels, device=device or torch.device("cpu"))
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}-{os.getpid()}.npz")
        np.savez(temporary, mean=result.mean, std=result.std)
        temporary.replace(path)
        return result
    with np.load(path) as stored:
        return Latents(stored["mean"], stored["std"])
