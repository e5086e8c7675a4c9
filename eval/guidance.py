"""Choose the guidance scale on the validation split: adherence and distance to real images at several scales.

    python eval/guidance.py --manifest MANIFEST --classifier roentgen/models/classifier --out eval/results/mini

Prompts are composed from the labels of `val` images, never of `test`. Writes ``OUT/guidance.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from roentgen import errors
from roentgen.config import (
    BatchSize,
    Filled,
    Guidance,
    PathOrName,
    Range,
    Seed,
    Steps,
    as_dict,
    parse_settings,
)
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.files import file_hash, require_writable
from roentgen.generators.generate import load_model
from roentgen.metrics.adherence import auroc
from roentgen.metrics.distribution import frechet
from roentgen.metrics.pairing import draw_prompts
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import cluster_weights
from roentgen.models.classifier import load_classifier
from roentgen.provenance import command_line, portable
from roentgen.synthesis.folder import Job, generated_images


@dataclass(frozen=True)
class Settings:
    """Settings of the choice."""

    manifest: Annotated[Path, "manifest with `val` images"]
    classifier: Annotated[Path, "the judge"]
    out: Annotated[Path, "folder for guidance.json"]
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    work: Annotated[Path, "folder for generated images and caches"] = Path("out/guidance")
    guidance: Annotated[tuple[Guidance, ...], Filled(), "scales to compare"] = (1.5, 3.0, 5.0)
    images: Annotated[
        int,
        Range(10, 10**12),
        "prompts a scale, two thirds of them with findings where there are enough",
    ] = 200
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        "float32, float16 or bfloat16 (default: float16 on a GPU, else float32)",
    ] = None
    steps: Annotated[Steps | None, "inference steps (default: the model's own)"] = None
    sampler: Annotated[Literal["dpm++", "unipc", "ddim", "pndm"] | None, "sampler (default: the model's own)"] = None
    seed: Annotated[Seed, "seed of the first image, and of texts"] = 10_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 8


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/guidance.py", about=__doc__)
    require_writable(s.out, "--out")
    judge, model = load_classifier(s.classifier), load_model(s.model, dtype=s.dtype)
    table = read_manifest(s.manifest, splits=["val"], allow_empty_text=True)
    rows, texts = draw_prompts(table, s.images, s.seed)
    labels = rows[judge.findings].to_numpy(dtype=float)
    weights = cluster_weights(rows["patient_id"].tolist(), 1000, s.seed)
    real = load_pixels(rows["image"].tolist(), size=256, cache=s.work / "cache").pixels
    real_moments = frechet.moments(judge.features(np.asarray(real)))

    def score(images: np.ndarray) -> dict[str, object]:
        found = auroc.macro_auroc(
            judge.predict(images).astype(float), labels, judge.findings, weights, leave_out=("No Finding",)
        )
        distance = frechet.frechet_distance(frechet.moments(judge.features(images)), real_moments)
        return {"auroc": found.value, "ci": found.ci, "findings": found.names, "frechet_to_val": distance}

    curve = [{"guidance": None, "set": "real", **score(np.asarray(real))}]
    for scale in s.guidance:
        sampling = model.sampling(steps=s.steps, guidance=scale, sampler=s.sampler)
        jobs = [Job(text, s.seed + i) for i, text in enumerate(texts)]
        made = generated_images(
            model, jobs, s.work / f"guidance-{scale:g}" / "images", sampling=sampling, batch_size=s.batch_size
        )
        curve.append({"guidance": scale, "set": "generated", **score(made)})
        print(curve[-1], flush=True)
    best = max(curve[1:], key=lambda point: float(str(point["auroc"])))
    context = Context(
        extractor=f"roentgen classifier {s.classifier.name}, sha256 {file_hash(s.classifier)}",
        resize="shorter side to 256 px, centre crop; then the classifier's own size", seed=s.seed,
        settings={key: portable(value) for key, value in as_dict(s).items()},
        model={"name": portable(model.info.name), "hash": model.info.hash}, inputs={"manifest": s.manifest.name},
        command=command_line("eval/guidance.py", s),
    )  # fmt: skip
    write_result(
        s.out / "guidance.json", metric="macro AUROC on val prompts by guidance scale", value=float(str(best["auroc"])),
        ci=best["ci"], ci_method="95 % percentile, bootstrap by patient", n=len(rows), context=context,
        warnings=["chosen on val; Frechet distances at this n are biased upwards and only comparable in this file"],
        details={"best": best["guidance"], "curve": curve},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/guidance.py"))
