"""Learning rate and weight average as functions of the images seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def cosine_rate(images: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate after ``images`` images: linear warm-up, then half a cosine down to ``floor * peak``."""
    if images < warmup:
        return peak * (images + 1) / (warmup + 1)
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_cosine(optimizer: Any, images: int, *, warmup: int, total: int, peak: float = 0.0, floor: float = 0.0) -> None:
    """``cosine_rate`` for each group of ``optimizer``, up to its own ``peak`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = cosine_rate(images, peak=group.get("peak", peak), warmup=warmup, total=total, floor=floor)


def constant_rate(images: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate after ``images`` images: linear warm-up, then ``peak``."""
    return peak * (images + 1) / (warmup + 1) if images < warmup else peak


# That of a plateau is constant but for the factor of ``Plateau``.
SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine_rate, "constant": constant_rate, "plateau": constant_rate
}  # fmt: skip


class Plateau:
    """``factor`` on the learning rate, lowered by PyTorch's ReduceLROnPlateau, with its own settings: to a tenth after
    more than ten validation errors without a new best."""

    def __init__(self) -> None:
        # Rates are set from the images seen; an optimizer of nothing holds the factor on them.
        self._holder = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._watch = torch.optim.lr_scheduler.ReduceLROnPlateau(self._holder)

    @property
    def factor(self) -> float:
        """By which the learning rate is multiplied."""
        return float(self._holder.param_groups[0]["lr"])

    def read(self, error: float) -> None:
        """Take note of a validation error."""
        self._watch.step(error)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "watch": self._watch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._holder.param_groups[0]["lr"] = state["factor"]
        self._watch.load_state_dict(state["watch"])


def local_part(parameter: Tensor) -> Tensor:
    """What this process holds of a parameter, sharing its memory: all of it, or its shard under FSDP or ZeRO-3."""
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        local: Tensor = parameter.to_local().detach()
        return local
    # DeepSpeed ZeRO-3 leaves an empty tensor and hangs the shard on it.
    return parameter.ds_tensor.detach() if hasattr(parameter, "ds_tensor") else parameter.detach()


class EMA:
    """Exponential moving average of parameters with the warm-up of Karras et al. (2024): decay grows with images.

    ``halflife`` is in images; early in training it is cut to ``rampup`` times the images seen. Only parameters that
    are trained are averaged. Where they are sharded over processes (FSDP), each process averages its own shards.
    """

    def __init__(self, modules: Iterable[nn.Module], *, halflife: float, rampup: float = 0.1) -> None:
        self.halflife = halflife
        self.rampup = rampup
        self.source = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.shadow = [local_part(p).clone().float() for p in self.source]

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move the average towards the parameters after a batch; ``images`` counts all images seen so far."""
        halflife = min(self.halflife, max(images * self.rampup, 1e-8))
        torch._foreach_lerp_(
            self.shadow, [local_part(p).float() for p in self.source], 1 - 0.5 ** (batch_size / halflife)
        )

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; call it again to put them back."""
        for p, s in zip(self.source, self.shadow, strict=True):
            mine = local_part(p)
            kept = mine.clone()
            mine.copy_(s)
            s.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
