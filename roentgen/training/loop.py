"""Loops: the steps of any recipe, and the loop that trains a generator of either family."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from roentgen.config import as_dict, flat
from roentgen.files import write_atomic
from roentgen.generators.base import Generator, Sampling
from roentgen.provenance import portable
from roentgen.training.batches import Batch, BatchMaker
from roentgen.training.checkpoints import Checkpoints, RunState
from roentgen.training.loader import Prefetcher
from roentgen.training.progress import Clock, Validated, draw_grid, finite_means, validation_error
from roentgen.training.schedule import EMA, SCHEDULES, Plateau
from roentgen.training.shared import SharedRecipe, SharedRun, TrainingData
from roentgen.training.trackers import Log


class Step(NamedTuple):
    """One step of a run: its number, images seen before and after it, and whether it is the last."""

    number: int
    before: int
    images: int
    last: bool

    def passes(self, every: int) -> bool:
        """Whether a multiple of so many images is reached by this step."""
        return self.images % every < self.images - self.before

    def due(self, every: int) -> bool:
        """Whether what happens every so many images happens after this step; all of it does after the last."""
        return self.last or self.passes(every)


def steps(images: int, end: int, *, batch_size: int, show: bool, unit: str = "img") -> Iterator[Step]:
    """The steps of a run that has seen ``images`` images, up to ``end``, behind a bar on stderr where ``show``."""
    with tqdm(total=end, initial=images, unit=unit, file=sys.stderr, disable=not show) as bar:
        while images < end:
            step = Step(images // batch_size, images, images + batch_size, images + batch_size >= end)
            yield step
            images = step.images
            bar.update(batch_size)


def descend(accelerator: Accelerator, loss: Tensor, optimizer: Any, parameters: Iterable[Tensor]) -> None:
    """One step of ``optimizer`` by the gradients of ``loss``, of a norm of at most 1; where they are accumulated, once
    they are whole."""
    accelerator.backward(loss)
    if accelerator.sync_gradients:
        accelerator.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()


class Movable(Protocol):
    """A generator whose networks can be moved to a device."""

    def on(self, device: torch.device) -> Generator: ...


class Trained(Validated, Protocol):
    """A family's objective: ``network`` is what is trained, as accelerate wraps it."""

    network: Any


@dataclass
class Loop:
    """The training of a generator, whatever its family; ``loss`` is all that the loop knows of it.

    accelerator: of the run. recipe, run: its settings. data: what it learns from. maker: makes batches.
    loss: losses of each sample of a batch: a NamedTuple of tensors (n,), of which the mean of ``loss`` is minimised.
    objective: owns the network. module: what is in training mode in between. optimizer: before accelerate prepares it.
    start: hash of the weights that training started from. around: context of each forward and backward pass.
    """

    accelerator: Accelerator
    recipe: SharedRecipe
    run: SharedRun
    data: TrainingData
    maker: BatchMaker
    loss: Callable[[Batch], Any]
    objective: Trained
    module: nn.Module
    optimizer: Any
    start: str
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        """Wrap network and optimiser, and go back to the last checkpoint."""
        recipe, run = self.recipe, self.run
        self.settings = {**flat(as_dict(recipe)), "data": self.data.key, "start": self.start}
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.plateau = Plateau() if recipe.schedule == "plateau" else None
        network = self.objective.network
        self.objective.network, self.optimizer = self.accelerator.prepare(network, self.optimizer)
        self.ema = EMA([self.objective.network], halflife=recipe.ema_halflife)
        self.state = RunState(
            Checkpoints(run.out / "checkpoints"), self.accelerator, network=network, optimizer=self.optimizer,
            ema=self.ema, settings=self.settings, free=frozenset(as_dict(run)),
            plateau=self.plateau,
        )  # fmt: skip
        self.images = self.state.restore().get("images", 0)
        self.end = min(recipe.images, run.until or recipe.images)

    def train(self, model: Movable, sampling: Sampling) -> Clock:
        """Train to the end; ``model`` draws the sample grids, as ``sampling`` says. Returns the run's speed."""
        accelerator, run, size = self.accelerator, self.run, self.recipe.batch_size
        on_main, sharded = accelerator.is_main_process, self.state.sharded
        log = Log(run.trackers, run.out, as_dict(self.recipe)) if on_main else None
        numbers = range(self.images // size, -(-self.end // size))
        batches = Prefetcher(self.maker.make, numbers, ahead=2 * run.workers, threads=run.workers)
        clock = Clock(batches, accelerator.device, self.images)
        running: list[Tensor] = []  # (K, n) a part: the losses of each sample
        fed: list[tuple[int, Tensor]] = []  # their batch and rows
        self.module.train()
        for step, batch in zip(steps(self.images, self.end, batch_size=size, show=on_main), batches, strict=True):
            self._set_rates(step.before)
            for part in batch.to(accelerator.device).parts(run.accumulate):
                # Gradient checkpointing runs the forward pass again in the backward one.
                with accelerator.accumulate(self.objective.network), self.around():
                    losses = self.loss(part)
                    descend(accelerator, losses.loss.mean(), self.optimizer, self.objective.network.parameters())
                running.append(torch.stack([values.detach() for values in losses]))
                fed.append((batch.number, part.rows))
            self.images = step.images
            self.ema.update(step.images, size)

            tell, save, validate, sample = map(
                step.due, (run.log_every, run.checkpoint_every, run.validate_every, run.sample_every)
            )
            if tell or save:
                # The one place where the loop waits for the device: never a checkpoint of a loss that is not finite.
                means = finite_means(
                    accelerator, running, fed, self.data.source.table, self.state.checkpoints, self.ema
                )
                self._tell(log, dict(zip(losses._fields, means, strict=True)), clock.lap(step.images))
            validate = validate and len(self.data.val_rows) > 0
            with clock.paused():
                if validate and self.plateau is not None:  # what the next steps depend on belongs into the checkpoint
                    with self._evaluating():
                        error = self._validate(log)
                    if step.passes(run.validate_every):  # not where a run was cut short
                        self.plateau.read(error)
                    validate = False
                if save:  # before anything that the run could do without
                    self.state.save(step.images)
                if validate or (sample and not sharded):
                    with self._evaluating():
                        if validate:
                            self._validate(log)
                        if sample and on_main and not sharded:
                            path = run.out / "samples" / f"{step.images:09d}.png"
                            draw_grid(model.on(accelerator.device), run.prompts, sampling, path)
        return clock

    def finish(self) -> dict[str, Tensor] | None:
        """Put the average in place of the weights; all weights of a sharded network, on the main process, else None."""
        self.ema.swap()
        return self.state.full_weights(self.objective.network)

    def tell(self, clock: Clock, **more: Any) -> dict[str, Any]:
        """Write OUT/training.json, what the run was and how fast, and return it; ``more`` goes with it."""
        result: dict[str, Any] = {
            "settings": portable({**flat(as_dict(self.run)), **self.settings}), "images": self.images,
            "training_images": len(self.data.rows), "text": vars(self.data.read),
            "speed": clock.summary(self.accelerator.num_processes), **more,
        }  # fmt: skip
        write_atomic(self.run.out / "training.json", (json.dumps(result, indent=1) + "\n").encode())
        return result

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """In evaluation mode, with averaged weights."""
        self.ema.swap()
        self.module.eval()
        yield
        self.module.train()
        self.ema.swap()

    def _set_rates(self, images: int) -> None:
        factor = 1.0 if self.plateau is None else self.plateau.factor
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = factor * SCHEDULES[self.recipe.schedule](
                images, peak=peak, warmup=self.recipe.warmup, total=self.recipe.images, floor=0.02
            )

    def _tell(self, log: Log | None, means: dict[str, float], rate: float) -> None:
        if log is not None:
            said = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in means.items())
            left = (self.end - self.images) / rate / 60
            print(f"{self.images} images, {said}, {rate:.1f} images/s, {left:.0f} min left", flush=True)
            for name, value in {**means, "images_per_second": rate}.items():
                log.add_scalar(f"train/{name}", value, self.images)

    def _validate(self, log: Log | None) -> float:
        error = validation_error(self.objective, self.maker, self.data.val_rows, self.accelerator)
        if log is not None:
            print(f"{self.images} images, validation error {error:.4f}", flush=True)
            log.add_scalar("val/error", error, self.images)
        return error
