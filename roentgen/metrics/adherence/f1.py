"""F1 of a classifier on generated images, at thresholds that were fitted on real validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.scored import MIN_CASES, ScoredImages, adherence, alike, judged
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import VALIDATION, ByFinding, EvaluationInputs, Result, Unavailable, measure
from roentgen.metrics.statistics import Floats


@dataclass(frozen=True)
class Threshold:
    """Score from which ``finding`` counts as called; NaN with fewer than ``MIN_CASES`` positives or negatives.

    f1, called, prevalence: on the images that it was fitted on, where F1 is too good by construction.
    """

    finding: str
    threshold: float
    f1: float
    called: float
    prevalence: float
    positives: int
    negatives: int
    method: str = "prevalence"


def weighted_f1(called: NDArray[np.bool_], labels: Floats, weights: Floats) -> Floats:
    """F1 (B,) of ``called`` (N,) for ``labels`` (N,) in {0, 1} under B sets of ``weights`` (B, N).

    2 TP / (2 TP + FP + FN): 0 where nothing is both called and there, NaN where there is neither.
    """
    if called.shape != labels.shape or weights.shape[1:] != labels.shape:
        raise ValueError(f"shapes differ: {called.shape}, {labels.shape}, weights {weights.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    hits = weights @ (called * labels)
    wrong = weights @ (called != labels).astype(np.float64)
    below = 2 * hits + wrong
    return np.asarray(np.divide(2 * hits, below, out=np.full(len(weights), np.nan), where=below > 0))


def f1_score(called: NDArray[np.bool_], labels: Floats) -> float:
    """F1 of ``called`` (N,) for ``labels`` (N,) in {0, 1}; see ``weighted_f1``."""
    return float(weighted_f1(called, labels, np.ones((1, len(labels))))[0])


def best_f1_threshold(scores: Floats, labels: Floats) -> float:
    """The threshold with the highest F1, halfway between two scores; of equals the highest, which calls fewest.

    ``scores`` (N,) finite, ``labels`` (N,) in {0, 1} with at least one positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], labels[order]
    if not truth.sum() > 0:
        raise ValueError("no positive to find a threshold for")
    hits, called = np.cumsum(truth), np.arange(1, len(truth) + 1)
    f1 = 2 * hits / (called + truth.sum())
    ends = np.append(np.diff(ranked) < 0, True)  # equal scores are called together
    last = int(np.argmax(np.where(ends, f1, -1.0)))
    return _cut(ranked, last)


def prevalence_threshold(scores: Floats, labels: Floats) -> float:
    """The threshold that calls as many of ``scores`` (N,) as ``labels`` (N,) are positive, as nearly as ties allow."""
    ranked = np.sort(scores)[::-1]
    wanted = round(float(labels.sum()))
    if wanted < 1:
        raise ValueError("no positive to find a threshold for")
    ends = np.flatnonzero(np.append(np.diff(ranked) < 0, True))
    return _cut(ranked, int(ends[np.argmin(np.abs(ends + 1 - wanted))]))


def _cut(ranked: Floats, last: int) -> float:
    """Halfway below falling score number ``last``; below all of them if it is the last."""
    if last + 1 == len(ranked):
        return float(ranked[last])
    middle = (ranked[last] + ranked[last + 1]) / 2
    return float(middle if ranked[last + 1] < middle <= ranked[last] else ranked[last])


def calibrate(scores: Floats, labels: Floats, findings: Sequence[str]) -> list[Threshold]:
    """One ``prevalence_threshold`` a finding from real validation ``scores`` (N, F) and ``labels`` (N, F) in {0, 1, NaN
    = unknown}.

    Raises:
        ValueError: shapes that differ, scores that are not finite.
    """
    if scores.shape != labels.shape or scores.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, {len(findings)} findings")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    rows = []
    for column, finding in enumerate(findings):
        known = np.isfinite(labels[:, column])
        score, truth = scores[known, column].astype(np.float64), labels[known, column]
        positives = int(truth.sum())
        negatives = len(truth) - positives
        threshold = f1 = called = float("nan")
        if min(positives, negatives) >= MIN_CASES:
            threshold = prevalence_threshold(score, truth)
            f1, called = f1_score(score >= threshold, truth), float((score >= threshold).mean())
        prevalence = positives / len(truth) if len(truth) else float("nan")
        rows.append(Threshold(finding, threshold, f1, called, prevalence, positives, negatives))
    return rows


OVERCALL = 2


def adherence_f1(
    synthetic: ScoredImages,
    findings: Sequence[str],
    thresholds: Sequence[Threshold],
    *,
    real: ScoredImages | None = None,
    **options: Any,
) -> Result:
    """Macro F1 at thresholds that were fitted on real validation images (``calibrate``).

    ``real`` should be ``alike(...)[0]``: F1 depends on how common a finding is, so the real set must have the same
    findings in the same numbers. The floor is not 0.5 here either: it is measured. ``options`` and the result are
    those of ``adherence``; each finding also has the share that was called and the share that was asked for.
    """
    if [row.finding for row in thresholds] != list(findings):
        raise ValueError("thresholds must be those of the findings, in their order")
    cut = np.array([row.threshold for row in thresholds])

    def figure(column: int, scores: Floats, labels: Floats, weights: Floats) -> Floats:
        if not len(labels) or math.isnan(cut[column]):
            return np.full(len(weights), np.nan)
        return weighted_f1(scores >= cut[column], labels, weights)

    what = "real images of the same findings"
    found = adherence(figure, synthetic, findings, real=real, ceiling=what, **options)
    for images, about in ((synthetic, found.details), (real, found.details.get("real"))):
        if images is None or about is None:
            continue
        for column, entry in enumerate(about["findings"]):
            known = np.isfinite(images.labels[:, column])
            called = (images.scores[known, column] >= cut[column]).mean() if known.any() else math.nan
            entry["called"] = math.nan if math.isnan(cut[column]) else float(called)
            entry["asked"] = entry["positives"] / known.sum() if known.any() else math.nan
    notes = []
    if uncalibrated := [row.finding for row in thresholds if math.isnan(row.threshold)]:
        notes.append(f"no threshold, too few validation images: {', '.join(uncalibrated)}")
    if often := [row.finding for row in thresholds if row.called > OVERCALL * row.prevalence]:
        words = f"thresholds that call over {OVERCALL} times too often on validation images"
        notes.append(f"{words}: {', '.join(often)}")
    return found.plus(notes=notes, details={**found.details, "thresholds": [asdict(row) for row in thresholds]})


@measure(
    "f1", "F1 at calibrated thresholds, macro", suite="standard", better="higher", output="probabilities",
    each_extractor=True, reads=(VALIDATION,),
    by_finding=ByFinding("F1 by finding", "F1 at the threshold fitted on validation images"),
)  # fmt: skip
def measure_f1(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    if inputs.validation is None:
        raise Unavailable("thresholds are fitted on real validation images: --real needs rows in split val")
    mine, theirs, findings = judged(inputs, extractor)
    scores = inputs.scores(VALIDATION, extractor, findings)
    thresholds = calibrate(scores, inputs.validation.labels(findings), findings)
    if not any(math.isfinite(row.threshold) for row in thresholds):
        raise Unavailable(f"{len(scores)} validation images have too few cases of every finding to fit a threshold")
    matched, warnings = alike(mine, theirs, seed=inputs.seed)
    found = adherence_f1(mine, findings, thresholds, real=matched, bootstrap=inputs.bootstrap)
    return found.plus(notes=[*warnings, *inputs.notes])
