"""Optimisers and attention kernels by name; what is not installed is one sentence."""

from __future__ import annotations

from typing import Any

import torch

from roentgen.config import require
from roentgen.errors import UserError


def make_optimizer(name: str, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """AdamW as RoentGen's recipe has it, or its 8-bit form."""
    options: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.01}
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=device.type in ("cuda", "cpu"), **options)
    require(device.type == "cuda", "--optimizer adamw8bit needs a CUDA GPU; use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "--optimizer adamw8bit needs the package bitsandbytes; install it with `pip install bitsandbytes`"
        ) from None
    return AdamW8bit(groups, **options)


def use_xformers(unet: Any) -> None:
    """Attention by xformers; a missing or unfit build is one sentence."""
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (ImportError, ModuleNotFoundError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--xformers: it does not work here ({reason}); leave the flag out") from None
