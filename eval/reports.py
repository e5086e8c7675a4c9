"""How good are a reporter's reports and boxes on real images? Beside reporters that do not look, and a prior of places.

    python eval/reports.py --manifest MANIFEST --boxes METADATA.csv ... --documents docs/reports.md
    python eval/reports.py --tables-only --documents docs/reports.md

Everything is measured on ``test``, once. Writes clinical.json, text.json, grounding.json and speed.json under OUT, and
their tables into the documents.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from roentgen import errors, threads
from roentgen.config import BatchSize, Count, PathOrName, Seed, parse_settings, require, seed_of_32_bits
from roentgen.data.boxes import by_label, read_boxes
from roentgen.data.manifest import finding_columns, labels_in, read_manifest
from roentgen.experiments.reading import about
from roentgen.files import require_writable
from roentgen.images import read_image
from roentgen.metrics.reading import sides_of
from roentgen.metrics.report.tables import figure, report
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import Context, read_result, write_result
from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import clinical, grounding
from roentgen.metrics.text.report_scores import BLEU, Described, text_scores
from roentgen.prompts import NO_FINDING, labels_from_row, statement
from roentgen.reports import Reporter, load_reporter
from roentgen.reports.boxes import Box
from roentgen.reports.finding_net import squash
from roentgen.reports.grounding import boxes_of
from roentgen.reports.labels import LabelsReporter

CI = "95 % percentile, bootstrap by patient, 1000 resamples"
TEXT = (*BLEU, "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "METEOR", "CIDEr")
NORMAL, ALL, RANDOM, NEAREST = "always normal", "every finding", "random report", "nearest training image's report"
NIH = "NIH ChestX-ray14"
NAMES = tuple(f"reports-{name}" for name in ("clinical", "findings", "text", "places", "radfact"))


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path | None, "manifest with `train` and `test` images"] = None
    boxes: Annotated[tuple[Path, ...], "tables of boxes, as for `roentgen train report`"] = ()
    model: Annotated[PathOrName, "reporter: mini-report, a folder or hub id"] = "mini-report"
    out: Annotated[Path, "folder for the results"] = Path("eval/results/reports")
    split: Annotated[Literal["test", "val"], "which images; figures are those of test"] = "test"
    images: Annotated[Count, "at most so many, drawn at random"] = 100_000
    nearest: Annotated[Count, "training images among which the nearest is looked for, drawn at random"] = 2_000
    documents: Annotated[tuple[Path, ...], "Markdown files with <!-- results:reports-... --> to fill"] = ()
    tables_only: Annotated[bool, "measure nothing; fill documents from OUT"] = False
    seed: Annotated[Seed, "of draws and of the bootstrap"] = 0
    batch_size: Annotated[BatchSize, "images read at a time"] = 16


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    s = parse_settings(Settings, argv, prog="eval/reports.py", about=__doc__)
    require(s.tables_only or s.manifest is not None, "--manifest is missing: manifest with `train` and `test` images")
    path = s.out / "clinical.json"
    return report(
        NAMES, out=path, result=path if s.tables_only else None, update=s.documents, measure=lambda _: measure(s),
        table=lambda _: tables(s.out),
    )  # fmt: skip


def measure(s: Settings) -> None:
    """Read all images once, score, and write the results."""
    require_writable(s.out, "--out")
    assert s.manifest is not None
    table = read_manifest(s.manifest, splits=["train", s.split], allow_empty_text=True)
    test = drawn(table[table["split"] == s.split], s.images, s.seed)
    train = drawn(table[table["split"] == "train"], s.nearest, s.seed)
    require(len(test) > 0 and len(train) > 0, f"--manifest {s.manifest}: needs images of train and {s.split}")
    boxes = read_boxes(s.boxes) if s.boxes else {}
    reporter = load_reporter(s.model)
    findings = reporter.info.findings or tuple(name for name in finding_columns(table) if name != NO_FINDING)
    require(
        bool(clinical.enough(labels_in(test, findings)).any()),
        f"--manifest {s.manifest}: no finding has {clinical.LEAST} images of {s.split} with and without it; give more",
    )
    public = dataclasses.replace(s, boxes=tuple(Path(*path.parts[-2:]) for path in s.boxes))  # not whose disk it is
    context = Context.of("eval/reports.py", public, **about(reporter, s.manifest))
    began = time.perf_counter()
    reports, deep, places = read_all(reporter, test["image"].tolist(), s.batch_size)
    seconds = time.perf_counter() - began
    _, train_deep, _ = read_all(reporter, train["image"].tolist(), s.batch_size)
    said = {"this reporter": [report.text for report in reports]} | without_looking(
        test, train, deep, train_deep, findings=findings, seed=s.seed
    )
    write_clinical(s, test, said, findings, context)
    write_text(s, test, said, context)
    if boxes and reporter.info.placed:
        write_grounding(s, table, test, boxes, reporter=reporter, reports=reports, places=places, context=context)
    write_result(
        s.out / "speed.json", metric="seconds an image, reading included, after the first", value=seconds / len(test),
        ci_method="none: one run", n=len(test), context=context,
        warnings=["measured beside other work on the machine"], details={"batch_size": s.batch_size},
    )  # fmt: skip


def drawn(rows: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most ``most`` rows, at random, in the order of the table."""
    if len(rows) > most:
        rows = rows.sample(most, random_state=seed_of_32_bits(seed)).sort_index()
    return rows.reset_index(drop=True)


def read_all(reporter: Reporter, paths: Sequence[str], batch: int) -> tuple[list[Any], np.ndarray, list[Any]]:
    """Reports, unit features (N, D), and the boxes of each finding that the reporter places, by image.

    Features are the reporter's own, of one that writes text the standardised pixels of 32 x 32.
    """
    reports: list[Any] = []
    deep: list[np.ndarray] = []
    places: list[dict[str, tuple[Box, ...]]] = []
    for start in tqdm(range(0, len(paths), batch), file=sys.stderr, unit="batch"):
        pixels = [read_image(path) for path in paths[start : start + batch]]
        if not isinstance(reporter, LabelsReporter):
            reports += reporter.report_many(pixels)
            small = np.stack([squash(image, 32).ravel() for image in pixels]).astype(np.float32)
            deep.append(small - small.mean(1, keepdims=True))
            places += [{} for _ in pixels]
            continue
        found, seen = reporter.read(pixels)
        reports += found
        deep.append(seen.deep)
        columns = {name: column for column, name in enumerate(reporter.rules.findings)}
        for row in range(len(pixels)):
            maps, edges = seen.maps[row], seen.edges[row]
            places.append(
                {
                    name: boxes_of(name, maps[columns[name]], edges, reporter.rules.places)
                    for name in reporter.info.placed
                }
            )
    features = np.concatenate(deep)
    return reports, features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9), places


def without_looking(
    test: pd.DataFrame, train: pd.DataFrame, deep: np.ndarray, train_deep: np.ndarray, *, findings: Sequence[str],
    seed: int,
) -> dict[str, list[str]]:  # fmt: skip
    """Texts of the reporters that expose what a score rewards: none of them reads a finding off the image."""
    rng = np.random.default_rng(seed)
    theirs = train["text"].tolist()
    nearest = np.concatenate([(part @ train_deep.T).argmax(1) for part in np.array_split(deep, 1 + len(deep) // 512)])
    return {
        NORMAL: [clinical.NORMAL_REPORT] * len(test),
        ALL: [" ".join(statement(name) for name in findings)] * len(test),
        RANDOM: [theirs[row] for row in rng.integers(0, len(theirs), len(test))],
        NEAREST: [theirs[row] for row in nearest],
    }


def write_clinical(
    s: Settings, test: pd.DataFrame, said: Mapping[str, list[str]], names: Sequence[str], context: Context
) -> None:
    """Findings and sides read off each text, against the labels of the images."""
    findings, patients = list(names), test["patient_id"].tolist()
    truth = labels_in(test, findings).astype(float)
    normal = [None if np.isnan(v) else bool(v) for v in labels_in(test, [NO_FINDING])[:, 0]]
    adults = (test["source"] == NIH).to_numpy() if "source" in test else np.zeros(len(test), bool)
    rows, drawn = {}, {}
    for name, texts in said.items():
        labels = clinical.read_labels(texts, findings)
        found = clinical.clinical_scores(labels, truth, findings, patients, bootstrap=Bootstrap(seed=s.seed))
        drawn[name] = found.pop("drawn")
        nih = None
        if clinical.enough(truth[adults]).any():
            nih = clinical.clinical_scores(
                labels[adults], truth[adults], findings, [p for p, keep in zip(patients, adults, strict=True) if keep]
            )
        rows[name] = found | {
            "nih_only": nih and {"macro": nih["macro"], "micro": nih["micro"]},
            "sides": clinical.side_scores(clinical.read_sides(texts, findings), sides_of(test, findings), patients),
            "normal": clinical.normal_and_abnormal(texts, normal),
            "distinct": clinical.distinct_share(texts),
        }
    mine = rows["this reporter"]["macro"]
    better = {
        name: drawn["this reporter"].less(other).entry for name, other in drawn.items() if name != "this reporter"
    }
    write_result(
        s.out / "clinical.json", metric=f"macro F1 of findings read off the reports, {s.split}", value=mine["value"],
        ci=mine["ci"], ci_method=CI, n=len(test), context=context,
        goal="above every reporter that does not look; effusion and cardiomegaly F1 at least .5",
        warnings=[
            "labels of NIH were mined from reports; pneumonia is mostly that of children from one hospital, so its "
            "figure is partly that of the hospital: see nih_only",
        ],
        details={"reporters": rows, "difference_in_macro_f1": better},
    )  # fmt: skip


def write_text(s: Settings, test: pd.DataFrame, said: Mapping[str, list[str]], context: Context) -> None:
    """Word overlap with the manifest's texts, most of which were composed from labels."""
    keep = [row for row, text in enumerate(test["text"]) if text]
    references = [test["text"].iloc[row] for row in keep]
    patients = [test["patient_id"].iloc[row] for row in keep]
    rows: dict[str, Any] = {}
    for name, texts in said.items():
        found = text_scores(
            Described([texts[row] for row in keep], references, patients), scores=TEXT, bootstrap=Bootstrap(seed=s.seed)
        )
        rows[name] = {
            score: {"value": one.value, "ci": one.ci, "floor": one.floor}
            if one.details["not_computed"] is None
            else {"value": None, "why": one.details["not_computed"]}
            for score, one in found.items()
        }
    real = [labels_from_row(row) for row in test.iloc[keep].to_dict("records")]
    first = rows["this reporter"]["ROUGE-L"]
    write_result(
        s.out / "text.json", metric=f"ROUGE-L of reports against the texts of {s.split}", value=first["value"],
        ci=first["ci"], ci_method=CI, n=len(keep), context=context,
        warnings=["most references are composed from labels, so these figures compare with no others"],
        details={"reporters": rows, "images_with_findings": sum(bool(one.findings) for one in real)},
    )  # fmt: skip


def write_grounding(
    s: Settings, table: pd.DataFrame, test: pd.DataFrame, boxes: Mapping[str, Any], *, reporter: Reporter,
    reports: Sequence[Any], places: Sequence[Mapping[str, tuple[Box, ...]]], context: Context,
) -> None:  # fmt: skip
    """Boxes of findings that are known to be there, asked for and as reported, beside the prior of training boxes."""
    true = [by_label(boxes.get(image, ())) for image in test["image"]]
    training = [by_label(boxes.get(image, ())) for image in table.loc[table["split"] == "train", "image"]]
    patients = test["patient_id"].tolist()
    rows: dict[str, Any] = {}
    for name in reporter.info.placed:
        usual = [box for one in training for box in one.get(name, ())]
        held = [row for row, one in enumerate(true) if name in one]
        if not held or not usual:
            continue
        prior = grounding.prior_boxes(usual)
        ways = {
            "asked": [places[row][name] for row in held],
            "reported": [_boxes(reports[row], name) for row in held],
            "prior": [prior for _ in held],
        }
        rows[name] = {
            way: grounding.grounding_scores(
                [
                    grounding.Case(tuple(mine), true[row][name], patients[row])
                    for mine, row in zip(said, held, strict=True)
                ],
                bootstrap=Bootstrap(seed=s.seed),
            )
            for way, said in ways.items()
        } | {"training_boxes": len(usual)}
    require(bool(rows), f"--boxes: no finding that {reporter.info.name} places has boxes on images of {s.split}")
    findings = list(reporter.info.findings)
    labels = labels_in(test, findings).astype(float)
    radfact = grounding.radfact(
        [{f.label: f.boxes for f in report.findings if f.present and f.label} for report in reports],
        [
            {name: true[row].get(name, ()) for column, name in enumerate(findings) if labels[row, column] == 1}
            for row in range(len(test))
        ],
        patients, bootstrap=Bootstrap(seed=s.seed),
    )  # fmt: skip
    lead = "Lung Opacity" if "Lung Opacity" in rows else next(iter(rows))
    first = rows[lead]["asked"]["pointing"]
    write_result(
        s.out / "grounding.json", metric=f"pointing game of {lead.lower()}, {s.split}", value=first["value"],
        ci=first["ci"], ci_method=CI, n=rows[lead]["asked"]["cases"], context=context,
        goal="at least .65 and above the prior", details={"findings": rows, "radfact_by_rules": radfact},
    )  # fmt: skip


def _boxes(report: Any, label: str) -> tuple[Box, ...]:
    return next((finding.boxes for finding in report.findings if finding.label == label and finding.present), ())


# ------------------------------------------------------------------------------------------------ tables


def tables(out: Path) -> dict[str, str]:
    """The Markdown tables of the results in ``out``, by the names of their markers."""
    found = {}
    clinic = read_result(out / "clinical.json")["details"]
    reporters = clinic["reporters"]
    found["reports-clinical"] = markdown(
        ["reporter", "macro F1", "micro F1", "macro F1, NIH only", "right side", "normal called normal",
         "abnormal called abnormal", "distinct reports"],
        [
            [
                name, figure(row["macro"]), figure(row["micro"]),
                figure(row["nih_only"] and row["nih_only"]["macro"]), figure(row["sides"]),
                _share(row["normal"]["normal_called_normal"]), _share(row["normal"]["abnormal_called_abnormal"]),
                _share(row["distinct"]),
            ]
            for name, row in reporters.items()
        ],
    )  # fmt: skip
    mine = reporters["this reporter"]["findings"]
    found["reports-findings"] = markdown(
        ["finding", "F1", "precision", "recall", "images with it", "nearest training image's F1"],
        [
            [row["finding"], figure(row), _share(row["precision"]), _share(row["recall"]), str(row["positives"]),
             figure(other)]
            for row, other in zip(mine, reporters[NEAREST]["findings"], strict=True)
        ],
    )  # fmt: skip
    words = read_result(out / "text.json")["details"]["reporters"]
    found["reports-text"] = markdown(
        ["reporter", *TEXT], [[name, *(figure(row[score], digits=3) for score in TEXT)] for name, row in words.items()]
    )
    if (out / "grounding.json").is_file():
        places = read_result(out / "grounding.json")["details"]
        rows = []
        for name, ways in places["findings"].items():
            for way in ("asked", "reported", "prior"):
                one = ways[way]
                rows.append(
                    [f"{name}, {way}", figure(one["pointing"]), figure(one["cover"]), figure(one["precision"]["0.3"]),
                     figure(one["recall"]["0.3"]), figure(one["recall"]["0.5"]), f"{one['cases']} / {one['boxes']}"]
                )  # fmt: skip
        found["reports-places"] = markdown(
            ["finding", "pointing game", "pixel cover", "precision at IoU .3", "recall at IoU .3", "recall at IoU .5",
             "images / boxes"], rows,
        )  # fmt: skip
        found["reports-radfact"] = markdown(
            ["", "value"],
            [[n.replace("_", " "), figure(v, count=True)] for n, v in places["radfact_by_rules"].items()],
        )
    return found


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/reports.py"))
