"""The loop of ``roentgen train report`` for reporters that write text: xreport, git, blip, encoder-decoder."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from roentgen.config import require, seed_of_32_bits
from roentgen.data.manifest import train_and_val
from roentgen.errors import install
from roentgen.files import explained, open_atomic
from roentgen.images import from_autoencoder, read_image, to_autoencoder
from roentgen.metrics.text.report_scores import bleu_counts, corpus_bleu, rouge
from roentgen.recipes.classifier import augment
from roentgen.recipes.report_models import choose_trained, start_of, with_adapters, write_reporter
from roentgen.recipes.report_reward import Critic, agreement, preference_loss, read_preferences
from roentgen.recipes.report_settings import Recipe, Run
from roentgen.recipes.report_words import text_loss, tokens_of
from roentgen.reports.captioners import Captioner, write_texts
from roentgen.reports.finding_net import squash
from roentgen.training.checkpoints import Checkpoints, RunState, load_trained_state, load_whole, trained_state
from roentgen.training.loop import Step, descend, steps
from roentgen.training.order import batch_generator, batch_indices
from roentgen.training.schedule import set_cosine
from roentgen.training.setup import share_of_batch

FEW_DISTINCT = 0.1  # share of distinct generated texts below which a warning is printed
BEST = "best.pt"


@dataclass(frozen=True)
class _Data:
    """train, val: their tables. ids, mask (N, L): tokens of train's texts, then of val's. worse: tokens and mask of the
    reports that train's are preferred to, with ``--preferences``."""

    train: pd.DataFrame
    val: pd.DataFrame
    ids: Tensor
    mask: Tensor
    worse: tuple[Tensor, Tensor] | None


def train_captions(recipe: Recipe, run: Run, accelerator: Accelerator, settings: dict[str, Any]) -> int:
    """Train and write the reporter; ``settings`` are what a checkpoint must have been made with."""
    _require_scorers(recipe)
    train, val = _tables(recipe, run)
    captioner = start_of(recipe, train["text"].tolist())
    tokens = partial(tokens_of, captioner, longest=recipe.max_tokens)
    worse = None if run.preferences is None else tokens(train["worse"].tolist(), manifest=run.preferences)
    data = _Data(train, val, *tokens([*train["text"], *val["text"]], manifest=run.manifest), worse)
    total = _length(recipe, len(train))
    trained = choose_trained(captioner, recipe)
    accelerator.print(
        f"{len(train)} training images, {len(val)} for validation; {recipe.arch} with {trained:,} trained weights; "
        f"{total} images to see",
        flush=True,
    )
    if run.dry_run:
        return 0
    torch.manual_seed(recipe.seed)
    if recipe.lora_rank:
        captioner = dataclasses.replace(captioner, model=with_adapters(captioner.model, recipe.lora_rank))
    training = _Training(recipe, run, accelerator, settings, captioner=captioner, data=data, total=total)
    training.restore()
    training.train()
    if accelerator.is_main_process:
        load_best(captioner.model, run.out / BEST)
        write_reporter(captioner, recipe, run)
        print(json.dumps({"best": training.best}), flush=True)
        print(run.out)
    return 0


def load_best(model: Any, path: Path) -> None:
    """Give ``model`` the weights of its best validation; UserError where the file is damaged or of another model."""
    with explained(
        f"{path}: cannot be read", "train again with a new --out"
    ):  # zip, pickle and shape errors alike mean a file that is not what was written
        load_trained_state(model, load_whole(path))


# ------------------------------------------------------------------------------------- before the training


def _require_scorers(recipe: Recipe) -> None:
    for module, package in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")):
        require(
            importlib.util.find_spec(module) is not None,
            f"--arch {recipe.arch}: written reports are scored by {package}, which is not installed; {install('eval')}",
        )


def _tables(recipe: Recipe, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation images with their texts; with ``--preferences`` the training images are those rated."""
    train, val = train_and_val(run.manifest)
    if recipe.sample < 1:
        train = train.sample(frac=recipe.sample, random_state=seed_of_32_bits(recipe.seed)).reset_index(drop=True)
        require(len(train) > 0, f"--sample {recipe.sample:g}: leaves no training image; use more")
    if run.preferences is not None:
        require(not recipe.reward, "--preferences and --reward: one at a time")
        return read_preferences(run.preferences), val
    require(
        train["text"].nunique() > 1,
        f"--manifest {run.manifest}: all {len(train)} training texts are the same, so there is nothing to learn; "
        "prepare it again with texts",
    )
    return train, val


def _length(recipe: Recipe, count: int) -> int:
    """Images to see: whole optimiser steps."""
    step = recipe.batch_size * recipe.accumulate
    total = round(recipe.epochs * count) if recipe.epochs is not None else recipe.images
    return -(-total // step) * step


# ---------------------------------------------------------------------------------------------- the training


class _Training:
    """A captioner in training: the model that accelerate has wrapped, its optimiser, and how far it is.

    ``start``: the model as it was, near which rewards and preferences hold it; else None.
    """

    def __init__(
        self, recipe: Recipe, run: Run, accelerator: Accelerator, settings: dict[str, Any], *, captioner: Captioner,
        data: _Data, total: int,
    ) -> None:  # fmt: skip
        self.recipe, self.run, self.accelerator = recipe, run, accelerator
        self.captioner, self.data, self.total = captioner, data, total
        self.model = captioner.model
        self.start = None
        if recipe.reward or data.worse is not None:
            self.start = copy.deepcopy(self.model).eval().requires_grad_(False).to(accelerator.device)
        self.critic = Critic(captioner, self.start, recipe.kl, recipe.max_tokens) if recipe.reward else None
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.parameters, lr=recipe.rate or 0.0, weight_decay=recipe.weight_decay)
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.state = RunState(
            Checkpoints(run.out / "checkpoints"), accelerator, network=self.model, optimizer=self.optimizer,
            settings=settings,
        )  # fmt: skip
        self.images, self.best, self.stale = 0, float("inf"), 0  # seen; the lowest goal; validations since then

    def restore(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        saved = self.state.restore()
        self.images, self.best = saved.get("images", 0), saved.get("best", float("inf"))
        self.stale = saved.get("stale", 0)

    def train(self) -> None:
        """Train to the end, or until nothing has become better for as long as ``--patience`` says."""
        recipe, run = self.recipe, self.run
        main = self.accelerator.is_main_process
        log = SummaryWriter(run.out / "log") if main else None
        whole = recipe.batch_size * recipe.accumulate
        running: list[Tensor] = []
        end = self.total if self.stale < run.patience else self.images
        for step in steps(self.images, end, batch_size=recipe.batch_size, show=main):
            running.append(self._step(step))
            self.images = step.images
            # A checkpoint lies between optimiser steps only.
            reached = Step(step.number, step.images - whole, step.images, step.last)
            if step.images % whole == 0 and reached.due(run.eval_every):
                mean = torch.stack(running).mean().item()
                require(np.isfinite(mean), f"the loss is not finite after {step.images} images; lower --rate")
                running.clear()
                self._validate(mean, log)
                if self.stale >= run.patience:
                    break
        if self.stale >= run.patience:
            self.accelerator.print(
                f"no better for {run.patience} validations: stopped at {self.images} images", flush=True
            )

    def _step(self, step: Step) -> Tensor:
        """One forward and backward pass. Each batch is a function of its number alone, so that a run that was stopped
        goes on as if it had not."""
        recipe, accelerator, train = self.recipe, self.accelerator, self.data.train
        generator = batch_generator(recipe.seed, step.number)
        rows = batch_indices(None, len(train), size=recipe.batch_size, seed=recipe.seed, batch=step.number)
        rows = rows[share_of_batch(accelerator, recipe.batch_size)]
        pixels = squares(train["image"].iloc[rows.numpy()], self.captioner.size)
        if recipe.augment:
            pixels = from_autoencoder(augment(to_autoencoder(pixels), generator))
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)) + accelerator.process_index)  # dropout
        curve = {"peak": recipe.rate or 0.0, "floor": 0.01}
        set_cosine(self.optimizer, step.before, warmup=recipe.warmup, total=self.total, **curve)
        self.prepared.train()
        inputs = self.captioner.pixels(list(pixels)).to(accelerator.device)
        with accelerator.accumulate(self.prepared), accelerator.autocast():
            loss = self._loss(inputs, rows, generator)
            descend(accelerator, loss, self.optimizer, self.parameters)
        return loss.detach()

    def _loss(self, inputs: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of a batch: by reward, by preference, or of the next word."""
        data, captioner = self.data, self.captioner
        better = (data.ids[rows], data.mask[rows])
        if self.critic is not None:
            references = [data.train["text"].iloc[int(row)] for row in rows]
            return self.critic.loss(self.prepared, inputs, references, generator)
        if data.worse is not None:
            worse = (data.worse[0][rows], data.worse[1][rows])
            return preference_loss(
                captioner, self.prepared, self.start, pixels=inputs, better=better, worse=worse, beta=self.recipe.beta
            )
        return text_loss(captioner, self.prepared, inputs, *better)

    def _validate(self, mean: float, log: SummaryWriter | None) -> None:
        """Measure, say it, keep the weights if they are the best, and save; ``mean`` is the training loss since."""
        run, val, trained = self.run, self.data.val, len(self.data.train)
        error = validation_loss(
            self.captioner, val, self.data.ids[trained:], self.data.mask[trained:], self.accelerator.device
        )
        scores = written(self.captioner, val[: run.validate], run, self.recipe.max_tokens - 1)
        # What is to fall: the loss; with a reward the disagreement. With preferences the last weights are taken.
        goal = error
        if self.start is not None:
            goal = 1 - scores["agreement"] if self.critic is not None else -float(self.images)
        self.stale = 0 if goal < self.best else self.stale + 1
        self.best = min(self.best, goal)
        if self.accelerator.is_main_process:
            said = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            print(f"{self.images} images, loss {mean:.4f}, validation loss {error:.4f}, {said}", flush=True)
            if log is not None:
                for name, value in {"train/loss": mean, "val/loss": error, **scores}.items():
                    log.add_scalar(name, value, self.images)
            if self.stale == 0:
                with open_atomic(run.out / BEST) as file:
                    torch.save(trained_state(self.model), file)
        self.state.save(self.images, best=self.best, stale=self.stale)
        self.accelerator.wait_for_everyone()


# ------------------------------------------------------------------------------------------ loss and texts


def squares(paths: Sequence[str], size: int) -> np.ndarray:
    """uint8 (N, size, size) of image files."""
    return np.stack([squash(read_image(path), size) for path in paths])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@torch.no_grad()
def validation_loss(captioner: Captioner, val: pd.DataFrame, ids: Tensor, mask: Tensor, device: torch.device) -> float:
    """``text_loss`` over the first validation images, at most 256; a mean over batches of 16."""
    losses = []
    with _evaluating(captioner.model):
        for start in range(0, min(len(val), 256), 16):
            stop = min(start + 16, len(val))
            pixels = captioner.pixels(list(squares(val["image"].iloc[start:stop], captioner.size))).to(device)
            losses.append(text_loss(captioner, captioner.model, pixels, ids[start:stop], mask[start:stop]).item())
    return float(np.mean(losses))


def written(captioner: Captioner, val: pd.DataFrame, run: Run, longest: int) -> dict[str, float]:
    """Generated texts of validation images against theirs; says so where they are all alike."""
    images = [read_image(path) for path in val["image"]]
    with _evaluating(captioner.model):
        texts = write_texts(captioner, images, beams=run.beams, no_repeat=run.no_repeat or None, max_tokens=longest)
    references = val["text"].tolist()
    distinct = len(set(texts)) / len(texts)
    if distinct < FEW_DISTINCT or len(set(texts)) == 1:
        print(f"warning: one text for most images ({texts[0][:60]!r}): lower --rate, or train longer", flush=True)
    return {
        "BLEU-4": float(corpus_bleu(bleu_counts(texts, references).sum(0, keepdims=True))[0]),
        "ROUGE-L": float(rouge(texts, references, "L").mean()),
        "agreement": float(np.mean([agreement(*pair) for pair in zip(texts, references, strict=True)])),
        "distinct": distinct,
    }
