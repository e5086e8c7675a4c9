"""Choose sampler and guidance scale on the validation split: adherence, nearness, variety and sharpness together.

    python eval/guidance.py --manifest MANIFEST --classifier roentgen/models/classifier --out eval/results/mini \
        --samplers "[unipc, unipc-karras]" --guidance "[1.5, 2, 3]" --update docs/evaluate.md

Prompts are composed from the labels of `val` images, never of `test`; every setting gets the same prompts and seeds.
Chosen: of the settings whose AUROC is within 0.02 of the best, the one nearest to the real images (Frechet distance).
Writes ``OUT/NAME.json``; images are kept in ``--work``, so that a run that was stopped goes on. The table of a
document can be made again from that file without a manifest: ``--measure false``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from roentgen import errors
from roentgen.config import BatchSize, Filled, Guidance, Range, Seed, Share, Steps, parse_settings
from roentgen.experiments.sampling import SIDE, WARNING, Study, StudySettings
from roentgen.generators.diffusion.sampling import Sampler
from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.prdc import manifolds
from roentgen.metrics.report.tables import figure, report
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result
from roentgen.metrics.sharpness import CLIPPED_WHITE, COHERENCE, CONTRAST, MIN_SIDE, band_name, sharpness_of

BANDS = ((16, 32), (32, 48), (48, 64))
SLACK = 0.02
"""AUROC that a setting may lie below the best one and still be chosen."""


@dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Settings of the choice; with `--measure false` neither manifest nor classifier is needed."""

    measure: Annotated[bool, "false: take the result that OUT holds"] = True
    name: Annotated[str, "of the result file, and of the region in the document"] = "guidance"
    work: Annotated[Path, "folder for generated images and caches"] = Path("out/guidance")
    guidance: Annotated[tuple[Guidance, ...], Filled(), "scales to compare"] = (1.5, 3.0, 5.0)
    guided_from: Annotated[
        tuple[Share, ...], Filled(), "shares of the steps after which guidance begins, to compare"
    ] = (0.0,)
    samplers: Annotated[tuple[Sampler, ...], Filled(), "samplers to compare"] = ("unipc",)
    images: Annotated[
        int, Range(10, 10**12), "prompts a setting, two thirds of them with findings where there are enough"
    ] = 200
    steps: Annotated[Steps | None, "inference steps (default: the model's own)"] = None
    seed: Annotated[Seed, "seed of the first image, and of texts"] = 10_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 8
    update: Annotated[Path | None, "document in which the region results:NAME is replaced by the table"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/guidance.py", about=__doc__)
    path = s.out / f"{s.name}.json"
    report(
        s.name, out=path, result=None if s.measure else path, update=s.update, measure=lambda _: measure(s), table=table
    )
    return 0


def measure(s: Settings) -> None:
    """Every setting on the same prompts and seeds, and the real images, to ``OUT/guidance.json``."""
    study = Study.of(s)
    real = study.real(study.rows)
    features = study.features(real)
    moments = frechet.moments(features)

    def score(images: np.ndarray) -> dict[str, Any]:
        found, seen = study.auroc(images), study.features(images)
        near = manifolds(features, seen)
        return {
            "auroc": {"value": found.value, "ci": found.ci},
            "findings": found.names,
            "frechet_to_val": frechet.frechet_distance(frechet.moments(seen), moments),
            "density": near.density,
            "coverage": near.coverage,
            "sharpness": sharpness_of(images) if min(images.shape[1:]) >= MIN_SIDE else None,
        }

    curve: list[dict[str, Any]] = [{"sampler": "", "guidance": None, "set": "real", **score(real)}]
    for sampler, scale, begin in product(s.samplers, s.guidance, s.guided_from):
        folder = f"{sampler.replace('+', 'p')}-{scale:g}{f'-from-{begin:g}' if begin else ''}/images"
        made = study.made(folder, steps=s.steps, guidance=scale, sampler=sampler, guided_from=begin)
        point = {"sampler": sampler, "guidance": scale, "guided_from": begin, "set": "generated"}
        curve.append({**point, **score(made)})
        print(curve[-1], file=sys.stderr, flush=True)
    best = choose(curve[1:])
    steps = study.model.sampling(steps=s.steps).steps
    write_result(
        s.out / f"{s.name}.json", metric="macro AUROC on val prompts by sampler and guidance scale",
        value=float(best["auroc"]["value"]), ci=best["auroc"]["ci"], ci_method="95 % percentile, bootstrap by patient",
        n=len(study.rows), context=study.context("eval/guidance.py"), warnings=[WARNING],
        details={
            "best": best["guidance"], "sampler": best["sampler"], "guided_from": best["guided_from"], "steps": steps,
            "curve": curve,
        },
    )  # fmt: skip


def choose(points: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the settings whose AUROC is at most ``SLACK`` below the best, the one nearest to real images."""
    most = max(float(point["auroc"]["value"]) for point in points)
    # Prompts with too few cases of every finding have no AUROC: nearness alone decides.
    fit = [point for point in points if not float(point["auroc"]["value"]) < most - SLACK]
    return min(fit, key=lambda point: float(point["frechet_to_val"]))


def sharpness_cells(sharp: Mapping[str, float]) -> list[str]:
    """Cells of the row of a set of images whose sharpness is ``sharp``."""
    powers = [f"{sharp[band_name(*band)]:.4f}" for band in BANDS]
    return [*powers, f"{sharp[COHERENCE]:.3f}", f"{sharp[CONTRAST]:.1f}", f"{sharp[CLIPPED_WHITE]:.2%}"]


def table(result: Mapping[str, Any]) -> str:
    """Markdown of every setting beside the real images, with its conditions below."""
    details = result["details"]
    # A result made before there were intervals knows no `guided_from`.
    chosen = (details["sampler"], details["best"], details.get("guided_from", 0))
    head = ["sampler", "guidance", "from", "AUROC", "FID", "density", "coverage"]
    head += [f"power {low}-{high}" for low, high in BANDS] + ["coherence", "contrast", "white"]
    rows = []
    for point in details["curve"]:
        begin = point.get("guided_from", 0)
        bold = "**" if (point["sampler"], point["guidance"], begin) == chosen else ""
        real, sharp = point["set"] == "real", point["sharpness"]
        rows.append(
            [
                "real images" if real else f"{bold}{point['sampler']}{bold}",
                "" if real else f"{point['guidance']:g}",
                "" if real else f"{begin:.0%}",
                figure(point["auroc"], digits=3),
                "" if real else f"{point['frechet_to_val']:.1f}",
                "" if real else f"{point['density']:.2f}",
                "" if real else f"{point['coverage']:.2f}",
                *(sharpness_cells(sharp) if sharp else [""] * (len(BANDS) + 3)),
            ]
        )
    model, names = result["model"], ", ".join(details["curve"][0]["findings"]) or "none"
    return markdown(
        head, rows,
        f"`{model['name']}` ({model['hash']}), {details['steps']} steps, {result['n']} prompts of `val`, the same "
        f"prompts and seeds for every row; macro AUROC over {names}; "
        f"distances in the classifier's features to as many real `val` images, all at {SIDE} px. Power: share of "
        "the image's power in a band of cycles an image. White: pixels above 240. From: share of the steps "
        "that pass before guidance begins. Bold: nearest to real images of "
        f"those whose AUROC is within {SLACK} of the best.",
        f"Made by `{result['command']}`.",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/guidance.py"))
