"""The runs of the augmentation-gain experiment: each trained and tested once, resumably, several side by side."""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from roentgen.devices import keep_freed_memory
from roentgen.errors import UserError
from roentgen.experiments.augmentation.arms import ARMS, Run, real_subset, schedule, synthetic_rows
from roentgen.experiments.augmentation.classifier import Labelled, Phase, Recipe, build_net, predict, train, val_auroc
from roentgen.experiments.augmentation.sources import Source, open_pixels
from roentgen.files import write_npz
from roentgen.metrics.result import Context, plain, write_result


@dataclass(frozen=True, eq=False)
class Task:
    """A run with all that a worker needs. rare: columns of the rare findings. ``context`` goes into its result."""

    run: Run
    recipe: Recipe
    real: Source
    synthetic: Source | None
    findings: tuple[str, ...]
    rare: tuple[int, ...]
    device: str
    work: Path
    context: Context

    @property
    def result(self) -> Path:
        return self.work / "runs" / f"{self.run.key}.json"

    @property
    def predictions(self) -> Path:
        return self.result.with_suffix(".npz")

    @property
    def identity(self) -> dict[str, Any]:
        """All that the run's result depends on."""
        uses_rare = ARMS[self.run.arm].rare or self.run.cut is not None
        run = asdict(self.run)
        if self.run.alone:
            for key in ("arm", "n", "cut"):  # of no account: see Run.key
                del run[key]
        found = {
            **run,
            **asdict(self.recipe),
            "findings": list(self.findings),
            "rare": [self.findings[column] for column in self.rare] if uses_rare else [],
            "real": self.real.hash,
            "synthetic": self.synthetic.hash if self.synthetic else "",
        }
        return dict(plain(found))


def is_done(task: Task) -> bool:
    """Whether the run's result is there; UserError where one of other settings is."""
    try:
        saved = json.loads(task.result.read_text())["details"]["identity"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{task.result} is not a result of this experiment; remove it or choose a new --work") from None
    now = task.identity
    differ = [key for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key)]
    if differ:
        listed = ", ".join(f"{key} ({saved.get(key)} there, {now.get(key)} now)" for key in differ)
        raise UserError(
            f"--work {task.work} holds {task.run.key} with other settings: {listed}; use the same or a new --work"
        )
    return task.predictions.is_file()


def run_all(tasks: Sequence[Task], *, jobs: int) -> None:
    """Do the runs that are not done, ``jobs`` at a time in processes of their own (1: here).

    A finished run stays, whatever becomes of the others.
    """
    different = {task.run.key: task for task in tasks}.values()
    todo = [task for task in different if not is_done(task)]
    bar = tqdm(total=len(different), initial=len(different) - len(todo), unit="run", file=sys.stderr)
    with bar:
        if jobs == 1:
            for task in todo:
                execute(task)
                bar.update()
            return
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        try:
            for future in as_completed([pool.submit(execute, task) for task in todo]):
                future.result()
                bar.update()
        except BrokenProcessPool:
            raise UserError(
                "a training process was killed, perhaps for memory; run the same command again, with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def execute(task: Task) -> None:
    """Train and test one run; the predictions first, its result last, so that a result stands for a whole run."""
    threads = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(1)  # several processes share the cores, and a result should not depend on how many
    try:
        _execute(task)
    finally:
        torch.set_num_threads(threads)


def _execute(task: Task) -> None:
    began = time.perf_counter()
    arm, run, recipe, real = ARMS[task.run.arm], task.run, task.recipe, task.real
    pixels = open_pixels(real.images, real.size, real.cache)
    chosen = real_subset(real, run.n, seed=run.seed, rare=task.rare, cut=run.cut)
    parts = [Labelled(np.asarray(pixels[chosen]), real.labels[chosen])] if arm.real else []
    count, distinct = 0, 0
    if task.synthetic is not None:
        made = task.synthetic
        rows = synthetic_rows(made, arm, run.n, seed=run.seed, rare=task.rare)
        count, distinct = len(rows), len(np.unique(rows))
        parts.append(Labelled(np.asarray(open_pixels(made.images, made.size, made.cache)[rows]), made.labels[rows]))
    data = Labelled(*(np.concatenate(part) for part in zip(*((p.pixels, p.labels) for p in parts), strict=True)))
    phases = [Phase(rows, steps * recipe.batch_size) for rows, steps in schedule(arm, run.n, len(data.pixels), recipe)]
    judged, tested = real.rows("val"), real.rows("test")
    done = train(
        build_net(recipe, len(task.findings), seed=run.seed), data, phases,
        val=Labelled(np.asarray(pixels[judged]), real.labels[judged]), findings=task.findings, recipe=recipe,
        seed=run.seed, augment=arm.classic, device=task.device,
    )  # fmt: skip
    probabilities = predict(done.net, np.asarray(pixels[tested]), device=task.device)
    task.predictions.parent.mkdir(parents=True, exist_ok=True)
    write_npz(task.predictions, {"test": probabilities})
    write_result(
        task.result, metric="macro AUROC on test of one run", ci=(math.nan, math.nan),
        value=val_auroc(probabilities, real.labels[tested], task.findings), ci_method="none for one run",
        n=len(tested), context=task.context,
        details={
            "identity": task.identity, "real": run.n if arm.real else 0, "synthetic": count,
            "synthetic_distinct": distinct, "images_seen": done.images, "chosen_at": done.chosen, "val": done.history,
            "seconds": round(time.perf_counter() - began, 1),
        },
    )  # fmt: skip
