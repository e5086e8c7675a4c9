"""The round trip: prompt -> image -> report -> labels, sides and places, against what the prompt said.

A generator is judged by a reporter that reads its images as it would read a patient's. Its figure is that of generator
and reporter together, so it stands between the same reporter on real images (ceiling) and on shuffled prompts (floor).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.reading import labels_of, sides_of
from roentgen.metrics.statistics import USUAL, Floats, ratio_estimate
from roentgen.metrics.text.clinical import (
    LEAST,
    clinical_scores,
    distinct_share,
    enough,
    read_labels,
    read_sides,
    side_scores,
)
from roentgen.metrics.text.report_scores import reports_by
from roentgen.prompts import NO_FINDING
from roentgen.provenance import portable
from roentgen.reports import MINI_REPORT, Report, load_reporter


def reporter_name(inputs: EvaluationInputs) -> str:
    """What reads the images: the one of --image-to-text, else the one that ships."""
    return inputs.image_to_text or MINI_REPORT


def by_reporter(inputs: EvaluationInputs) -> tuple[str, str]:
    return str(portable(f"reporter {reporter_name(inputs)}")), "the reporter's own: squashed to its square"


def place_scores(
    reports: Sequence[Report], findings: Sequence[str], sides: Sequence[Sequence[str]], groups: Sequence[object]
) -> dict[str, Any]:
    """Of findings of a known left or right that a report places: share whose box with most weight, the first, has its
    middle in that half of the image, which is the patient's other hand. By chance it is about a half."""
    hits, placed = np.zeros(len(reports)), np.zeros(len(reports))
    for row, report in enumerate(reports):
        boxes = {one.label: one.boxes[0] for one in report.findings if one.present and one.boxes}
        for name, side in zip(findings, sides[row], strict=True):
            if side in ("left", "right") and name in boxes:
                x1, _, x2, _ = boxes[name]
                placed[row] += 1
                hits[row] += (x1 + x2 > 1) == (side == "left")
    return ratio_estimate(hits, placed, USUAL.weights(groups)) | {"n": int(placed.sum())}


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
    if not enough(mine).any():
        raise Unavailable(f"no finding has {LEAST} prompts with and without it that {reporter.info.name} can name")

    def scored(texts: Sequence[str], truth: Floats, groups: Sequence[object]) -> dict[str, Any]:
        return clinical_scores(read_labels(texts, findings), truth, findings, groups, bootstrap=inputs.bootstrap)

    groups, patients = inputs.bootstrap_groups, inputs.real.patients
    reports, others = reports_by(reporter, inputs.synthetic), reports_by(reporter, inputs.real)
    said, seen = ([report.text for report in each] for each in (reports, others))
    found = scored(said, mine, groups)
    order = np.random.default_rng(inputs.seed).permutation(len(mine))
    floor = scored(said, mine[order], groups)["macro"]
    real = None
    if enough(theirs).any():
        real = scored(seen, theirs, patients)
    asked, true = (sides_of(one.table, findings) for one in (inputs.synthetic, inputs.real))
    shuffled = [asked[row] for row in order]
    beside = {row["finding"]: row for row in real["findings"]} if real is not None else {}
    rows = [
        row | {"n": row["positives"] + row["negatives"], "ceiling": beside.get(row["finding"])}
        for row in found["findings"]
        if row["in_macro"]
    ]
    return Result(
        value=found["macro"]["value"], ci=found["macro"]["ci"], n=len(said),
        ci_method=inputs.bootstrap.said(),
        floor=floor | {"what": "prompts shuffled"},
        ceiling=None if real is None else real["macro"] | {"what": "real images and their labels"},
        notes=inputs.notes,
        details={
            "findings": rows, "micro": found["micro"],
            "sides": side_scores(read_sides(said, findings), asked, groups),
            "sides_of_shuffled_prompts": side_scores(read_sides(said, findings), shuffled, groups),
            "sides_of_real_images": side_scores(read_sides(seen, findings), true, patients),
            "places": place_scores(reports, findings, asked, groups),
            "places_of_shuffled_prompts": place_scores(reports, findings, shuffled, groups),
            "places_of_real_images": place_scores(others, findings, true, patients),
            "distinct_reports": distinct_share(said), "reporter": reporter.info.name, "hash": reporter.info.hash,
        },
    )  # fmt: skip
