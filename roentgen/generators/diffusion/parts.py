"""Which pipelines are text-to-image pipelines of latents. Light at import: no torch."""

from __future__ import annotations

import math
from typing import Any

from roentgen.errors import UserError


def check_parts(name: str, parts: dict[str, Any]) -> None:
    """UserError where the parts are not those of a text-to-image pipeline of latents."""
    vae, unet = parts["vae"].config, parts["unet"].config
    latents, takes, gives = vae.latent_channels, unet.in_channels, unet.out_channels
    if takes not in (latents, 2 * latents + 1):  # the latter inpaint: mask, and latents of what is outside it
        kind = "a model that edits images" if takes == 2 * latents else "no text-to-image model"
        raise UserError(
            f"--model {name}: {kind} (its U-Net takes {takes} channels where the latents have {latents}); "
            "pass a text-to-image pipeline"
        )
    if gives != latents:
        raise UserError(
            f"--model {name}: its U-Net gives {gives} channels for latents of {latents} (a learned variance); "
            "no sampler here reads that"
        )
    size = unet.sample_size
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**16 for side in sides):
        raise UserError(f"--model {name}: its U-Net's sample_size is {size!r}, which is no size; fetch the model again")
    scale = getattr(vae, "scaling_factor", None)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise UserError(f"--model {name}: its autoencoder's scaling_factor is {scale!r}; fetch the model again")
    if vae.out_channels not in (1, 3):
        raise UserError(f"--model {name}: its autoencoder has {vae.out_channels} channels; 1 or 3 can be saved")
