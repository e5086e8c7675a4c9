"""What makes training faster on the device at hand, and changes nothing but rounding."""

from __future__ import annotations

import copy
import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Above this many latent positions the attention matrices of PyTorch's plain kernel no longer fit caches.
SMALL = 32 * 32


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back: a CPU step else spends its time in page faults.

    M_TRIM_THRESHOLD (-1) and M_MMAP_MAX (-4) of mallopt(3). Nothing happens with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)
        mallopt(-4, 0)


def attention(device: torch.device, positions: int) -> AbstractContextManager[Any]:
    """A context with the fastest attention kernel: on CPUs and small latents the plain one, else PyTorch's choice."""
    if device.type == "cpu" and positions <= SMALL:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def frozen_copy(module: Any, device: torch.device, precision: str) -> Any:
    """A copy of a frozen ``module`` on ``device`` in the dtype it is used in, so that no step converts its weights.

    bfloat16 for fp16 too: Stable Diffusion's autoencoders overflow in float16.
    """
    made = copy.deepcopy(module).to(device, torch.float32 if precision == "no" else torch.bfloat16)
    return made.to(memory_format=torch.channels_last).requires_grad_(False).eval()
