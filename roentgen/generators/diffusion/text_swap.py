"""Another text encoder for a trained U-Net: what the U-Net has learnt stays, at any width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError


def swap_text_encoder(unet: Any, text_encoder: Any, *, like: Tensor | None = None) -> bool:
    """Fit ``unet`` to the width of ``text_encoder``; True if it now has a projection, which has to be trained.

    An encoder as wide as the U-Net's cross-attention is plugged in directly. One of another width gets
    ``unet.encoder_hid_proj``, a linear map from its width to the U-Net's. That is diffusers' own mechanism, noted in
    the configuration, so that stock diffusers loads the pipeline too. A projection of an earlier swap is replaced, or
    removed where it is not needed. No other weight of the U-Net is touched.

    The projection starts as an orthogonal map (Saxe et al. 2014, arXiv 1312.6120), equal in every process, with no
    bias: it keeps apart what the encoder keeps apart, as far as the narrower side has room.

    Args:
        unet: ``UNet2DConditionModel``.
        text_encoder: the new encoder; only its configuration is read.
        like: states (..., D) of the old encoder for some texts. States of unit RMS, as a layer norm gives them, come
            out of the projection with the RMS that ``like`` has where the U-Net reads it; None: RMS 1.

    Raises:
        UserError: the U-Net conditions on something other than one text encoder.
    """
    kind, width = unet.config.encoder_hid_dim_type, unet.config.cross_attention_dim
    new = int(text_encoder.config.hidden_size)
    if kind not in (None, "text_proj") or not isinstance(width, int):
        raise UserError(
            f"--text-encoder: the U-Net reads {kind or f'widths {width}'}, not the states of one text encoder; "
            "use a Stable Diffusion 1.x or 2.x pipeline"
        )
    if new == width:
        unet.encoder_hid_proj = None
        unet.register_to_config(encoder_hid_dim=None, encoder_hid_dim_type=None)
        return False
    rms = 1.0
    if like is not None:
        with torch.no_grad():
            like = like.to(unet.device, unet.dtype)
            seen = like if unet.encoder_hid_proj is None else unet.encoder_hid_proj(like)
            rms = float(seen.float().square().mean().sqrt())
    projection = nn.utils.skip_init(nn.Linear, new, width)  # draws nothing from the global generator
    with torch.no_grad():
        # Orthonormal columns (width > new) keep the sum of squares, which is then shared by more outputs.
        gain = rms * max(1.0, width / new) ** 0.5
        nn.init.orthogonal_(projection.weight, gain, generator=torch.Generator().manual_seed(0))
        projection.bias.zero_()
    unet.encoder_hid_proj = projection.to(unet.device, unet.dtype)
    unet.register_to_config(encoder_hid_dim=new, encoder_hid_dim_type="text_proj")
    return True
