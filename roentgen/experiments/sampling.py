"""Images of the same prompts and seeds with several sampling settings, on the validation split, before one judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.config import BatchSize, PathOrName, Range, Seed, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.files import file_hash, require_writable
from roentgen.generators.base import Generator
from roentgen.generators.generate import load_model
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.adherence.scored import LEAVE_OUT, Macro
from roentgen.metrics.distribution import frechet
from roentgen.metrics.pairing import draw_prompts
from roentgen.metrics.result import Context
from roentgen.metrics.statistics import Bootstrap, Drawn, Floats
from roentgen.models.classifier import Classifier, load_classifier
from roentgen.provenance import portable
from roentgen.synthesis.folder import Job, generated_images

SIDE = 256
FID_RESAMPLES = 200  # each costs a matrix root
WARNING = "chosen on val; Frechet distances at this n are biased upwards and only comparable in this file"


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Settings of a study of sampling."""

    out: Annotated[Path, "folder for the result"]
    manifest: Annotated[Path | None, "manifest with `val` images"] = None
    classifier: Annotated[Path | None, "folder of the judge"] = None
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    work: Annotated[Path, "folder for generated images and caches"] = Path("out/sampling")
    images: Annotated[
        int, Range(10, 10**12), "prompts a setting, two thirds of them with findings where there are enough"
    ] = 144
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, "number format (default: float16 on a GPU, else float32)"
    ] = None
    seed: Annotated[Seed, "seed of the first image, and of texts"] = 20_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 16


def yardstick(
    labels: Floats, findings: Sequence[str], patients: Sequence[str], real: Floats, real_patients: Sequence[str],
    *, seed: int,
) -> Callable[[Floats, Floats], tuple[Macro, Drawn]]:  # fmt: skip
    """What measures images by scores (N, F) and features (N, D): macro AUROC, and Frechet distance to ``real`` (M, D).

    The patients are drawn once, so that the differences between sets of images are paired.
    """
    weights = Bootstrap(seed=seed).weights(patients)
    pairs = list(zip(weights, Bootstrap(FID_RESAMPLES, seed + 1).weights(real_patients), strict=False))

    def measured(scores: Floats, features: Floats) -> tuple[Macro, Drawn]:
        found = macro_auroc(scores, labels, findings, weights, leave_out=LEAVE_OUT)
        return found, frechet.resampled_distance(features, real, pairs)

    return measured


@dataclass(frozen=True, eq=False)
class Study:
    """The prompts of val with the labels that they were composed from, the model that draws them, and the judge."""

    settings: StudySettings
    judge: Classifier
    model: Generator
    val: pd.DataFrame
    rows: pd.DataFrame
    texts: Sequence[str]

    @classmethod
    def of(cls, s: StudySettings) -> Study:
        """UserError where the manifest, the judge or the model is missing."""
        require(s.manifest is not None, "--manifest is missing; name a manifest with val images")
        require(s.classifier is not None, "--classifier is missing; name a classifier's folder")
        assert s.manifest is not None and s.classifier is not None
        require_writable(s.out, "--out")
        judge, model = load_classifier(s.classifier), load_model(s.model, dtype=s.dtype)
        val = read_manifest(s.manifest, splits=["val"], allow_empty_text=True)
        return cls(s, judge, model, val, *draw_prompts(val, s.images, s.seed))

    @property
    def labels(self) -> Floats:
        """(N, F) of the judge's findings, as the prompts say them."""
        return self.rows[self.judge.findings].to_numpy(dtype=float)

    def real(self, rows: pd.DataFrame) -> NDArray[np.uint8]:
        """The real images of ``rows`` at ``SIDE``."""
        return np.asarray(load_pixels(rows["image"].tolist(), size=SIDE, cache=self.settings.work / "cache").pixels)

    def made(self, folder: str, **sampling: Any) -> NDArray[np.uint8]:
        """Every prompt with this sampling, from the same seeds; kept in ``folder`` of the work folder."""
        s = self.settings
        jobs = [Job(text, s.seed + number) for number, text in enumerate(self.texts)]
        chosen = self.model.sampling(**sampling)
        return generated_images(self.model, jobs, s.work / folder, sampling=chosen, batch_size=s.batch_size)

    def auroc(self, images: NDArray[np.uint8]) -> Macro:
        """The judge's macro AUROC of images in the order of the prompts."""
        weights = Bootstrap(seed=self.settings.seed).weights(self.rows["patient_id"].tolist())
        scores = self.judge.predict(images).astype(float)
        return macro_auroc(scores, self.labels, self.judge.findings, weights, leave_out=LEAVE_OUT)

    def features(self, images: NDArray[np.uint8]) -> Floats:
        """The judge's features (N, D)."""
        return self.judge.features(images).astype(np.float64)

    def context(self, script: str, **model: Any) -> Context:
        """What the result says of the study; ``model`` is added to name and hash."""
        s = self.settings
        assert s.manifest is not None and s.classifier is not None
        about: Mapping[str, Any] = {"name": portable(self.model.info.name), "hash": self.model.info.hash}
        return Context.of(
            script,
            s,
            extractor=f"roentgen classifier {s.classifier.name}, sha256 {file_hash(s.classifier)}",
            resize=f"shorter side to {SIDE} px, centre crop; then the classifier's own size",
            model={**about, **model},
            inputs={"manifest": s.manifest.name},
        )
