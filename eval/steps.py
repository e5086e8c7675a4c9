"""Quality against denoising steps, by sampler, on the validation split: from this curve the default number is chosen.

    python eval/steps.py --manifest MANIFEST --classifier roentgen/models/classifier --out eval/results/mini \
        --plot docs/steps.svg

Prompts are composed from the labels of `val` images, never of `test`; every setting gets the same prompts and seeds,
so differences are paired. The reference is RoentGen's published sampling, PNDM with 75 steps. The default is that
of the setting with the fewest network evaluations whose AUROC is not below the reference's by more than chance, whose
distance to real images is not above it by more than chance (both intervals of the paired difference reach 0), and whose
images are done: they differ from the same sampler's with the most steps by at most 1 % of the grey range in the mean.
Without the last, images that are still hazy pass, since neither of the others is sharp at such an n.
Writes ``OUT/steps.json``. Images are kept in ``--work``, so that a run that was stopped goes on. The plot and the table
of a document can be made again from that file without a manifest:

    python eval/steps.py --measure false --out eval/results/mini --plot docs/steps.svg --update docs/metrics.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from roentgen import errors
from roentgen.config import Filled, Guidance, Steps, parse_settings
from roentgen.experiments.sampling import WARNING, Study, StudySettings, yardstick
from roentgen.files import write_atomic
from roentgen.generators.diffusion.sampling import Sampler, make_solver
from roentgen.metrics.report.tables import figure, report
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import read_result, shown, write_result

NAME = "steps"
"""Of the region in a document."""
REFERENCE = ("pndm", 75)
DONE = 2.55
"""Mean difference in grey levels of 255 to the images of the most steps at which a setting is done: 1 %."""


@dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    """Settings of the curve; with `--measure false` neither manifest nor classifier is needed."""

    measure: Annotated[bool, "false: take the result that OUT holds"] = True
    work: Annotated[Path, "folder for generated images and caches"] = Path("out/steps")
    samplers: Annotated[tuple[Sampler, ...], Filled(), "samplers to compare"] = ("dpm++", "unipc", "ddim", "pndm")
    steps: Annotated[
        tuple[Steps, ...],
        Filled(),
        "numbers of steps to compare; the reference, pndm with 75, is always measured",
    ] = (5, 10, 20, 75)
    guidance: Annotated[Guidance, "guidance scale, the same for all"] = 4.0
    plot: Annotated[Path | None, "SVG file for the curve (None: no plot)"] = None
    update: Annotated[Path | None, "document in which the region results:steps is replaced by the table"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/steps.py", about=__doc__)
    path = s.out / "steps.json"
    report(
        NAME, out=path, result=None if s.measure else path, update=s.update, measure=lambda _: measure(s), table=table
    )
    if s.plot is not None:
        with shown(path):
            drawn = plot(read_result(path))
        write_atomic(s.plot, drawn.encode())
    return 0


def measure(s: Settings) -> None:
    """Every setting on the same prompts and seeds, to ``OUT/steps.json``."""
    study = Study.of(s)
    real = study.features(study.real(study.val))
    # The reference last, as it takes longest.
    settings = [(sampler, steps) for sampler in s.samplers for steps in sorted(s.steps)]
    settings = [one for one in settings if one != REFERENCE] + [REFERENCE]
    images: dict[tuple[str, int], NDArray[np.uint8]] = {}
    seen: dict[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for sampler, steps in settings:
        folder = f"{sampler.replace('+', 'p')}-{steps}"
        images[sampler, steps] = made = study.made(folder, steps=steps, guidance=s.guidance, sampler=sampler)
        seen[sampler, steps] = study.judge.predict(made).astype(float), study.features(made)
    patients, real_patients = (rows["patient_id"].tolist() for rows in (study.rows, study.val))
    curve = measured(seen, study.labels, study.judge.findings, patients, real, real_patients, seed=s.seed)
    for point, (sampler, steps) in zip(curve, settings, strict=True):
        most = max(count for name, count in settings if name == sampler)
        point |= {
            "evaluations": evaluations(study.model, sampler, steps),
            "change": mean_difference(images[sampler, steps], images[sampler, most]),
        }
        print(f"{sampler} {steps}: AUROC {figure(point['auroc'])}, FID {figure(point['fid'], digits=1)}", flush=True)
    chosen = choose(curve)
    write_result(
        s.out / "steps.json", metric="network evaluations of the default sampling, by quality on val",
        value=chosen["evaluations"], ci_method="none: a count", n=len(study.rows),
        context=study.context("eval/steps.py", dtype=f"torch.{study.model.info.dtype}"), warnings=[WARNING],
        details={"chosen": {key: chosen[key] for key in ("sampler", "steps")}, "reference": list(REFERENCE),
                 "real_n": len(study.val), "curve": curve},
    )  # fmt: skip


def measured(
    seen: Mapping[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]],
    labels: NDArray[np.float64],
    findings: Sequence[str],
    patients: Sequence[str],
    real: NDArray[np.float64],
    real_patients: Sequence[str],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """AUROC and Frechet distance of each setting with intervals, and the paired differences to the reference's."""
    judged = yardstick(labels, findings, patients, real, real_patients, seed=seed)
    found = {setting: judged(*images) for setting, images in seen.items()}
    auroc, distance = found[REFERENCE]
    return [
        {
            "sampler": sampler, "steps": steps, "findings": mine.names, "auroc": mine.entry, "fid": apart.entry,
            "auroc_less_reference": mine.less(auroc).entry, "fid_less_reference": apart.less(distance).entry,
        }
        for (sampler, steps), (mine, apart) in found.items()
    ]  # fmt: skip


def evaluations(model: Any, sampler: str, steps: int) -> int:
    """Calls of the U-Net, each with both halves of the guidance: PNDM makes one more than its steps."""
    scheduler = make_solver(model.scheduler, sampler, model.info.name)
    scheduler.set_timesteps(steps)
    return len(scheduler.timesteps)


def mean_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean absolute difference in grey levels, 0 to 255, of images (N, H, W)."""
    return float(np.abs(a.astype(np.int16) - b).mean())


def choose(curve: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The setting with the fewest evaluations that is done and, by its intervals, no worse than the reference.

    Of equal counts the one nearer to real images; the reference itself where nothing else is done.
    """
    fit = [
        p
        for p in curve
        if p["auroc_less_reference"]["ci"][1] >= 0 and p["fid_less_reference"]["ci"][0] <= 0 and p["change"] <= DONE
    ]
    if not fit:
        return next(p for p in curve if (p["sampler"], p["steps"]) == REFERENCE)
    return min(fit, key=lambda p: (p["evaluations"], p["fid"]["value"]))


def table(result: Mapping[str, Any]) -> str:
    """Markdown of the curve with its conditions below."""
    details = result["details"]
    head = ["sampler", "steps", "network calls", "AUROC", "less reference", "FID", "less reference", "change"]
    rows = []
    for p in sorted(details["curve"], key=lambda p: (p["sampler"], p["steps"])):
        bold = "**" if {"sampler": p["sampler"], "steps": p["steps"]} == details["chosen"] else ""
        rows.append(
            [
                f"{bold}{p['sampler']}{bold}",
                str(p["steps"]),
                str(p["evaluations"]),
                figure(p["auroc"], digits=3),
                figure(p["auroc_less_reference"], digits=3),
                figure(p["fid"], digits=1),
                figure(p["fid_less_reference"], digits=1),
                f"{p['change']:.1f}",
            ]
        )
    model, settings = result["model"], result["settings"]
    names = ", ".join(details["curve"][0]["findings"]) or "no finding: too few cases of each"
    return markdown(
        head, rows,
        f"`{model['name']}` ({model['hash']}), guidance {settings['guidance']:g}, {result['n']} prompts of `val`, "
        f"the same prompts and seeds for every row; macro AUROC over {names}; Frechet distance in the classifier's "
        f"features to {details['real_n']} real `val` images. Reference: {details['reference'][0]} with "
        f"{details['reference'][1]} steps. Change: mean difference in grey levels of 255 to the images of the same "
        f"sampler's most steps. Bold: fewest network calls with a change of at most {DONE} and neither measure "
        "worse beyond its interval.",
        f"Made by `{result['command']}`.",
    )  # fmt: skip


def plot(result: Mapping[str, Any]) -> str:
    """SVG: AUROC and Frechet distance against network evaluations, a line a sampler."""
    from roentgen.metrics.report.plots import COLOURS, LINES, MARKERS, drawing

    curve, reference = result["details"]["curve"], result["details"]["reference"]
    with drawing(7.2, 3.2) as (page, buffer):
        for axes, key, words in zip(
            page.subplots(1, 2), ("auroc", "fid"), ("macro AUROC", "Fréchet distance"), strict=True
        ):
            for number, sampler in enumerate(dict.fromkeys(p["sampler"] for p in curve)):
                points = [p for p in curve if p["sampler"] == sampler and p[key]["value"] is not None]
                points.sort(key=lambda p: p["evaluations"])
                x, y = [p["evaluations"] for p in points], [p[key]["value"] for p in points]
                style: Any = {"marker": MARKERS[number], "linestyle": LINES[number], "color": COLOURS[number]}
                axes.plot(x, y, label=sampler if key == "auroc" else None, markersize=4, **style)
            low, high = next(p for p in curve if [p["sampler"], p["steps"]] == reference)[key]["ci"]
            if low is not None and high is not None:  # prompts with too few cases have no AUROC
                axes.axhspan(low, high, color="#dddddd", zorder=0)
            axes.set_xscale("log")
            ticks = sorted({p["steps"] for p in curve})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlabel(f"network calls (grey: interval of {reference[0].upper()}, {reference[1]} steps)")
            axes.set_ylabel(words)
        page.legend(loc="outside upper center", ncols=4, fontsize=8)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/steps.py"))
