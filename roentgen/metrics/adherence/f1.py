"""F1 of a classifier on generated images, at thresholds that were fitted on real validation images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.auroc import MIN_CASES
from roentgen.metrics.adherence.scored import (
    LEAVE_OUT,
    SHUFFLES,
    ScoredImages,
    ceiling,
    floor_of,
    judged,
    mean_draws,
    mean_value,
    scored_result,
    too_few,
    with_bounds,
)
from roentgen.metrics.measure import VALIDATION, ByFinding, EvaluationInputs, Floats, Result, Unavailable, measure
from roentgen.metrics.statistics import RESAMPLES, cluster_weights, percentile_interval

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor

METHODS = ("prevalence", "f1")


@dataclass(frozen=True)
class Threshold:
    """Score from which ``finding`` counts as called; NaN with fewer than ``MIN_CASES`` positives or negatives.

    f1, called, prevalence: on the images that it was fitted on, where F1 is too good by construction.
    """

    finding: str
    threshold: float
    method: str
    f1: float
    called: float
    prevalence: float
    positives: int
    negatives: int


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


def calibrate(
    scores: Floats, labels: Floats, findings: Sequence[str], *, method: str = "prevalence", min_cases: int = MIN_CASES
) -> list[Threshold]:
    """One threshold a finding from real validation ``scores`` (N, F) and ``labels`` (N, F) in {0, 1, NaN = unknown}.

    Raises:
        ValueError: unknown method, shapes that differ, scores that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: choose one of {', '.join(METHODS)}")
    if scores.shape != labels.shape or scores.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, {len(findings)} findings")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    fit = best_f1_threshold if method == "f1" else prevalence_threshold
    rows = []
    for column, finding in enumerate(findings):
        known = np.isfinite(labels[:, column])
        score, truth = scores[known, column].astype(np.float64), labels[known, column]
        positives = int(truth.sum())
        negatives = len(truth) - positives
        threshold = f1 = called = float("nan")
        if min(positives, negatives) >= min_cases:
            threshold = fit(score, truth)
            f1, called = f1_score(score >= threshold, truth), float((score >= threshold).mean())
        prevalence = positives / len(truth) if len(truth) else float("nan")
        rows.append(Threshold(finding, threshold, method, f1, called, prevalence, positives, negatives))
    return rows


OVERCALL = 2


def adherence_f1(
    synthetic: ScoredImages,
    findings: Sequence[str],
    thresholds: Sequence[Threshold],
    *,
    real: ScoredImages | None = None,
    leave_out: Sequence[str] = LEAVE_OUT,
    min_cases: int = MIN_CASES,
    resamples: int = RESAMPLES,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Macro F1 at thresholds that were calibrated on real validation images (``calibration.calibrate``).

    ``real`` should be ``ceiling(...)[0]``: F1 depends on how common a finding is, so the real set must have the same
    findings in the same numbers. The floor is not 0.5 here either: it is measured. Other arguments and the result are
    those of ``adherence_auroc``; each finding also has the share that was called and the share that was asked for.
    """
    if [row.finding for row in thresholds] != list(findings):
        raise ValueError("thresholds must be those of the findings, in their order")
    weights = cluster_weights(synthetic.groups, resamples, seed)
    cut = np.array([row.threshold for row in thresholds])
    rows, draws = _f1_rows(synthetic, findings, cut, weights, leave_out, min_cases)
    names = [row["finding"] for row in rows if row["in_macro"]]
    uncalibrated = [row.finding for row in thresholds if not np.isfinite(row.threshold)]
    warnings = too_few(len(synthetic.scores), [row["finding"] for row in rows if not row["in_macro"]], leave_out)
    if uncalibrated:
        warnings.append(f"no threshold, too few validation images: {', '.join(uncalibrated)}")
    often = [row.finding for row in thresholds if row.called > OVERCALL * row.prevalence]
    if often:
        warnings.append(
            f"thresholds that call over {OVERCALL} times too often on validation images: {', '.join(often)}"
        )
    rng = np.random.default_rng(seed)
    one = np.ones((1, len(synthetic.scores)))
    floors = []
    for _ in range(shuffles if names else 0):
        order = rng.permutation(len(synthetic.labels))
        moved = ScoredImages(synthetic.scores, synthetic.labels[order], synthetic.groups)
        shuffled = _f1_rows(moved, findings, cut, one, leave_out, 1)[0]
        floors.append(float(np.mean([row["value"] for row in shuffled if row["finding"] in names])))
    details: dict[str, Any] = {
        "thresholds": [dataclasses.asdict(row) for row in thresholds],
        "macro_findings": names,
        "findings": rows,
        "shuffled": floor_of(floors),
    }
    if real is not None:
        others, real_draws = _f1_rows(
            real, findings, cut, cluster_weights(real.groups, resamples, seed + 1), leave_out, min_cases
        )
        common = [row["finding"] for row in others if row["in_macro"] and row["finding"] in names]
        mine, theirs = (
            mean_draws([sample for row, sample in zip(part, samples, strict=True) if row["finding"] in common])
            for part, samples in ((rows, draws), (others, real_draws))
        )
        values = {name: mean_value(part, common) for name, part in (("synthetic", rows), ("real", others))}
        details["real"] = {"findings": others}
        details["on_common_findings"] = {
            "findings": common,
            "synthetic": {"value": values["synthetic"], "ci": percentile_interval(mine)},
            "real": {"value": values["real"], "ci": percentile_interval(theirs)},
            "difference": {"value": values["synthetic"] - values["real"], "ci": percentile_interval(mine - theirs)},
        }
    macro_draws = mean_draws([sample for row, sample in zip(rows, draws, strict=True) if row["in_macro"]])
    value = mean_value(rows, names)
    return scored_result(value, percentile_interval(macro_draws), len(synthetic.scores), resamples, warnings, details)


def _f1_rows(
    judged: ScoredImages,
    findings: Sequence[str],
    cut: Floats,
    weights: Floats,
    leave_out: Sequence[str],
    min_cases: int,
) -> tuple[list[dict[str, Any]], list[Floats]]:
    rows, draws = [], []
    for column, finding in enumerate(findings):
        known = np.isfinite(judged.labels[:, column])
        truth = judged.labels[known, column]
        called = judged.scores[known, column] >= cut[column]
        positives = int(truth.sum())
        usable = bool(np.isfinite(cut[column]) and len(truth))
        nothing = np.full(len(weights), np.nan)
        sample = weighted_f1(called, truth, weights[:, known]) if usable else nothing
        value = float(weighted_f1(called, truth, np.ones((1, len(truth))))[0]) if usable else float("nan")
        rows.append(
            {
                "finding": finding,
                "value": value,
                "ci": percentile_interval(sample),
                "positives": positives,
                "negatives": len(truth) - positives,
                "called": float(called.mean()) if usable else float("nan"),
                "asked": positives / len(truth) if len(truth) else float("nan"),
                "in_macro": usable and finding not in leave_out and min(positives, len(truth) - positives) >= min_cases,
            }
        )
        draws.append(sample)
    return rows, draws


@measure(
    "f1",
    "F1 at calibrated thresholds, macro",
    suite="standard",
    better="higher",
    output="probabilities",
    each_extractor=True,
    reads=(VALIDATION,),
    by_finding=ByFinding("F1 by finding", "F1 at the threshold fitted on validation images"),
)
def measure_f1(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    if inputs.validation is None:
        raise Unavailable("thresholds are fitted on real validation images: --real needs rows in split val")
    mine, theirs, findings = judged(inputs, extractor)
    columns = [extractor.findings.index(name) for name in findings]
    scores = inputs.of(VALIDATION, extractor, "probabilities")[:, columns].astype(np.float64)
    thresholds = calibrate(scores, inputs.validation.labels(findings), findings)
    if not any(math.isfinite(row.threshold) for row in thresholds):
        raise Unavailable(f"{len(scores)} validation images have too few cases of every finding to fit a threshold")
    matched, warnings = ceiling(mine, theirs, seed=inputs.seed)
    found = adherence_f1(mine, findings, thresholds, real=matched, resamples=inputs.resamples, seed=inputs.seed)
    return with_bounds(found, "real images of the same findings", notes=[*warnings, *inputs.notes])
