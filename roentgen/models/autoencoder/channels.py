"""Grey and three-channel forms of one autoencoder: other people's tools expect three channels.

Both compute the same: the three-channel one reads a weighted mean of its input's channels and gives three equal ones.
"""

from __future__ import annotations

from typing import Any

import torch

# Near the eye's weights of red, green and blue, and exact in half precision with sum 1: grey stays what it is.
LUMINANCE = (0.25, 0.5, 0.25)


@torch.no_grad()
def with_channels(vae: Any, count: int) -> Any:
    """``vae`` with ``count`` channels (1 or 3) of input and output; ``vae`` itself where it has them already.

    One channel from three takes the sum over the input's channels and the mean of the output's, which is exact for
    those that ``with_channels(vae, 3)`` made, and what a grey image gets from any other.
    """
    from diffusers import AutoencoderKL

    if vae.config.in_channels == vae.config.out_channels == count:
        return vae
    state = dict(vae.state_dict())
    first = state["encoder.conv_in.weight"].sum(1, keepdim=True)
    last, bias = (state[f"decoder.conv_out.{name}"].mean(0, keepdim=True) for name in ("weight", "bias"))
    if count == 3:
        first = first * torch.tensor(LUMINANCE).to(first).view(1, 3, 1, 1)
        last, bias = last.repeat(3, 1, 1, 1), bias.repeat(3)
    state |= {"encoder.conv_in.weight": first, "decoder.conv_out.weight": last, "decoder.conv_out.bias": bias}
    other = AutoencoderKL.from_config(vae.config, in_channels=count, out_channels=count)
    other.load_state_dict(state)
    return other.to(dtype=vae.dtype, device=vae.device).train(vae.training).requires_grad_(False)


def to_grey(decoded: torch.Tensor) -> torch.Tensor:
    """Decoded images float32 (N, 1 or 3, H, W), nominally [-1, 1] -> (N, 1, H, W); colour becomes luminance."""
    if decoded.shape[1] == 1:
        return decoded
    red, green, blue = decoded.clamp(-1, 1).split(1, dim=1)  # clamp first, as a picture viewer would
    return 0.299 * red + 0.587 * green + 0.114 * blue
