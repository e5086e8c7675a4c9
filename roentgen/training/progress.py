"""How a run goes: its speed, whether its loss is a number, its error on validation images, grids of samples."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.generators.base import Generator, Sampling
from roentgen.generators.generate import generate
from roentgen.images import make_grid, save_image
from roentgen.training.batches import BatchMaker
from roentgen.training.checkpoints import Checkpoints
from roentgen.training.estimate import device_name
from roentgen.training.loader import Prefetcher
from roentgen.training.schedule import EMA


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
        """Images a second since the last lap, pauses left out."""
        now = time.perf_counter()
        seconds, made = now - self.then, images - self.images
        if self.warm:
            self.total["seconds"] += seconds
            self.total["images"] += made
            self.total["waited"] += self.batches.waited - self.waited
        self.then, self.images, self.waited, self.warm = now, images, self.batches.waited, True
        return made / max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is spent inside, where no batch is taken."""
        began = time.perf_counter()
        yield
        self.then += time.perf_counter() - began

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


class Validated(Protocol):
    """What ``validation_error`` asks of a model's objective."""

    def fixed_draw(self, count: int) -> dict[str, torch.Tensor]: ...
    def error(self, batch: Any) -> torch.Tensor: ...


@torch.no_grad()
def validation_error(
    objective: Validated, maker: BatchMaker, rows: NDArray[np.int64], accelerator: Accelerator
) -> float:
    """Mean error on up to 128 of the validation images ``rows``, with draws that never change, by all processes."""
    count = min(128, len(rows))
    chosen = torch.from_numpy(rows[np.linspace(0, len(rows) - 1, num=count).astype(int)])
    draws = objective.fixed_draw(count)
    # Every process runs the same number of batches, as sharded models demand; what is padded is not counted.
    step = min(16, -(-count // accelerator.num_processes))
    total = torch.zeros((), device=accelerator.device)
    for start in range(0, count, step * accelerator.num_processes):
        first = start + accelerator.process_index * step
        mine = torch.arange(first, first + step) % count
        part = maker.fixed(chosen[mine], {name: x[mine] for name, x in draws.items()}).to(accelerator.device)
        total += objective.error(part)[: max(0, count - first)].sum()
    return float(accelerator.reduce(total, "sum")) / count


def draw_grid(model: Generator, prompts: Sequence[str], sampling: Sampling, path: Path) -> None:
    """Two images of each prompt, in four columns, by the model as it is now."""
    samples = list(generate(model, prompts, seed=0, num_images=2, batch_size=16, **dataclasses.asdict(sampling)))
    grid = make_grid([sample.image for sample in samples], [sample.prompt for sample in samples], 4)
    save_image(grid, path, format="png", provenance={"synthetic": "true"}, overwrite=True)
