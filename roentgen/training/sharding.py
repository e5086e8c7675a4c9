"""Runs whose parameters are spread over processes (FSDP, DeepSpeed), by accelerate's own saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.api import CheckpointException

from roentgen.config import require
from roentgen.training.state import EMA, Checkpoints


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


def full_weights(accelerator: Accelerator, model: Any) -> dict[str, torch.Tensor] | None:
    """All weights of a sharded ``model``, on the CPU of the main process; every process has to call it.

    Afterwards models can be loaded in the ordinary way again: DeepSpeed ZeRO-3 makes transformers shard each one.
    """
    weights: dict[str, torch.Tensor] | None = accelerator.get_state_dict(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
    return weights


def save_shards(
    accelerator: Accelerator, checkpoints: Checkpoints, images: int, settings: dict[str, Any], ema: EMA
) -> None:
    """A checkpoint to which every process writes its shards of weights, optimiser state and average."""
    rank = accelerator.process_index

    def write(folder: Path) -> None:
        try:
            accelerator.save_state(str(folder))
        except CheckpointException as error:  # what went wrong with a file, and no Exception by birth
            raise OSError(" ".join(str(error).split())[:200]) from error
        torch.save(ema.state_dict(), folder / f"average-{rank}.pt")

    checkpoints.save_sharded(
        images,
        {"settings": settings, "processes": accelerator.num_processes},
        write=write,
        main=accelerator.is_main_process,
        wait=accelerator.wait_for_everyone,
    )


def restore_shards(accelerator: Accelerator, checkpoints: Checkpoints, saved: dict[str, Any], ema: EMA) -> None:
    """Undo ``save_shards``."""
    require(
        saved["processes"] == accelerator.num_processes,
        f"{saved['folder']}: made by {saved['processes']} processes, and these are {accelerator.num_processes}; "
        "a sharded checkpoint goes on with as many as it was made with",
    )
    accelerator.load_state(str(saved["folder"]))
    path = saved["folder"] / f"average-{accelerator.process_index}.pt"
    ema.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
