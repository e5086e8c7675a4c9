"""Real images through a model's autoencoder and back: the best that a model which paints with it can do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roentgen import pipeline
from roentgen.errors import UserError


def image_size(model: pipeline.Model) -> int:
    """Side of the images that the model makes, in pixels."""
    _, height, width = model.latent_shape
    return int(min(height, width) * 2 ** (len(model.vae.config.block_out_channels) - 1))


def reconstruct(model: pipeline.Model, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (N, H, W) through the model's autoencoder (posterior mean) and back."""
    import torch

    from roentgen.images import from_autoencoder, to_autoencoder

    if model.vae.config.in_channels != 1:
        raise UserError(f"--model {model.name}: its autoencoder takes colour; a grey one is needed")
    with torch.inference_mode():
        pixels = to_autoencoder(images).to(model.device, model.dtype)
        latents = model.vae.encode(pixels).latent_dist.mode()
        return from_autoencoder(model.vae.decode(latents, return_dict=False)[0].float())
