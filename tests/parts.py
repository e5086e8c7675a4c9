"""Parts of training that several tests use."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch


def objective_of(model: Any, loss: Any) -> Any:
    from roentgen.generators.diffusion.objective import Objective, Train

    cpu = torch.device("cpu")
    return Objective(model, loss, Train(), device=cpu, precision="no", latents_online=True, text_online=False,
                     autocast=nullcontext, read=lambda rows: None)  # fmt: skip
