"""The U-Net of Stable Diffusion pipelines in plain torch: ``UNet2DConditionModel`` of diffusers, for sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roentgen.models.plain.blocks import Norm, Resample, Resnet, Transformer, TransformerBlock

Read = list[tuple[Tensor, Tensor]]
"""Keys and values of a text, one pair a layer that looks at it, in the order of the layers."""

# What another value in a configuration would change; a setting that is absent has the first value.
KNOWN: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu",),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    **dict.fromkeys(("class_embed_type", "addition_embed_type", "num_class_embeds", "time_embedding_dim"), (None,)),
    **dict.fromkeys(("time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim"), (None,)),
    **dict.fromkeys(("cross_attention_norm", "projection_class_embeddings_input_dim"), (None,)),
}
ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
"""Kinds of blocks, and whether they look at the text."""


class Stage(nn.Module):
    """One resolution. ``inner``: channels that each residual block takes, all to give ``outer``; ``heads``: of the
    transformer behind each, None without; ``resample``: "downsamplers", "upsamplers", or "" where none follows."""

    def __init__(
        self, inner: list[int], outer: int, *, heads: int | None, resample: str, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        groups, eps = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
        time = 4 * config["block_out_channels"][0]
        self.resnets = nn.ModuleList([Resnet(one, outer, groups=groups, eps=eps, time=time) for one in inner])
        self.attentions = nn.ModuleList([] if heads is None else [_transformer(outer, heads, config) for _ in inner])
        if resample:
            setattr(self, resample, nn.ModuleList([Resample(outer, up=resample == "upsamplers")]))
        self.resample = resample

    def layers(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """Each residual block with the transformer behind it, if it has one."""
        return list(zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True))


class Middle(nn.Module):
    """``UNetMidBlock2DCrossAttn``: a residual block, a transformer, a residual block."""

    def __init__(self, channels: int, *, heads: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        groups, eps = config.get("norm_num_groups", 32), config.get("norm_eps", 1e-5)
        time = 4 * config["block_out_channels"][0]
        self.attentions = nn.ModuleList([_transformer(channels, heads, config)])
        self.resnets = nn.ModuleList([Resnet(channels, channels, groups=groups, eps=eps, time=time) for _ in range(2)])


class TimeEmbedding(nn.Module):
    """Sines and cosines of a timestep through two layers: (1,) -> (1, 4 C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1, self.linear_2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)

    def forward(self, step: Tensor) -> Tensor:
        half = self.channels // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=step.device) / half)
        angles = step.float().reshape(1, 1) * rates
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(self.linear_1.weight.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return out


class UNet(nn.Module):
    """The network of one pipeline, from its configuration; weights by ``load_state_dict``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{"sample_size": None, "in_channels": 4, "out_channels": 4, **config})
        widths, count = list(config["block_out_channels"]), config.get("layers_per_block", 2)
        heads = config.get("attention_head_dim", 8)
        heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
        first, last = widths[0], widths[-1]
        self.conv_in = nn.Conv2d(self.config.in_channels, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first)
        hidden = config.get("encoder_hid_dim")
        self.encoder_hid_proj = None if hidden is None else nn.Linear(hidden, config["cross_attention_dim"])
        self.down_blocks = nn.ModuleList()
        for number, kind in enumerate(config["down_block_types"]):
            inner = [widths[max(number - 1, 0)], *[widths[number]] * (count - 1)]
            more: dict[str, Any] = {"heads": heads[number] if ATTENDS[kind] else None, "config": config}
            resample = "downsamplers" if number < len(widths) - 1 else ""
            self.down_blocks.append(Stage(inner, widths[number], resample=resample, **more))
        self.mid_block = Middle(last, heads=heads[-1], config=config)
        self.up_blocks = nn.ModuleList()
        for number, kind in enumerate(config["up_block_types"]):
            place = len(widths) - 1 - number  # of the stage on the way down that its skips come from
            above, below = widths[min(place + 1, len(widths) - 1)], widths[max(place - 1, 0)]
            given = [above, *[widths[place]] * count]
            skipped = [*[widths[place]] * count, below]
            inner = [one + other for one, other in zip(given, skipped, strict=True)]
            more = {"heads": heads[place] if ATTENDS[kind] else None, "config": config}
            self.up_blocks.append(Stage(inner, widths[place], resample="upsamplers" if place else "", **more))
        self.conv_norm_out = Norm(config.get("norm_num_groups", 32), first, config.get("norm_eps", 1e-5), silu=True)
        self.conv_out = nn.Conv2d(first, self.config.out_channels, 3, padding=1)

    @classmethod
    def fits(cls, config: Mapping[str, Any]) -> bool:
        """Whether this is the network that a configuration of diffusers describes."""
        kinds = [*config.get("down_block_types", ("",)), *config.get("up_block_types", ("",))]
        numbers = [config.get(name) for name in ("cross_attention_dim", "layers_per_block", "norm_num_groups")]
        heads = config.get("attention_head_dim", 8)
        numbers += heads if isinstance(heads, list) else [heads]
        return (
            all(config[key] in values for key, values in KNOWN.items() if key in config)
            and all(kind in ATTENDS for kind in kinds)
            and all(type(number) is int for number in numbers)
            and config.get("transformer_layers_per_block", 1) == 1
            and isinstance(config.get("block_out_channels"), list)
        )

    def read(self, states: Tensor) -> Read:
        """What every layer takes from text states (N, L, D): it is the same at all steps of a sampling."""
        states = states if self.encoder_hid_proj is None else self.encoder_hid_proj(states)
        return [block.attn2.read(states) for block in self.modules() if isinstance(block, TransformerBlock)]

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor | Read, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The prediction (N, C, h, w) for latents at one timestep; the text as states or as ``read`` gave it."""
        text = encoder_hidden_states
        read = self.read(text) if isinstance(text, Tensor) else list(text)
        time = F.silu(self.time_embedding(torch.as_tensor(timestep, device=sample.device)))
        down, middle, up = (cast(Any, part) for part in (self.down_blocks, self.mid_block, self.up_blocks))
        x = self.conv_in(sample)
        skips = [x]
        for stage in down:
            for resnet, transformer in stage.layers():
                x = resnet(x, time)
                x = x if transformer is None else transformer(x, read)
                skips.append(x)
            if stage.resample:
                x = stage.downsamplers[0](x)
                skips.append(x)
        x = middle.resnets[0](x, time)
        x = middle.attentions[0](x, read)
        x = middle.resnets[1](x, time)
        for stage in up:
            for resnet, transformer in stage.layers():
                x = resnet(torch.cat([x, skips.pop()], dim=1), time)
                x = x if transformer is None else transformer(x, read)
            if stage.resample:
                x = stage.upsamplers[0](x, skips[-1].shape[2:])
        return (self.conv_out(self.conv_norm_out(x)),)


def _transformer(channels: int, heads: int, config: Mapping[str, Any]) -> Transformer:
    return Transformer(
        channels,
        config["cross_attention_dim"],
        heads,
        groups=config.get("norm_num_groups", 32),
        linear=config.get("use_linear_projection", False),
    )
