"""What a run is set up with: accelerator, optimiser, attention kernel; what is not installed is one sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.attention import SDPBackend, sdpa_kernel

from roentgen.config import require
from roentgen.errors import UserError
from roentgen.files import explained
from roentgen.training.trackers import check_trackers

# Above this many latent positions the attention matrices of PyTorch's plain kernel no longer fit caches.
SMALL = 32 * 32


def make_accelerator(*, precision: str, accumulate: int = 1, trackers: Sequence[str] = ()) -> Accelerator:
    """The accelerator of a run, after comparing the recipe's settings with the environment and the launcher's.

    ``trackers`` are only looked for; ``trackers.Log`` starts them once there is something to tell.

    accelerate lets some of the launcher's settings win over the program's and others lose, without a word. Here a
    difference is an error. The launcher says mixed precision ``no`` both where that was asked for and where nothing
    was, so that ``no`` counts as nothing.

    Raises:
        UserError: mixed precision, gradient accumulation or torch.compile are asked for differently in two places, or
            a tracker is not installed.
    """
    check_trackers(trackers)
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    require(
        launcher in ("", "no", precision),
        f"--precision {precision}: accelerate's launcher or configuration says mixed precision {launcher} "
        f"(ACCELERATE_MIXED_PRECISION); ask for the same in both places",
    )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    require(
        steps in ("", str(accumulate)) or (steps == "1" and "ACCELERATE_USE_DEEPSPEED" in os.environ),
        f"--accumulate {accumulate}: accelerate's launcher or environment says {steps} "
        "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS); ask for the same in both places, or unset the variable",
    )
    if steps:  # DeepSpeed's launcher says 1 where nothing was asked for; accelerate lets the variable win
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(accumulate)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    require(
        backend in ("", "no"),
        f"--compile: accelerate's launcher or environment says {backend} (ACCELERATE_DYNAMO_BACKEND); "
        "leave it out there and use --compile",
    )
    made = Accelerator(mixed_precision=precision, gradient_accumulation_steps=accumulate)
    require(
        made.mixed_precision == precision and made.gradient_accumulation_steps == accumulate,
        f"--precision {precision}, --accumulate {accumulate}: accelerate's configuration made {made.mixed_precision} "
        f"and {made.gradient_accumulation_steps} of them; take them out of its file",
    )
    return made


def share_of_batch(accelerator: Accelerator, batch_size: int, flag: str = "--batch-size") -> slice:
    """The part of a batch that this process makes; UserError where it cannot be shared out evenly."""
    own, rest = divmod(batch_size, accelerator.num_processes)
    require(rest == 0, f"{flag} {batch_size} must be a multiple of the processes ({accelerator.num_processes})")
    return slice(accelerator.process_index * own, (accelerator.process_index + 1) * own)


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
    with explained(
        "--xformers: it does not work here", "leave the flag out", (ImportError, ValueError, NotImplementedError)
    ):
        unet.enable_xformers_memory_efficient_attention()


def attention(device: torch.device, latent_shape: tuple[int, ...]) -> AbstractContextManager[Any]:
    """A context with the fastest attention kernel: on CPUs and small latents the plain one, else PyTorch's choice."""
    if device.type == "cpu" and math.prod(latent_shape[1:]) <= SMALL:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
