"""What makes the images of a plan: model, filter, and how they are run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roentgen.devices import keep_freed_memory, throughput_dtype
from roentgen.errors import UserError
from roentgen.generators.base import Generator, Sample
from roentgen.generators.generate import generate, load_model, warn_unknown_words
from roentgen.images import encode_image
from roentgen.models.card import model_licence
from roentgen.synthesis.describe import unknown_demographics
from roentgen.synthesis.filters import REPEATS, Filter, load_filter, load_repeats
from roentgen.synthesis.filters.repeats import Repeats
from roentgen.synthesis.plan import Plan
from roentgen.synthesis.rates import Rate
from roentgen.synthesis.writers.parts import SetInfo


def open_filter(named: str, reference: str | None) -> tuple[tuple[str, ...], Filter]:
    """The stages that ``--filter`` names, and their filter; UserError on unknown stages or a bad reference."""
    stages = () if named == "none" else tuple(name.strip() for name in named.split(",") if name.strip())
    if not stages and named != "none":
        raise UserError("--filter is empty; name stages, such as prompt,repeats, or none")
    judge = load_filter(stages, reference=None if reference is None else Path(reference))
    return (*judge.stages, *((REPEATS,) if REPEATS in stages else ())), judge


@dataclass(frozen=True)
class Maker:
    """A plan with everything that makes it. ``stages``: of the filter, ``repeats`` among them where it looks."""

    plan: Plan
    model: Generator
    filter: Filter
    stages: tuple[str, ...]
    find_repeats: Repeats | None
    batch_size: int

    @classmethod
    def load(
        cls,
        plan: Plan,
        stages: tuple[str, ...],
        judge: Filter,
        *,
        device: str,
        dtype: str,
        compile: bool,
        lora: str | None,
        batch_size: int,
    ) -> Maker:
        """Load the model of ``plan``, for ``stages`` and ``judge`` of ``open_filter``."""
        keep_freed_memory()
        dtype = throughput_dtype(device) if dtype == "auto" else dtype
        model = load_model(plan.model, device=device, dtype=dtype, compile=compile, lora=lora)
        repeats = load_repeats(judge, plan_rows=len(plan)) if REPEATS in stages else None
        return cls(plan, model, judge, stages, repeats, batch_size)

    def make(self, prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        """Images of prompts and seeds, in order."""
        return generate(self.model, prompts, seeds=seeds, batch_size=self.batch_size, **self.plan.sampling)

    def warn(self) -> None:
        """Say on stderr what of the plan's texts the model has never seen."""
        few = range(min(len(self.plan), 1000))
        warn_unknown_words(self.model, [self.plan.row(slot).prompt for slot in few])
        info = self.model.info
        for name in unknown_demographics(self.plan, info.vocabulary):
            print(f"roentgen: warning: {info.name} has never seen words of {name} in training", file=sys.stderr)

    def settings(self) -> dict[str, str]:
        """Model and sampling, as in the provenance of its images."""
        info = self.model.info
        chosen = self.model.sampling(**self.plan.sampling).provenance()
        return {
            "name": info.name,
            "hash": info.hash,
            **({} if info.lora is None else {"lora": info.lora}),
            **{key: value for key, value in chosen.items() if value},
            "dtype": info.dtype,
        }

    def info(self, command: str) -> SetInfo:
        """What the whole set shares."""
        return SetInfo(
            name=self.plan.name,
            rows=len(self.plan),
            findings=self.plan.findings,
            model=self.settings(),
            plan=self.plan.as_dict(),
            filter=self._describe_filter(),
            command=command,
            licence=model_licence(self.model.info.folder),
        )

    def measure(self, images: int) -> Rate:
        """Draw, judge and throw away the first images of the plan, ``images`` at most."""
        rows = [self.plan.row(slot) for slot in range(min(images, len(self.plan)))]
        seeds = [self.plan.seed_of(row.slot, 0) for row in rows]
        list(self.make([row.prompt for row in rows[:1]], seeds[:1]))  # the first call is slower than all others
        began = time.perf_counter()
        samples = list(self.make([row.prompt for row in rows], seeds))
        verdicts = self.filter.judge(np.stack([sample.image for sample in samples]), [row.labels for row in rows])
        size = sum(len(encode_image(sample.image, "png", sample.provenance)) for sample in samples)
        return Rate(
            seconds=(time.perf_counter() - began) / len(samples),
            kilobytes=size / len(samples) / 1e3,
            kept=sum(not verdict.stage for verdict in verdicts) / len(samples),
            n=len(samples),
        )

    def _describe_filter(self) -> dict[str, Any] | None:
        if self.stages == ("broken",):
            return None
        described = dict(self.filter.describe())
        if self.find_repeats is not None:
            described["stages"] = {**described["stages"], REPEATS: self.find_repeats.describe()}
        return described
