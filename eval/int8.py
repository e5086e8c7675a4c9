"""What int8 costs and brings: a reporter and its int8 copy read the same images in one run, turn by turn.

    python eval/int8.py --manifest MANIFEST --boxes METADATA.csv ... --documents docs/reports.md

Writes int8.json under OUT: seconds an image, bytes of weights, clinical F1 and the pointing game of both, and how far
they agree; and its table into the documents.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from roentgen import errors, threads
from roentgen.config import BatchSize, Count, PathOrName, Seed, parse_settings, require
from roentgen.data.boxes import Corner, by_label, read_boxes
from roentgen.data.manifest import finding_columns, labels_in, read_manifest
from roentgen.experiments.reading import about
from roentgen.files import require_writable
from roentgen.images import read_image
from roentgen.metrics.report.tables import figure, report
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import clinical, grounding
from roentgen.prompts import NO_FINDING
from roentgen.reports import Report, load_reporter
from roentgen.reports.boxes import iou
from roentgen.reports.quantised import quantise, weight_bytes

KINDS = ("float32", "int8")
REGION = "reports-int8"


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path, "manifest with images of the split"]
    boxes: Annotated[tuple[Path, ...], "tables of boxes; images that have some are read first"] = ()
    model: Annotated[PathOrName, "reporter: mini-report, a folder or hub id"] = "mini-report"
    out: Annotated[Path, "folder for the result"] = Path("eval/results/reports")
    split: Annotated[Literal["test", "val"], "which images; nothing is chosen by them"] = "test"
    images: Annotated[Count, "at most so many"] = 300
    documents: Annotated[tuple[Path, ...], "Markdown files with <!-- results:reports-int8 --> to fill"] = ()
    seed: Annotated[Seed, "of draws and of the bootstrap"] = 0
    batch_size: Annotated[BatchSize, "images read at a time"] = 4


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    s = parse_settings(Settings, argv, prog="eval/int8.py", about=__doc__)
    path = s.out / "int8.json"
    return report(REGION, out=path, result=None, update=s.documents, measure=partial(measured, s), table=as_table)


def measured(s: Settings, out: Path) -> None:
    """Both on the same images, to ``out``."""
    require_writable(s.out, "--out")
    table = read_manifest(s.manifest, splits=[s.split], allow_empty_text=True)
    boxes = read_boxes(s.boxes) if s.boxes else {}
    boxed = table["image"].isin(list(boxes))
    order = np.random.default_rng(s.seed).permutation(len(table))
    table = table.iloc[sorted(order, key=lambda row: not boxed.iloc[row])[: s.images]]
    reporter = load_reporter(s.model)
    names = list(reporter.info.findings) or [name for name in finding_columns(table) if name != NO_FINDING]
    truth, patients = labels_in(table, names).astype(float), table["patient_id"].tolist()
    require(
        bool(clinical.enough(truth).any()),
        f"--images {s.images}: no finding has {clinical.LEAST} images with and without it; read more, or give another "
        "--manifest",
    )
    pair = dict(zip(KINDS, (reporter, quantise(reporter)), strict=True))
    said, seconds = read_in_turn(pair, table["image"].tolist(), s.batch_size)
    rows: dict[str, Any] = {}
    bootstrap = Bootstrap(seed=s.seed)
    for kind, reports in said.items():
        labels = clinical.read_labels([report.text for report in reports], names)
        scores = clinical.clinical_scores(labels, truth, names, patients, bootstrap=bootstrap)
        rows[kind] = {"macro": scores["macro"], "micro": scores["micro"], "seconds": seconds[kind]}
        rows[kind]["weight_bytes"] = weight_bytes(pair[kind])
        cases = [
            grounding.Case(tuple(found), tuple(true), patient)
            for report, image, patient in zip(reports, table["image"], patients, strict=True)
            for found, true in _asked(report, boxes.get(image, ()))
        ]
        if cases:
            rows[kind]["pointing"] = grounding.grounding_scores(cases, bootstrap=bootstrap)["pointing"] | {
                "n": len(cases)
            }
    details = {"kinds": rows, "agreement": agreement(said["float32"], said["int8"]), "threads": torch.get_num_threads()}
    faster = seconds["float32"] / seconds["int8"]
    told = replace(s, boxes=tuple(Path(path.name) for path in s.boxes), documents=())
    context = Context.of("eval/int8.py", told, **about(reporter, s.manifest))
    write_result(
        out, metric="times as fast in int8 as in float32", value=faster,
        ci_method="none: one run, both in turn", n=len(table), context=context,
        warnings=["measured beside other work on the machine, which both share"], details=details,
    )  # fmt: skip
    print(f"{faster:.2f} times as fast, {details['agreement']}")


def read_in_turn(
    pair: dict[str, Any], paths: Sequence[str], batch: int
) -> tuple[dict[str, list[Report]], dict[str, float]]:
    """Reports of both, and the median seconds an image; each batch is read by both before the next, decoding apart."""
    said: dict[str, list[Report]] = {kind: [] for kind in pair}
    times: dict[str, list[float]] = {kind: [] for kind in pair}
    for number, start in enumerate(range(0, len(paths), batch)):
        pixels = [read_image(path) for path in paths[start : start + batch]]
        kinds = list(pair)[:: 1 if number % 2 else -1]
        for kind in kinds:
            began = time.perf_counter()
            said[kind] += pair[kind].report_many(pixels)
            times[kind].append((time.perf_counter() - began) / len(pixels))
    return said, {kind: float(np.median(values[1:] or values)) for kind, values in times.items()}


def _asked(report: Report, entries: Sequence[tuple[str, Corner]]) -> list[tuple[Any, Any]]:
    """The boxes that a report gives each finding which has true ones."""
    found = {one.label: one.boxes for one in report.findings if one.present}
    return [(found.get(label, ()), boxes) for label, boxes in by_label(entries).items()]


def agreement(one: Sequence[Report], other: Sequence[Report]) -> dict[str, float]:
    """How alike two reporters' reports are: texts that are equal, findings that both name, and their boxes' overlap."""
    same, both, either, moved, overlaps = 0, 0, 0, [], []
    for mine, theirs in zip(one, other, strict=True):
        same += mine.text == theirs.text
        left, right = ({f.label: f for f in report.findings if f.present} for report in (mine, theirs))
        both, either = both + len(left.keys() & right.keys()), either + len(left.keys() | right.keys())
        for name in left.keys() & right.keys():
            first, second = left[name], right[name]
            if first.probability is not None and second.probability is not None:
                moved.append(abs(first.probability - second.probability))
            if first.boxes and second.boxes:
                overlaps.append(iou(first.boxes[0], second.boxes[0]))
    return {
        "equal_texts": same / len(one),
        "findings_of_both": both / either if either else 1.0,
        "mean_change_of_probability": float(np.mean(moved)) if moved else float("nan"),
        "mean_iou_of_first_boxes": float(np.mean(overlaps)) if overlaps else float("nan"),
    }


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of the result."""
    return markdown(
        ["numbers", "ms an image", "weights, MB", "macro F1", "pointing game, reported boxes"],
        [
            [
                kind, f"{1000 * row['seconds']:.0f}", f"{row['weight_bytes'] / 1e6:.1f}", figure(row["macro"]),
                figure(row["pointing"], count=True) if "pointing" in row else "–",
            ]
            for kind, row in result["details"]["kinds"].items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/int8.py"))
