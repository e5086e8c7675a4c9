"""What a training run will need, before it runs: memory, disk, operations, hours.

Nothing is computed: one training step is walked through on PyTorch's meta device, where tensors have shapes and no
values, and every buffer that would be alive is counted. So the figures follow the real modules (LoRA, gradient
checkpointing, another text encoder) rather than a rule of thumb. Not in them: the device's own context, the
libraries' workspaces and the allocator's fragmentation, which come on top, and what torch.compile saves. Precisions are
those of CUDA's autocast; a CPU keeps other operations in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from roentgen.errors import UserError
from roentgen.files import explained
from roentgen.provenance import processor
from roentgen.training.meta import Autocast, encoding_peak, meta_copy, training_peak

DTYPES: dict[str, torch.dtype] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = ("adamw", "adamw8bit")
KEPT_CHECKPOINTS = 2  # roentgen.training.checkpoints.Checkpoints keeps as many
GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """Needs of a run.

    memory: bytes on one device at the worst moment of a step, by item. disk: bytes by item.
    flops: floating-point operations of forward and backward for one image, without recomputation.
    """

    memory: dict[str, int]
    disk: dict[str, int]
    flops: int

    @property
    def memory_total(self) -> int:
        """Bytes on one device."""
        return sum(self.memory.values())

    @property
    def disk_total(self) -> int:
        """Bytes on disk."""
        return sum(self.disk.values())


class Rate(NamedTuple):
    """Images a second, and the sentence that says where the figure comes from."""

    images_per_second: float | None
    origin: str


def estimate(
    unet: nn.Module,
    text_encoder: nn.Module,
    vae: nn.Module,
    *,
    batch_per_device: int,
    latent_shape: tuple[int, int, int],
    text_shape: tuple[int, int],
    train_unet: bool | None = None,
    train_text_encoder: bool | None = None,
    precision: str = "bf16",
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    ema: bool = True,
    latents_online: bool = False,
    text_online: bool = True,
    accumulate: int = 1,
    processes: int = 1,
    images: int = 0,
    texts: int | None = None,
) -> Estimate:
    """Memory, disk and operations of training ``unet`` and ``text_encoder``.

    Args:
        unet: UNet2DConditionModel; on any device, meta included. Modules are read, never changed.
        text_encoder: CLIP or BERT text model of transformers.
        vae: AutoencoderKL; its parameters that require gradients (the decoder's) are trained.
        batch_per_device: images that one device holds at once (after accumulation).
        latent_shape: channels, height, width of the latents.
        text_shape: chunks of a text, tokens in a chunk.
        train_unet: train all of the U-Net or nothing of it; None trains the parameters that require gradients (LoRA).
        train_text_encoder: the same for the text encoder.
        precision: bf16, fp16 (autocast around float32 weights) or no.
        optimizer: adamw (two float32 moments) or adamw8bit (bitsandbytes' blocks of 256 in 8 bits).
        gradient_checkpointing: recompute the U-Net's blocks in the backward pass.
        ema: keep a float32 average of the trained parameters on the device.
        latents_online: encode images in the loop; otherwise latents come from a cache on disk.
        text_online: encode texts in the loop; otherwise states come from a cache on disk.
        accumulate: parts of a batch, one after the other.
        processes: devices; more than one keeps a second copy of the gradients for the exchange (DDP).
        images: images in the training set, for the caches on disk.
        texts: distinct texts in the training set; None for one an image.

    Returns:
        ``Estimate``; parts that are on no device or disk are left out.
    """
    if precision not in DTYPES or optimizer not in OPTIMIZERS:
        raise ValueError(f"precision {precision!r} must be of {list(DTYPES)}, optimizer {optimizer!r} of {OPTIMIZERS}")
    net = meta_copy(unet, train_unet)
    encoder = meta_copy(text_encoder, train_text_encoder)
    decoder = meta_copy(vae, None)
    trained = [p for module in (net, encoder, decoder) for p in module.parameters() if p.requires_grad]
    learns_text, decodes = (any(p.requires_grad for p in module.parameters()) for module in (encoder, decoder))
    if not trained:
        raise ValueError("no parameter is trained")
    dtype = DTYPES[precision]

    walk = partial(
        training_peak,
        net,
        encoder if text_online or learns_text else None,
        decoder if decodes else None,
        batch=batch_per_device,
        shapes=(latent_shape, (*text_shape, encoder.config.hidden_size)),
        dtype=dtype,
        with_gradients=accumulate > 1,
    )
    operations, peak = _walked(net, walk, dtype, checkpointing=gradient_checkpointing)
    if latents_online:
        peak = max(peak, encoding_peak(meta_copy(vae, False), batch_per_device, latent_shape, dtype))
    resident = [net, *([encoder] if text_online or learns_text else []), *([vae] if latents_online or decodes else [])]
    memory = _memory(resident, trained, peak, optimizer=optimizer, ema=ema, shared=processes > 1)
    states = math.prod(text_shape) * encoder.config.hidden_size
    disk = {
        "latents": 0 if latents_online else images * 2 * math.prod(latent_shape) * 2,  # mean and deviation, float16
        "text states": 0 if text_online or learns_text else (images if texts is None else texts) * states * 2,
        f"{KEPT_CHECKPOINTS} checkpoints and one being written": (KEPT_CHECKPOINTS + 1) * _checkpoint(memory),
        "pipeline": sum(map(_module_size, (net, encoder, vae))),
    }
    return Estimate(_present(memory), _present(disk), operations // batch_per_device)


def _memory(
    resident: Sequence[nn.Module],
    trained: Sequence[nn.Parameter],
    peak: int,
    *,
    optimizer: str,
    ema: bool,
    shared: bool,
) -> dict[str, int]:
    """Bytes by item, at the worst moment of a step, of which activations alone take ``peak``."""
    gradients = _size(trained)
    return {
        "weights": sum(map(_module_size, resident)),
        "gradients": gradients,
        "optimiser": sum(_moments(p.numel(), optimizer) for p in trained),
        "average (EMA)": gradients if ema else 0,
        # While gradients fill up, activations go: the worst moment needs less than both sums.
        "activations beyond the gradients' room": max(0, peak - gradients),
        "gradient exchange (DDP)": gradients if shared else 0,
    }


def _checkpoint(memory: Mapping[str, int]) -> int:
    """Bytes of a checkpoint, which has of the weights the trained ones: as large as their gradients."""
    return memory["gradients"] + memory["optimiser"] + memory["average (EMA)"]


def _walked(net: Any, walk: Callable[[], int], dtype: torch.dtype, *, checkpointing: bool) -> tuple[int, int]:
    """Operations and peak in bytes of one ``walk`` over ``net``; UserError if its networks do not fit together."""
    with explained(
        "--model: its networks cannot be run together",
        "their config.json files do not fit",
        (TypeError, ValueError, AttributeError, RuntimeError),
    ):
        # Recomputed operations keep the device busy but are none of the model's own, which MFU counts: hence before.
        net.disable_gradient_checkpointing()
        with FlopCounterMode(display=False) as counter:
            peak = walk()
        if checkpointing:
            # Blocks are computed again in the backward pass, under an autocast of their own.
            modes = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), Autocast(dtype)))
            net.enable_gradient_checkpointing(modes)
            peak = walk()
    return counter.get_total_flops(), peak


def _present(sizes: dict[str, int]) -> dict[str, int]:
    """Without the items that take nothing."""
    return {name: size for name, size in sizes.items() if size}


def describe(found: Estimate, *, images: int, rate: Rate, device_memory: int | None = None) -> list[str]:
    """Lines for ``--dry-run``: memory, disk, operations, hours for ``images`` images.

    ``device_memory`` is the device's size in bytes, None where it is unknown.
    """

    def items(of: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {size / GB:.2f}" for name, size in of.items())

    room = ""
    if device_memory is not None:
        spare = device_memory - found.memory_total
        room = f" of {device_memory / GB:.1f}" if spare > 0 else f": MORE THAN THE DEVICE'S {device_memory / GB:.1f}"
    lines = [
        f"memory a device (estimate, without the device's own context): {found.memory_total / GB:.2f} GB{room} "
        f"({items(found.memory)})",
        f"disk (estimate): {found.disk_total / GB:.2f} GB ({items(found.disk)})",
        f"{found.flops / 1e12:.3g} TFLOP an image, {found.flops * images / 1e18:.3g} EFLOP in all",
    ]
    if rate.images_per_second is None:
        lines.append(f"hours: unknown; {rate.origin}")
    else:
        lines.append(
            f"hours: {hours(images, rate.images_per_second):.1f} at {rate.images_per_second:.3g} images/s a device; "
            f"{rate.origin}"
        )
    return lines


def hours(images: int, images_per_second: float) -> float:
    """Hours for ``images`` images."""
    return images / images_per_second / 3600


def measured_rate(
    folder: Path, *, device: str, flops: int | None = None, processes: int = 1, arm: str | None = None
) -> Rate:
    """Images a second on ``device`` from the results that benchmarks/train.py left in ``folder``.

    Args:
        folder: holds ``train-*.json``.
        device: name of the device, as the result says it: a GPU's name, or the CPU's model.
        flops: operations an image of the run to come (``Estimate.flops``); the rate is scaled by them.
        processes: devices of the run to come; taken to scale perfectly, which the origin says.
        arm: ``ours-online`` or ``ours-cached``; None takes the faster.

    Returns:
        ``Rate``; without a fitting result its figure is None and its origin says what is missing.
    """
    files = sorted(folder.glob("train-*.json"))
    for file in files:
        try:
            rate = _rate_of(json.loads(file.read_text(encoding="utf-8")), file.name, device, flops, arm)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file}: not a result of benchmarks/train.py; measure again or remove it") from None
        if rate is None or rate.images_per_second is None:
            continue
        if processes == 1:
            return rate
        return Rate(
            rate.images_per_second * processes,
            f"{rate.origin}; times {processes} processes as if they scaled perfectly",
        )
    seen = f"{len(files)} result(s) in {folder.name}/ are of other devices" if files else f"no result in {folder.name}/"
    return Rate(None, f"measure this device ({device}) with benchmarks/train.py; {seen}")


def _rate_of(result: Any, name: str, device: str, flops: int | None, arm: str | None) -> Rate | None:
    """Our rate in one result, if it is of ``device``."""
    details = result["details"]
    if details["machine"]["device"] != device:
        return None
    ours = {key: each for key, each in details["arms"].items() if key.startswith("ours") and arm in (None, key)}
    if not ours:
        return None
    best = max(ours, key=lambda key: float(ours[key]["images_per_second"]["median"]))
    rate = float(ours[best]["images_per_second"]["median"])
    origin = f"measured with {result['model']['name']} at {result['settings']['resolution']} px ({name}, {best})"
    known = details["flops_per_image"]
    if flops is not None and abs(known / flops - 1) > 0.01:
        rate *= known / flops
        origin += f", scaled from its {known / 1e12:.3g} TFLOP an image to the {flops / 1e12:.3g} of this run"
    return Rate(rate, origin)


def device_name(device: torch.device) -> str:
    """The device as results of benchmarks/train.py call it: a GPU's name, or the model of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def _size(tensors: Any) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def _module_size(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return _size(module.parameters()) + _size(module.buffers())


def _moments(count: int, optimizer: str) -> int:
    """Bytes of the optimiser's state of a parameter of ``count`` elements."""
    if optimizer == "adamw8bit" and count >= 4096:  # bitsandbytes leaves smaller ones in float32
        return 2 * (count + 4 * math.ceil(count / 256))
    return 8 * count
