"""The round trip: prompt -> image -> report -> labels and sides, against what the prompt said.

A generator is judged by a reporter that reads its images as it would read a patient's. Its figure is that of generator
and reporter together, so it stands between the same reporter on real images (ceiling) and on shuffled prompts (floor).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.images import read_image
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.reading import labels_of
from roentgen.metrics.statistics import Floats
from roentgen.metrics.text.clinical import LEAST, clinical_scores, distinct_share, read_labels, read_sides, side_scores
from roentgen.prompts import NO_FINDING
from roentgen.provenance import portable
from roentgen.reports import MINI_REPORT, Reporter, load_reporter

BATCH = 16


def reporter_name(inputs: EvaluationInputs) -> str:
    """What reads the images: the one of --image-to-text, else the one that ships."""
    return inputs.image_to_text or MINI_REPORT


def by_reporter(inputs: EvaluationInputs) -> tuple[str, str]:
    return str(portable(f"reporter {reporter_name(inputs)}")), "the reporter's own: squashed to its square"


def texts_by(reporter: Reporter, images: ImageSet) -> list[str]:
    """The reporter's text of each image."""
    texts: list[str] = []
    for start in range(0, len(images), BATCH):
        pixels = [read_image(path) for path in images.paths[start : start + BATCH]]
        texts += [report.text for report in reporter.report_many(pixels)]
    return texts


def sides_of(table: pd.DataFrame, findings: Sequence[str]) -> list[list[str]]:
    """The sides that a table gives, (N, F)."""
    columns = [table[f + SIDE_SUFFIX].tolist() if f + SIDE_SUFFIX in table else [""] * len(table) for f in findings]
    return [[str(column[row]) for column in columns] for row in range(len(table))]


@measure(
    "round_trip", "Labels read back from the image by a reporter, macro F1", suite="full", better="higher",
    judge=by_reporter, by_finding=ByFinding("Read back by finding", "F1 of the reporter's text for the prompt's label"),
)  # fmt: skip
def measure_round_trip(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """A reporter's words for each image, read for findings and sides, against those of the prompt."""
    reporter = load_reporter(reporter_name(inputs), device=inputs.device, flag="--image-to-text")
    known = set(reporter.info.findings)
    findings = [f for f in inputs.real.findings if f != NO_FINDING and (not known or f in known)]
    mine, theirs = labels_of(inputs, findings)
    enough = np.minimum((mine == 1).sum(0), (mine == 0).sum(0)) >= LEAST
    if not enough.any():
        raise Unavailable(f"no finding has {LEAST} prompts with and without it that {reporter.info.name} can name")

    def scored(texts: Sequence[str], truth: Floats, groups: Sequence[object]) -> dict[str, Any]:
        return clinical_scores(
            read_labels(texts, findings), truth, findings, groups, resamples=inputs.resamples, seed=inputs.seed
        )

    said, groups = texts_by(reporter, inputs.synthetic), inputs.bootstrap_groups
    found = scored(said, mine, groups)
    order = np.random.default_rng(inputs.seed).permutation(len(mine))
    floor = scored(said, mine[order], groups)["macro"]
    seen = texts_by(reporter, inputs.real)
    real = None
    if (np.minimum((theirs == 1).sum(0), (theirs == 0).sum(0)) >= LEAST).any():
        real = scored(seen, theirs, inputs.real.patients)
    sides = side_scores(read_sides(said, findings), sides_of(inputs.synthetic.table, findings), groups)
    real_sides = side_scores(read_sides(seen, findings), sides_of(inputs.real.table, findings), inputs.real.patients)
    beside = {row["finding"]: row for row in real["findings"]} if real is not None else {}
    rows = [
        row | {"n": row["positives"] + row["negatives"], "ceiling": beside.get(row["finding"])}
        for row in found["findings"]
        if row["in_macro"]
    ]
    return Result(
        value=found["macro"]["value"], ci=found["macro"]["ci"], n=len(said),
        ci_method=f"95 % percentile, bootstrap by patient or prompt, {inputs.resamples} resamples",
        floor=floor | {"what": "prompts shuffled"},
        ceiling=None if real is None else real["macro"] | {"what": "real images and their labels"},
        notes=inputs.notes,
        details={
            "findings": rows, "micro": found["micro"], "sides": sides, "sides_of_real_images": real_sides,
            "distinct_reports": distinct_share(said), "reporter": reporter.info.name, "hash": reporter.info.hash,
        },
    )  # fmt: skip
