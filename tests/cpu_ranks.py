"""Runs a recipe with accelerate's GPU branches on CPU processes: ``accelerate launch ... cpu_ranks.py RECIPE FLAGS``.

accelerate takes up FSDP and DeepSpeed for GPU processes only. Here each process says that it is one, on the CPU, with
gloo between them; all else is what happens on GPUs.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

os.environ["DS_ACCELERATOR"] = "cpu"


def backend(self: Any, *rest: Any, **more: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def set_device(self: Any) -> None:
    self.device = torch.device("cpu")


PartialState._prepare_backend = backend  # type: ignore[method-assign]
PartialState.set_device = set_device  # type: ignore[method-assign]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
