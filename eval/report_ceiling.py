"""What F1 can a reporter reach? By finding, its AUROC and the highest F1 that this and so rare a finding allow.

    python eval/report_ceiling.py --manifest MANIFEST --documents docs/reports.md

On ``val``, where the thresholds were chosen. Three figures a finding: the F1 of the reporter as it is; the F1 of the
best threshold for these very images, which no reporter can know beforehand; and the highest F1 of two normal curves of
equal width (binormal model, Green & Swets 1966) with that AUROC and prevalence, free of the chance of a few images.
Beside them the AUROC from which that model reaches the goal. Writes ceiling.json under OUT, and its table into the
documents.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from roentgen import errors, threads
from roentgen.config import BatchSize, PathOrName, Seed, ShareBelowOne, parse_settings, require
from roentgen.data.manifest import labels_in, read_manifest
from roentgen.experiments.reading import about
from roentgen.files import require_writable
from roentgen.images import read_image
from roentgen.metrics.adherence.auroc import auroc, weighted_auroc
from roentgen.metrics.adherence.f1 import best_f1_threshold, f1_score
from roentgen.metrics.report.tables import figure, report
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import Bootstrap, Drawn
from roentgen.metrics.text import clinical
from roentgen.reports import load_reporter
from roentgen.reports.labels import LabelsReporter, calibrated

REGION = "reports-ceiling"
RESAMPLES = 500
CUTS = np.linspace(-6, 8, 1401)
"""Thresholds of the binormal model, in standard deviations of the images without the finding."""


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path, "manifest with images of the split"]
    model: Annotated[PathOrName, "labels reporter: mini-report, or a folder"] = "mini-report"
    out: Annotated[Path, "folder for the result"] = Path("eval/results/reports")
    split: Annotated[Literal["val"], "which images; test is not for such questions"] = "val"
    goal: Annotated[ShareBelowOne, "F1 that was hoped for"] = 0.5
    documents: Annotated[tuple[Path, ...], "Markdown files with <!-- results:reports-ceiling --> to fill"] = ()
    seed: Annotated[Seed, "of the bootstrap"] = 0
    batch_size: Annotated[BatchSize, "images read at a time"] = 16


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    s = parse_settings(Settings, argv, prog="eval/report_ceiling.py", about=__doc__)
    path = s.out / "ceiling.json"
    return report(REGION, out=path, result=None, update=s.documents, measure=partial(measured, s), table=as_table)


def measured(s: Settings, out: Path) -> None:
    """The reporter on the images, to ``out``."""
    require_writable(s.out, "--out")
    table = read_manifest(s.manifest, splits=[s.split], allow_empty_text=True)
    reporter = load_reporter(s.model)
    require(isinstance(reporter, LabelsReporter), f"--model {s.model}: is no labels reporter, which has probabilities")
    assert isinstance(reporter, LabelsReporter)
    names = list(reporter.info.findings)
    truth, patients = labels_in(table, names).astype(float), table["patient_id"].tolist()
    require(
        bool(clinical.enough(truth).any()),
        f"--manifest {s.manifest}: no finding has {clinical.LEAST} images of {s.split} with and without it; give more",
    )
    texts, chances = read_all(reporter, table["image"].tolist(), s.batch_size)
    reached = clinical.clinical_scores(
        clinical.read_labels(texts, names), truth, names, patients, bootstrap=Bootstrap(seed=s.seed)
    )
    f1 = {row["finding"]: {key: row[key] for key in ("value", "ci")} for row in reached["findings"]}
    rows = []
    for column in np.flatnonzero(clinical.enough(truth)).tolist():
        known = ~np.isnan(truth[:, column])
        groups = [patient for patient, keep in zip(patients, known, strict=True) if keep]
        row = ceiling_of(chances[known, column], truth[known, column], groups, goal=s.goal, seed=s.seed)
        rows.append({"finding": names[column], "f1": f1[names[column]], **row})
    bound = float(np.mean([row["ceiling"]["value"] for row in rows]))
    context = Context.of("eval/report_ceiling.py", replace(s, documents=()), **about(reporter, s.manifest))
    write_result(
        out, value=bound,
        metric=f"mean over findings of the highest F1 that AUROC and prevalence allow, {s.split}",
        ci_method="none; of each finding by a bootstrap by patient",
        n=len(table), context=context, details={
            "findings": rows, "macro": reached["macro"], "goal": s.goal,
            "macro_auroc": float(np.mean([row["auroc"]["value"] for row in rows])),
        },
    )  # fmt: skip
    print(f"macro F1 {reached['macro']['value']:.3f}; at most {bound:.3f} for these AUROCs")


def read_all(reporter: LabelsReporter, paths: Sequence[str], batch: int) -> tuple[list[str], np.ndarray]:
    """Texts, and calibrated probabilities (N, F), of all images."""
    texts, chances = [], []
    for start in tqdm(range(0, len(paths), batch), file=sys.stderr, unit="batch"):
        reports, seen = reporter.read([read_image(path) for path in paths[start : start + batch]])
        texts += [report.text for report in reports]
        chances.append(calibrated(reporter.rules, seen.image))
    return texts, np.concatenate(chances)


def ceiling_of(
    scores: np.ndarray, truth: np.ndarray, groups: Sequence[object], *, goal: float, seed: int
) -> dict[str, Any]:
    """AUROC, best counted F1 and binormal F1 of ``scores`` (N,) against ``truth`` (N,) in {0, 1}."""
    weights = Bootstrap(RESAMPLES, seed).weights(groups)
    ranked = weighted_auroc(scores, truth, weights)
    share = weights @ truth / weights.sum(1)
    value, prevalence = auroc(scores, truth), float(truth.mean())
    bounds = [binormal_f1(a, p) for a, p in zip(ranked, share, strict=True) if np.isfinite(a) and 0 < p < 1]
    return {
        "positives": int(truth.sum()), "prevalence": prevalence,
        "auroc": Drawn(value, ranked).entry,
        "best_threshold": best_f1(scores, truth),
        "ceiling": Drawn(binormal_f1(value, prevalence), np.array(bounds)).entry,
        "auroc_for_goal": auroc_for(goal, prevalence),
    }  # fmt: skip


def best_f1(scores: np.ndarray, truth: np.ndarray) -> float:
    """The highest F1 that any threshold has on these very images."""
    return f1_score(scores >= best_f1_threshold(scores, truth), truth)


def binormal_f1(area: float, prevalence: float) -> float:
    """The highest F1 over all thresholds of two normal curves of equal width with that AUROC."""
    apart = np.sqrt(2) * ndtri(np.clip(area, 1e-6, 1 - 1e-6))
    found, false = prevalence * ndtr(apart - CUTS), (1 - prevalence) * ndtr(-CUTS)
    return float((2 * found / (found + false + prevalence)).max())


def auroc_for(goal: float, prevalence: float) -> float:
    """The smallest AUROC at which ``binormal_f1`` reaches ``goal``."""
    areas = np.linspace(0.5, 0.9999, 2001)
    values = np.array([binormal_f1(area, prevalence) for area in areas])
    return float(areas[int((values >= goal).argmax())]) if (values >= goal).any() else float("nan")


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of the result."""
    details = result["details"]
    return markdown(
        ["finding", "images with it", "AUROC", "F1", "F1 of the best threshold for these images",
         "highest F1 at this AUROC", f"AUROC needed for F1 {details['goal']:.1f}"],
        [
            [
                row["finding"], f"{row['positives']} ({100 * row['prevalence']:.1f} %)", figure(row["auroc"]),
                figure(row["f1"]), f"{row['best_threshold']:.2f}", figure(row["ceiling"]),
                f"{row['auroc_for_goal']:.2f}",
            ]
            for row in details["findings"]
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/report_ceiling.py"))
