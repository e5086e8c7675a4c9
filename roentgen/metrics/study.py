"""One study of one model: prompts, their real images, what was generated, and the judge that looks at all of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.cache import kept
from roentgen.data.prompt_table import LabelledPrompt
from roentgen.files import sha256
from roentgen.generators.base import Generator, Sampling
from roentgen.images import make_grid, save_image
from roentgen.metrics.adherence import laterality
from roentgen.metrics.memorisation.nearness import Nearness
from roentgen.metrics.result import Context
from roentgen.synthesis.folder import Job, generated_images, in_batches

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """What every measure reads.

    ``prompts[i]``, ``rows.iloc[i]``, ``real[i]``, ``generated[i]`` and ``rebuilt[i]`` belong together, and so do
    ``splits[split].iloc[i]`` and ``pixels[split][i]``. Images are uint8 (N, H, W). ``work`` is the folder of what is
    kept between runs, ``train_key`` names the features of the training images there.
    """

    model: Generator
    sampling: Sampling
    judge: Any
    context: Context
    splits: dict[str, pd.DataFrame]
    pixels: dict[str, NDArray[np.uint8]]
    prompts: list[LabelledPrompt]
    rows: pd.DataFrame
    generated: NDArray[np.uint8]
    real: NDArray[np.uint8]
    rebuilt: NDArray[np.uint8]
    notes: list[str]
    work: Path
    train_key: str
    batch_size: int
    judge_batch_size: int

    def make(self, jobs: Sequence[Job]) -> NDArray[np.uint8]:
        """Generated images of ``jobs``, uint8 (N, H, W)."""
        folder = self.work / "images"
        return generated_images(self.model, jobs, folder, sampling=self.sampling, batch_size=self.batch_size)

    def scores(self, images: NDArray[np.uint8], name: str) -> NDArray[np.float64]:
        """The judge's probabilities (N, F)."""
        found = in_batches(self.judge.predict, images, batch_size=self.judge_batch_size, name=f"judging {name}")
        return found.astype(np.float64)

    def features(self, images: NDArray[np.uint8], name: str) -> NDArray[np.floating]:
        """The judge's features (N, D)."""
        return in_batches(self.judge.features, images, batch_size=self.judge_batch_size, name=f"features of {name}")

    def train_features(self) -> NDArray[np.floating]:
        """The judge's features of all training images, kept: they are the longest wait of a repeated run."""

        def make() -> dict[str, NDArray[np.floating]]:
            return {"features": self.features(self.pixels["train"], "train")}

        return kept(self.work / "cache", "train-features", sha256(self.train_key), make)["features"]

    def leftness(self, images: NDArray[np.uint8], finding: str, name: str) -> NDArray[np.float64]:
        """The judge's left less right for ``finding``, (N,): positive speaks for the patient's left."""
        both = in_batches(self.judge.predict_sides, images, batch_size=self.judge_batch_size, name=f"sides of {name}")
        sides = both[:, list(self.judge.findings).index(finding)].astype(np.float64)
        return sides[:, laterality.LEFT] - sides[:, laterality.RIGHT]


def write_grids(study: Study, nearest: Nearness, out: Path, *, seed: int) -> None:
    """``grid.png``: random generated images; ``nearest.png``: generated, each beside the nearest training image."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(study.prompts)), min(20, len(study.prompts)))
    pairs, texts = [], []
    for i in chosen[:12]:
        number = int(nearest.nearest_train[i])
        row = study.splits["train"].iloc[number]
        pairs += [study.generated[i], np.asarray(study.pixels["train"][number])]
        texts += [f"generated: {study.prompts[i].prompt}", f"train: {row['text']} ({row['source']})"]
    captions = [study.prompts[i].prompt for i in chosen]
    grid = make_grid([study.generated[i] for i in chosen], captions, columns=5)
    marks = {"model": str(study.context.model["name"]), "model_hash": study.model.info.hash}
    for name, picture, content in (
        ("grid.png", grid, "random generated images"),
        ("nearest.png", make_grid(pairs, texts, columns=4), "generated images, each with the nearest one of train"),
    ):
        save_image(picture, out / name, format="png", overwrite=True, provenance={**marks, "content": content})
