"""What a training run keeps: data order, learning rate, EMA and checkpoints, all functions of images seen."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError


def batch_generator(seed: int, batch: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that depends on (seed, global batch number, stream) alone, so that resuming needs no RNG state.

    ``stream`` keeps independent uses (data order, noise, text) of one batch apart.
    """
    generator = torch.Generator()
    # SplitMix64's odd constants spread the three integers over the 64-bit seed space.
    mixed = (seed * 0x9E3779B97F4A7C15 + batch * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
    generator.manual_seed(mixed)
    return generator


def batch_indices(weights: Tensor | None, count: int, *, size: int, seed: int, batch: int) -> Tensor:
    """Indices (size,) of the samples of global batch number ``batch``.

    With ``weights`` (count,) samples are drawn with replacement in proportion to them; without, every epoch is a
    permutation of all ``count`` samples and batches run across epoch boundaries.
    """
    if weights is not None:
        return torch.multinomial(weights, size, replacement=True, generator=batch_generator(seed, batch, 1))
    positions = torch.arange(batch * size, (batch + 1) * size)
    epochs = positions // count
    orders = {int(e): torch.randperm(count, generator=batch_generator(seed, int(e), 2)) for e in epochs.unique()}
    return torch.stack([orders[int(e)][p % count] for e, p in zip(epochs, positions, strict=True)])


def cosine_rate(images: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate after ``images`` images: linear warm-up, then half a cosine down to ``floor * peak``."""
    if images < warmup:
        return peak * (images + 1) / (warmup + 1)
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class EMA:
    """Exponential moving average of parameters with the warm-up of Karras et al. (2024): decay grows with images.

    ``halflife`` is in images; early in training it is cut to ``rampup`` times the images seen.
    """

    def __init__(self, modules: Iterable[nn.Module], *, halflife: float, rampup: float = 0.1) -> None:
        self.halflife = halflife
        self.rampup = rampup
        self.source = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone().float() for p in self.source]

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move the average towards the parameters after a batch; ``images`` counts all images seen so far."""
        halflife = min(self.halflife, max(images * self.rampup, 1e-8))
        torch._foreach_lerp_(self.shadow, [p.float() for p in self.source], 1 - 0.5 ** (batch_size / halflife))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; call it again to put them back."""
        for p, s in zip(self.source, self.shadow, strict=True):
            kept = p.detach().clone()
            p.copy_(s)
            s.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)


class Checkpoints:
    """Numbered checkpoints in one folder; a checkpoint is either whole or not there."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.pt"))

    def save(self, images: int, state: dict[str, Any]) -> Path:
        """Write ``state`` for ``images`` images seen: temporary file, fsync, rename; then drop the oldest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"state-{images:010d}.pt"
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save({"images": images, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"--out {self.folder}: could not write a checkpoint ({error}); older ones are kept"
            ) from None
        for old in self._all()[: -self.keep]:
            old.unlink()
        return path

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint's state, or None where the run has none."""
        found = self._all()
        if not found:
            return None
        try:
            state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{found[-1]}: checkpoint cannot be read ({error}); delete it to use the one before"
            ) from None
        return state

    def check_same(self, saved: dict[str, Any], now: dict[str, Any], *, free: frozenset[str]) -> None:
        """Raise ``UserError`` that names every setting that differs from the checkpoint's and is not in ``free``."""
        differ = [k for k in sorted(set(saved) | set(now)) if k not in free and saved.get(k) != now.get(k)]
        if differ:
            listed = ", ".join(f"{k} ({saved.get(k)} there, {now.get(k)} now)" for k in differ)
            raise UserError(
                f"--out {self.folder.parent}: its checkpoint was made with other settings: {listed}; "
                "use the same settings or a new --out"
            )


def replace_folder(source: Path, target: Path) -> None:
    """Put folder ``source`` in place of ``target``: the old one goes only when the new one is complete."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
