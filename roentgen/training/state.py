"""What a training run keeps: data order, learning rate, EMA and checkpoints, all functions of images seen."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.files import clean, open_atomic, write_atomic


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


class Order:
    """Which samples make up which batch: a function of (seed, batch number), whatever was read before.

    Args:
        count: samples.
        weights: sampling weight of each sample (count,), drawn with replacement; None goes through permutations.
        groups: number of the shard that holds each sample, so that an epoch reads nearly in sequence; None for files.
        seed: of the order.
    """

    def __init__(self, count: int, *, weights: Tensor | None, groups: Any, seed: int) -> None:
        from roentgen.data.images import epoch_order

        self.count = count
        self.weights = weights
        self.seed = seed
        # Batches run across the end of an epoch, so two epochs are in use at a time.
        self._epoch = lru_cache(maxsize=3)(lambda epoch: epoch_order(count, groups, seed=seed, epoch=epoch))

    def batch(self, number: int, size: int) -> Tensor:
        """Indices int64 (size,) of global batch ``number``."""
        if self.weights is not None:
            return batch_indices(self.weights, self.count, size=size, seed=self.seed, batch=number)
        positions = torch.arange(number * size, (number + 1) * size)
        epochs = positions // self.count
        return torch.cat([self._epoch(int(e))[positions[epochs == e] % self.count] for e in epochs.unique()])


def cosine_rate(images: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate after ``images`` images: linear warm-up, then half a cosine down to ``floor * peak``."""
    if images < warmup:
        return peak * (images + 1) / (warmup + 1)
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def constant_rate(images: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate after ``images`` images: linear warm-up, then ``peak``."""
    return peak * (images + 1) / (warmup + 1) if images < warmup else peak


SCHEDULES: dict[str, Callable[..., float]] = {"cosine": cosine_rate, "constant": constant_rate}


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


# Settings of a checkpoint that are hashes, in words.
HASHES = {
    "data": "the images, texts or splits of --manifest",
    "start": "the weights of --model, --text_encoder, --vae or --text",
}


class Checkpoints:
    """Numbered checkpoints in one folder; a checkpoint is either whole or not there."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def _all(self) -> list[Path]:
        return sorted([*self.folder.glob("state-*.pt"), *self.folder.glob("state-*.sharded")])

    def newest(self) -> Path | None:
        """The newest checkpoint, or None where the run has none."""
        found = self._all()
        return found[-1] if found else None

    def tidy(self) -> None:
        """Remove what a killed run left half-written."""
        clean(self.folder)
        for path in self.folder.glob("state-*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save(self, images: int, state: dict[str, Any]) -> Path:
        """Write ``state`` for ``images`` images seen: whole or not at all; then drop the oldest."""
        path = self.folder / f"state-{images:010d}.pt"
        try:
            with open_atomic(path) as file:
                torch.save({"images": images, **state}, file)
        except (UserError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            raise UserError(
                f"--out {self.folder}: could not write a checkpoint ({error}); older ones are kept"
            ) from None
        self._drop()
        return path

    def _drop(self) -> None:
        for old in self._all()[: -self.keep]:
            if old.is_dir():
                # Renamed first: a folder half deleted must not look like a checkpoint.
                shutil.rmtree(old.replace(old.with_suffix(".tmp")))
            else:
                old.unlink()

    def save_sharded(
        self, images: int, facts: dict[str, Any], *, write: Callable[[Path], None], main: bool, wait: Callable[[], None]
    ) -> None:
        """A checkpoint of many processes' shards: a folder that every process writes to, complete when renamed.

        ``write`` saves this process's part into the folder; ``facts`` are JSON values; ``wait`` is a barrier.
        """
        path = self.folder / f"state-{images:010d}.sharded"
        temporary = path.with_suffix(".tmp")
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        wait()
        try:
            write(temporary)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"--out {self.folder}: could not write a checkpoint ({error}); older ones are kept"
            ) from None
        wait()
        if main:
            write_atomic(temporary / "facts.json", json.dumps({"images": images, **facts}).encode())
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            self._drop()
        wait()

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint's state, or None where the run has none; of a sharded one, its facts and ``folder``."""
        path = self.newest()
        if path is None:
            return None
        try:
            if path.is_dir():
                return {**json.loads((path / "facts.json").read_text()), "folder": path}
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: checkpoint cannot be read ({reason}); delete it to use the one before") from None
        return state

    def load_into(self, saved: dict[str, Any], module: nn.Module, load: Callable[[nn.Module, Any], None]) -> None:
        """``load(module, saved["model"])``; UserError where the checkpoint is of another model."""
        try:
            load(module, saved["model"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"--out {self.folder.parent}: its checkpoint is of another model ({error}); choose a new --out"
            ) from None

    def check_same(self, saved: dict[str, Any], now: dict[str, Any], *, free: frozenset[str]) -> None:
        """Raise ``UserError`` that names every setting that differs from the checkpoint's and is not in ``free``."""
        differ = [k for k in sorted(set(saved) | set(now)) if k not in free and saved.get(k) != now.get(k)]
        if differ:
            listed = ", ".join(HASHES.get(k) or f"{k} ({saved.get(k)} there, {now.get(k)} now)" for k in differ)
            raise UserError(
                f"--out {self.folder.parent}: its checkpoint was made with other settings: {listed}; "
                "use the same settings or a new --out"
            )
