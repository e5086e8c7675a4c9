"""Does the image show what the prompt says: AUROC, F1 and sides by the classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.metrics.adherence import calibration, laterality
from roentgen.metrics.adherence import scored as adherence
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import VALIDATION, Case, Floats, Found, Unavailable, labels_of

SHOWN = "shows what is asked"
"""Column of single images by which the best and the worst are chosen."""


def judged(case: Case, extractor: Extractor) -> tuple[adherence.Judged, adherence.Judged, list[str]]:
    """Synthetic and real images as the classifier sees them, on the findings that it and the real labels share."""
    findings = [name for name in extractor.findings if name in case.real.findings]
    mine, theirs = labels_of(case, findings)
    columns = [extractor.findings.index(name) for name in findings]

    def scores(name: str) -> Floats:
        return case.of(name, extractor, "probabilities")[:, columns].astype(np.float64)

    return (
        adherence.Judged(scores("synthetic"), mine, case.bootstrap_groups),
        adherence.Judged(scores("real"), theirs, case.real.patients),
        findings,
    )


def with_bounds(found: Found, ceiling: str) -> Found:
    """An adherence result with its ceiling and floor where the report looks for them, also by finding."""
    details = found["details"]
    real = {row["finding"]: row for row in details.get("real", {}).get("findings", [])}
    for row in details["findings"]:
        if other := real.get(row["finding"]):
            row["ceiling"] = {key: other[key] for key in ("value", "ci", "positives")}
    if common := details.get("on_common_findings"):
        words = f"{ceiling}, {len(common['findings'])} findings"
        details["ceiling"] = {**common["real"], "what": words}
    details["floor"] = {**details["shuffled"], "what": "prompts shuffled"}
    return found


def measure_auroc(case: Case, extractor: Extractor) -> Found:
    mine, theirs, findings = judged(case, extractor)
    found = with_bounds(
        adherence.adherence_auroc(mine, findings, real=theirs, resamples=case.resamples, seed=case.seed),
        "real images",
    )
    found["details"]["chance"] = 0.5
    found["warnings"] += case.notes
    scores = {f"score {name}": mine.scores[:, i] for i, name in enumerate(findings)}
    labels = {f"label {name}": mine.labels[:, i] for i, name in enumerate(findings)}
    return found | {"per_image": {SHOWN: shown(mine, theirs), **scores, **labels}}


def measure_f1(case: Case, extractor: Extractor) -> Found:
    if case.validation is None:
        raise Unavailable("thresholds are fitted on real validation images: --real needs rows in split val")
    mine, theirs, findings = judged(case, extractor)
    columns = [extractor.findings.index(name) for name in findings]
    scores = case.of(VALIDATION, extractor, "probabilities")[:, columns].astype(np.float64)
    thresholds = calibration.calibrate(scores, case.validation.labels(findings), findings)
    if not any(math.isfinite(row.threshold) for row in thresholds):
        raise Unavailable(f"{len(scores)} validation images have too few cases of every finding to fit a threshold")
    ceiling, warnings = adherence.ceiling(mine, theirs, seed=case.seed)
    found = with_bounds(
        adherence.adherence_f1(mine, findings, thresholds, real=ceiling, resamples=case.resamples, seed=case.seed),
        "real images of the same findings",
    )
    found["warnings"] += [*warnings, *case.notes]
    return found


def measure_calibration(case: Case, extractor: Extractor) -> Found:
    """Calibration error of the classifier's probabilities for what the prompts say, beside real images."""
    mine, theirs, findings = judged(case, extractor)
    options: dict[str, Any] = {"resamples": case.resamples, "seed": case.seed}
    found = calibration.calibration(mine.scores, mine.labels, findings, mine.groups, **options)
    rows = found["details"]["findings"]
    if not rows:
        raise Unavailable("no finding has enough prompts with and without it")
    real = calibration.calibration(theirs.scores, theirs.labels, findings, theirs.groups, **options)
    of_real = {row["finding"]: row for row in real["details"]["findings"]}
    for row in rows:
        if other := of_real.get(row["finding"]):
            row["ceiling"] = {key: other[key] for key in ("value", "ci", "n")}
    common = [row["finding"] for row in rows if "ceiling" in row]
    details: dict[str, Any] = {"reliability": {"generated": reliability(mine), "real": reliability(theirs)}}
    if common:
        columns = [findings.index(name) for name in common]
        ceiling = calibration.calibration(
            theirs.scores[:, columns], theirs.labels[:, columns], common, theirs.groups, **options
        )
        words = f"real images, {len(common)} findings"
        details["ceiling"] = {key: ceiling[key] for key in ("value", "ci", "n")} | {"what": words}
    floor = calibration.calibrated_error(
        mine.scores, mine.labels, [row["finding"] for row in rows], findings, **options
    )
    details["floor"] = {**floor, "what": "labels drawn from the probabilities themselves"}
    found["warnings"] += case.notes
    return {**found, "details": {**found["details"], **details}}


def reliability(images: adherence.Judged) -> list[dict[str, Any]]:
    """Reliability curve over all findings together."""
    known = np.isfinite(images.labels)
    return calibration.reliability_curve(images.scores[known], images.labels[known])


def shown(mine: adherence.Judged, real: adherence.Judged) -> Floats:
    """How well each image shows the findings asked of it, (N,) in [0, 1]; NaN where none was asked or can be judged.

    The mean over its findings of the share of real images without the finding that score lower: what the image adds to
    the AUROC of generated cases against real controls.
    """
    total, count = np.zeros(len(mine.scores)), np.zeros(len(mine.scores))
    for column in range(mine.scores.shape[1]):
        controls = np.sort(real.scores[real.labels[:, column] == 0, column])
        rows = np.flatnonzero(mine.labels[:, column] == 1)
        if len(controls) and len(rows):
            total[rows] += np.searchsorted(controls, mine.scores[rows, column]) / len(controls)
            count[rows] += 1
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def measure_laterality(case: Case, extractor: Extractor) -> Found:
    """Left and right told apart by the classifier, over the findings that prompts give a side."""

    def see(images: ImageSet, name: str) -> tuple[Floats, NDArray[np.str_]]:
        both = case.of(name, extractor, "sides").astype(np.float64)
        sides = [
            images.table.get(finding + SIDE_SUFFIX, pd.Series("", index=images.table.index)).tolist()
            for finding in extractor.findings
        ]
        return both[..., laterality.LEFT] - both[..., laterality.RIGHT], np.array(sides).T

    leftness, sides = see(case.synthetic, "synthetic")
    real_leftness, real_sides = see(case.real, "real")
    if not np.isin(sides, ("left", "right")).any():
        raise Unavailable("no prompt gives a finding a side (left or right)")
    found = adherence.side_adherence(
        leftness,
        sides,
        extractor.findings,
        case.bootstrap_groups,
        real=(real_leftness, real_sides),
        real_groups=case.real.patients,
    )
    details = found["details"]

    def renamed(row: Found) -> Found:
        return {"finding": row["finding"], "value": row["accuracy"], **{k: row[k] for k in ("ci", "n", "auroc")}}

    real_rows = {row["finding"]: renamed(row) for row in details.pop("real")}
    details["findings"] = [renamed(row) | {"ceiling": real_rows.get(row["finding"])} for row in details["findings"]]
    known = np.isin(real_sides, ("left", "right"))
    whole = laterality.side_accuracy(
        real_leftness[known],
        real_sides[known].tolist(),
        groups=[case.real.patients[row] for row in np.nonzero(known)[0]],
    )
    details["ceiling"] = {"value": whole.accuracy, "ci": whole.ci, "n": whole.n, "what": "real images"}
    details["floor"] = {"value": 0.5, "what": "by chance"}
    return found
