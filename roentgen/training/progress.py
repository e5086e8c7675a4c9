"""How fast a run is, and whether its loss is a number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from roentgen.errors import UserError
from roentgen.training.estimate import device_name
from roentgen.training.loader import Prefetcher
from roentgen.training.state import EMA, Checkpoints


def finite_means(
    accelerator: Accelerator,
    running: list[torch.Tensor],
    fed: list[tuple[int, torch.Tensor]],
    table: pd.DataFrame,
    checkpoints: Checkpoints,
    ema: EMA,
) -> list[float]:
    """Means over all processes of what has been gathered since the last call, which is emptied.

    Raises:
        UserError: where a loss is not finite, with the step, its samples and the last checkpoint; or where the weights
            are not, which a step of a finite loss can leave behind. The average shows it: it has seen all of them.
    """
    size = torch.stack(torch._foreach_norm(ema.shadow)).sum()
    values: list[float] = accelerator.reduce(
        torch.cat([torch.cat(running, dim=1).mean(1), size.to(running[0].device)[None]]), "mean"
    ).tolist()
    if not np.isfinite(values).all():
        newest = checkpoints.newest()
        kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
        for (number, rows), losses in zip(fed, running, strict=True):
            bad = ~torch.isfinite(losses).all(0).cpu()
            if bad.any():
                names = [Path(table["image"].iat[int(row)]).name for row in rows[bad]]
                raise UserError(
                    f"the loss is not finite in step {number + 1}, samples {', '.join(names[:8])}"
                    f"{' and more' if len(names) > 8 else ''}; {kept}; lower --rate or look at these samples"
                )
        if not np.isfinite(values[-1]):
            raise UserError(f"the weights are not finite after step {fed[-1][0] + 1}; {kept}; lower --rate")
        raise UserError("the loss is not finite in another process; see its message")
    running.clear()
    fed.clear()
    return values[:-1]


class Clock:
    """Speed in images a second, of which the first window, with its warm-up, does not count in the end."""

    def __init__(self, batches: Prefetcher[Any], device: torch.device, images: int) -> None:
        self.batches = batches
        self.device = device
        self.images = images
        self.warm = False
        self.then = time.perf_counter()
        self.waited = 0.0
        self.total = {"seconds": 0.0, "images": 0, "waited": 0.0}

    def lap(self, images: int) -> float:
        """Images a second since the last lap or pause."""
        now = time.perf_counter()
        seconds, made = now - self.then, images - self.images
        if self.warm:
            self.total["seconds"] += seconds
            self.total["images"] += made
            self.total["waited"] += self.batches.waited - self.waited
        self.then, self.images, self.waited, self.warm = now, images, self.batches.waited, True
        return made / max(seconds, 1e-9)

    def pause(self) -> None:
        """Leave out what happened since the last lap."""
        self.then, self.waited = time.perf_counter(), self.batches.waited

    def summary(self, processes: int) -> dict[str, Any]:
        """For training.json; None where the run was too short to tell."""
        seconds = self.total["seconds"]
        return {
            "images_per_second": self.total["images"] / seconds if seconds else None,
            "data_wait_share": self.total["waited"] / seconds if seconds else None,
            "seconds": round(seconds, 3),
            "images": self.total["images"],
            "peak_memory_bytes": peak_memory(self.device),
            "device": device_name(self.device),
            "processes": processes,
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the largest resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
