"""Choose the guidance scale on the validation split: adherence and distance to real images at several scales.

    python eval/guidance.py --manifest MANIFEST --classifier roentgen/models/classifier --out eval/results/mini

Prompts are composed from the labels of `val` images, never of `test`. Writes ``OUT/guidance.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from roentgen import errors
from roentgen.config import BatchSize, Filled, Guidance, Range, Seed, Steps, parse_settings
from roentgen.experiments.sampling import WARNING, Sampler, Study, StudySettings
from roentgen.metrics.distribution import frechet
from roentgen.metrics.result import write_result
from roentgen.synthesis.folder import Job, generated_images


@dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Settings of the choice."""

    work: Annotated[Path, "folder for generated images and caches"] = Path("out/guidance")
    guidance: Annotated[tuple[Guidance, ...], Filled(), "scales to compare"] = (1.5, 3.0, 5.0)
    images: Annotated[
        int, Range(10, 10**12), "prompts a scale, two thirds of them with findings where there are enough"
    ] = 200
    steps: Annotated[Steps | None, "inference steps (default: the model's own)"] = None
    sampler: Annotated[Sampler | None, "sampler (default: the model's own)"] = None
    seed: Annotated[Seed, "seed of the first image, and of texts"] = 10_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 8


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/guidance.py", about=__doc__)
    study = Study.of(s, generated_images, Job)
    real = study.real(study.rows)
    real_moments = frechet.moments(study.features(real))

    def score(images: np.ndarray) -> dict[str, Any]:
        found = study.auroc(images)
        distance = frechet.frechet_distance(frechet.moments(study.features(images)), real_moments)
        return {"auroc": found.value, "ci": found.ci, "findings": found.names, "frechet_to_val": distance}

    curve: list[dict[str, Any]] = [{"guidance": None, "set": "real", **score(real)}]
    for scale in s.guidance:
        made = study.made(f"guidance-{scale:g}/images", steps=s.steps, guidance=scale, sampler=s.sampler)
        curve.append({"guidance": scale, "set": "generated", **score(made)})
        print(curve[-1], flush=True)
    best = max(curve[1:], key=lambda point: float(point["auroc"]))
    write_result(
        s.out / "guidance.json", metric="macro AUROC on val prompts by guidance scale", value=float(best["auroc"]),
        ci=best["ci"], ci_method="95 % percentile, bootstrap by patient", n=len(study.rows),
        context=study.context("eval/guidance.py"), warnings=[WARNING],
        details={"best": best["guidance"], "curve": curve},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/guidance.py"))
