"""Checkpoints: numbered files of a folder, and the state of a run that is kept in them, whole or in shards."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from roentgen.config import require
from roentgen.errors import UserError
from roentgen.files import clean, explained, open_atomic, reason, regular, write_atomic
from roentgen.training.schedule import EMA, Plateau

# Settings of a checkpoint that are hashes, in words.
HASHES = {
    "data": "the images, texts or splits of --manifest",
    "start": "the weights of --model, --text-encoder, --vae or --text",
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
        with explained(
            f"--out {self.folder}: could not write a checkpoint", "older ones are kept", (OSError, RuntimeError)
        ):
            write(temporary)
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
        with explained(f"{path}: checkpoint cannot be read", "delete it to use the one before"):
            if path.is_dir():
                return {**json.loads((path / "facts.json").read_text()), "folder": path}
            state: dict[str, Any] = load_whole(path)
        return state

    def save_parts(self, images: int, parts: Mapping[str, Any], **more: Any) -> None:
        """``save`` of the states of ``parts`` by name, and of ``more``, of which ``settings`` are for ``resume``."""
        self.save(images, {name: part.state_dict() for name, part in parts.items()} | more)

    def resume(self, parts: Mapping[str, Any], settings: dict[str, Any], *, free: frozenset[str]) -> dict[str, Any]:
        """What ``save_parts`` saved last, the states loaded into ``parts``; empty where the run has none."""
        saved = self.latest()
        if saved is None:
            return {}
        self.check_same(saved["settings"], settings, free=free)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return saved

    def load_into(self, saved: dict[str, Any], module: nn.Module, load: Callable[[nn.Module, Any], None]) -> None:
        """``load(module, saved["model"])``; UserError where the checkpoint is of another model."""
        with explained(
            f"--out {self.folder.parent}: its checkpoint is of another model",
            "choose a new --out",
            (KeyError, ValueError),
        ):
            load(module, saved["model"])

    def check_same(self, saved: dict[str, Any], now: dict[str, Any], *, free: frozenset[str]) -> None:
        """Raise ``UserError`` that names every setting that differs from the checkpoint's and is not in ``free``."""
        differ = [k for k in sorted(set(saved) | set(now)) if k not in free and saved.get(k) != now.get(k)]
        if differ:
            listed = ", ".join(HASHES.get(k) or f"{k} ({saved.get(k)} there, {now.get(k)} now)" for k in differ)
            raise UserError(
                f"--out {self.folder.parent}: its checkpoint was made with other settings: {listed}; "
                "use the same settings or a new --out"
            )


def load_whole(path: Path) -> Any:
    """``torch.load`` of tensors, after a look at the sum of every part, which PyTorch writes but does not compare."""
    with zipfile.ZipFile(regular(path)) as archive:
        if (part := archive.testzip()) is not None:
            raise ValueError(f"its part {part} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of ``module`` that are trained, by name: what a checkpoint has to hold."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` gave; ValueError where names or shapes differ."""
    mine = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if set(mine) != set(state) or any(mine[name].shape != value.shape for name, value in state.items()):
        raise ValueError("its parameters are not those of this model")
    for name, value in state.items():
        mine[name].copy_(value)


def prepare_for_sharding(accelerator: Accelerator, local: int) -> bool:
    """Whether parameters will be spread over processes; DeepSpeed is told what it would read off a data loader."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = local
        config["gradient_clipping"] = 1.0
        if config["zero_optimization"]["stage"] == 3:
            # ZeRO-3 would keep small parameters whole beside their shards; the average knows the shards only.
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return True
    return accelerator.distributed_type == DistributedType.FSDP


def align_moments(optimizer: Any) -> None:
    """Lay the moments of ``optimizer`` out in memory as their parameters are.

    A fused step goes through both in the order of memory: moments that were saved in another layout (channels last, on
    a GPU or by an earlier version) would be taken for those of other weights, without a word.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class RunState:
    """What a run continues from: trained weights, optimiser, weight average, and the settings that made them.

    Where parameters are spread over processes (FSDP, DeepSpeed), every process writes its shards, by accelerate's own
    saving and loading; every process has to call every method.

    Args:
        checkpoints: where it is kept.
        accelerator: of the run.
        network: what is trained, as it was before ``accelerator.prepare``.
        optimizer: after it.
        ema: the weight average, where there is one.
        settings: what must not change between a run and its continuation, by dotted name.
        free: further names that a checkpoint may hold and that may change.
        plateau: of a learning rate that follows the validation error.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        accelerator: Accelerator,
        *,
        network: nn.Module,
        optimizer: Any,
        ema: EMA | None = None,
        settings: dict[str, Any],
        free: frozenset[str] = frozenset(),
        plateau: Plateau | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self.accelerator = accelerator
        self.plateau = plateau
        self.network = network
        self.optimizer = optimizer
        self.ema = ema
        self.settings = settings
        self.free = free
        self.sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def restore(self) -> dict[str, Any]:
        """Go back to the newest checkpoint; what it holds, ``images`` seen by then too, or nothing where there is none.

        Raises:
            UserError: it was made with other settings, another model or another number of processes, or is damaged.
        """
        if self.accelerator.is_main_process:
            self.checkpoints.tidy()
        saved = self.checkpoints.latest()
        if saved is None:
            return {}
        self.checkpoints.check_same(saved["settings"], self.settings, free=self.free)
        if self.sharded:
            assert self.ema is not None
            restore_shards(self.accelerator, saved, self.ema)
        else:
            self.checkpoints.load_into(saved, self.network, load_trained_state)
            self.optimizer.load_state_dict(saved["optimizer"])
            align_moments(self.optimizer)
            if self.ema is not None:
                self.ema.load_state_dict(saved["ema"])
            if self.accelerator.scaler is not None and "scaler" in saved:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        if self.plateau is not None:
            self.plateau.load_state_dict(saved["plateau"])
        threads, now = saved.get("threads"), torch.get_num_threads()
        if threads not in (None, now) and self.accelerator.device.type == "cpu" and self.accelerator.is_main_process:
            print(
                f"roentgen: warning: begun with {threads} thread(s) and continued with {now}: sums are rounded in "
                "another order, so the weights will differ a little from those of an unbroken run; "
                f"OMP_NUM_THREADS={threads} gives the same",
                file=sys.stderr,
            )
        self.accelerator.print(f"continuing at {saved['images']} images")
        return saved

    def save(self, images: int, **more: Any) -> None:
        """A checkpoint at ``images`` images seen, with ``more`` of what ``restore`` gives back."""
        more |= {} if self.plateau is None else {"plateau": self.plateau.state_dict()}
        if self.sharded:
            self.checkpoints.save_sharded(
                images,
                {"settings": self.settings, "processes": self.accelerator.num_processes, **more},
                write=self._write_shards,
                main=self.accelerator.is_main_process,
                wait=self.accelerator.wait_for_everyone,
            )
        elif self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "model": trained_state(self.network),
                "optimizer": self.optimizer.state_dict(),
                **({} if self.ema is None else {"ema": self.ema.state_dict()}),
                "scaler": scaler.state_dict() if scaler is not None else {},
                "settings": self.settings,
                "threads": torch.get_num_threads(),
                **more,
            }
            self.checkpoints.save(images, state)

    def _write_shards(self, folder: Path) -> None:
        try:
            self.accelerator.save_state(str(folder))
        except CheckpointException as error:  # what went wrong with a file, and no Exception by birth
            raise OSError(reason(error)) from error
        assert self.ema is not None
        torch.save(self.ema.state_dict(), folder / f"average-{self.accelerator.process_index}.pt")

    def full_weights(self, prepared: Any) -> dict[str, Tensor] | None:
        """All weights of the sharded model ``prepared``, on the CPU of the main process; None where it has them anyway.

        Afterwards models can be loaded in the ordinary way again: DeepSpeed ZeRO-3 makes transformers shard each one.
        """
        if not self.sharded:
            return None
        weights: dict[str, Tensor] | None = self.accelerator.get_state_dict(prepared)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()
        return weights


def restore_shards(accelerator: Accelerator, saved: dict[str, Any], ema: EMA) -> None:
    """Load the shards of this process from the checkpoint whose facts are ``saved``."""
    require(
        saved["processes"] == accelerator.num_processes,
        f"{saved['folder']}: made by {saved['processes']} processes, and these are {accelerator.num_processes}; "
        "a sharded checkpoint goes on with as many as it was made with",
    )
    accelerator.load_state(str(saved["folder"]))
    path = saved["folder"] / f"average-{accelerator.process_index}.pt"
    ema.load_state_dict(load_whole(path))
