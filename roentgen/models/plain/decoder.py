"""The decoder of Stable Diffusion's autoencoders in plain torch: half of ``AutoencoderKL`` of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from roentgen.models.plain.blocks import Attention, Norm, Resample, Resnet

# What another value in a configuration would change; a setting that is absent has the first value.
KNOWN: dict[str, tuple[Any, ...]] = {"act_fn": ("silu",), "latents_mean": (None,), "latents_std": (None,)}
EPS = 1e-6


class Autoencoder(nn.Module):
    """Latents to images. The encoder is left out: sampling has no use for it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        usual = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "scaling_factor": 0.18215}
        self.config = SimpleNamespace(**{**usual, **config})
        codes = self.config.latent_channels
        self.post_quant_conv = nn.Conv2d(codes, codes, 1) if config.get("use_post_quant_conv", True) else None
        self.decoder = Decoder(config, codes, self.config.out_channels)

    @classmethod
    def fits(cls, config: Mapping[str, Any]) -> bool:
        """Whether this is the decoder that a configuration of diffusers describes."""
        return (
            all(config[key] in values for key, values in KNOWN.items() if key in config)
            and all(kind == "UpDecoderBlock2D" for kind in config.get("up_block_types", ("",)))
            and isinstance(config.get("block_out_channels"), list)
        )

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Latents (N, C, h, w), as the encoder gave them, to images (N, channels, H, W), nominally [-1, 1]."""
        x = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return (self.decoder(x),)


class Decoder(nn.Module):
    """``Decoder`` of diffusers."""

    def __init__(self, config: Mapping[str, Any], codes: int, channels: int) -> None:
        super().__init__()
        widths, groups = config["block_out_channels"][::-1], config.get("norm_num_groups", 32)
        self.conv_in = nn.Conv2d(codes, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups=groups, attends=config.get("mid_block_add_attention", True))
        self.up_blocks = nn.ModuleList()
        for number, width in enumerate(widths):
            inner = [widths[max(number - 1, 0)], *[width] * config.get("layers_per_block", 1)]
            self.up_blocks.append(Stage(inner, width, groups=groups, up=number < len(widths) - 1))
        self.conv_norm_out = Norm(groups, widths[-1], EPS, silu=True)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for stage in self.up_blocks:
            x = stage(x)
        out: Tensor = self.conv_out(self.conv_norm_out(x))
        return out


class Stage(nn.Module):
    """``UpDecoderBlock2D``: residual blocks of ``inner`` to ``outer`` channels, and a doubling where ``up`` is set."""

    def __init__(self, inner: list[int], outer: int, *, groups: int, up: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(one, outer, groups=groups, eps=EPS) for one in inner])
        self.upsamplers = nn.ModuleList([Resample(outer, up=True)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """``UNetMidBlock2D``: a residual block, attention of one head among the pixels, a residual block."""

    def __init__(self, channels: int, *, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(channels, channels, groups=groups, eps=EPS) for _ in range(2)])
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)] if attends else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class PixelAttention(Attention):
    """Attention of one head among the pixels of a feature map (N, C, h, w), added to it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, bias=True)
        self.group_norm = Norm(groups, channels, EPS)

    def forward(self, x: Tensor, read: tuple[Tensor, Tensor] | None = None) -> Tensor:
        rows = super().forward(self.group_norm(x).flatten(2).transpose(1, 2), read)
        return x + rows.transpose(1, 2).unflatten(2, x.shape[2:])
