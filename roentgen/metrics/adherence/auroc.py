"""Area under the ROC curve, by finding and macro, with intervals by bootstrap over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.bootstrap import percentile_interval

Floats = NDArray[np.float64]

MIN_CASES = 10
"""A finding with fewer positives or negatives is listed but left out of the macro."""


@dataclass(frozen=True)
class FindingAuroc:
    """AUROC of one finding; NaN without positives or without negatives. Unknown labels are not counted."""

    finding: str
    value: float
    ci: tuple[float, float]
    positives: int
    negatives: int
    in_macro: bool


@dataclass(frozen=True)
class MacroAuroc:
    """Mean AUROC over the findings that have enough cases; ``draws`` (resamples,) for paired differences."""

    value: float
    ci: tuple[float, float]
    draws: Floats
    findings: list[FindingAuroc]

    @property
    def names(self) -> list[str]:
        return [finding.finding for finding in self.findings if finding.in_macro]


def weighted_auroc(scores: Floats, labels: Floats, weights: Floats) -> Floats:
    """AUROC (B,) of ``scores`` (N,) for ``labels`` (N,) in {0, 1} under B sets of ``weights`` (B, N) >= 0.

    The share of (positive, negative) pairs in the right order, ties counting half: the Mann-Whitney statistic
    (Hanley & McNeil 1982). NaN where a set gives no weight to one of the classes.
    """
    if scores.shape != labels.shape or weights.shape[1:] != scores.shape:
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, weights {weights.shape}")
    if scores.size == 0:
        return np.full(len(weights), np.nan)
    if not np.isfinite(scores).all() or not np.isin(labels, (0, 1)).all():
        raise ValueError("scores must be finite and labels 0 or 1")
    order = np.argsort(scores, kind="stable")
    sorted_scores, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.r_[True, np.diff(sorted_scores) > 0])  # first item of each run of ties
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive, starts, axis=1)
    negatives = np.add.reduceat(ordered * (1 - positive), starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    right = (positives * (below + 0.5 * negatives)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(right, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def auroc(scores: Floats, labels: Floats) -> float:
    """AUROC of ``scores`` (N,) for ``labels`` (N,) in {0, 1}; NaN with one class only."""
    return float(weighted_auroc(scores, labels, np.ones((1, len(scores))))[0])


def macro_auroc(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    weights: Floats,
    *,
    leave_out: Sequence[str] = (),
    min_cases: int = MIN_CASES,
) -> MacroAuroc:
    """AUROC a finding and macro of ``scores`` (N, F) for ``labels`` (N, F) in {0, 1, NaN = unknown}.

    ``weights`` (B, N) are the bootstrap's; the same weights make two results paired. ``leave_out``: findings
    listed but kept out of the macro.
    """
    if scores.shape != labels.shape or scores.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, {len(findings)} findings")
    rows: list[FindingAuroc] = []
    values, draws = [], []
    for column, finding in enumerate(findings):
        known = np.isfinite(labels[:, column])
        score, label = scores[known, column].astype(np.float64), labels[known, column]
        positives = int(label.sum())
        negatives = int(known.sum()) - positives
        sample = weighted_auroc(score, label, weights[:, known])
        included = finding not in leave_out and min(positives, negatives) >= min_cases
        row = FindingAuroc(finding, auroc(score, label), percentile_interval(sample), positives, negatives, included)
        rows.append(row)
        if included:
            values.append(row.value)
            draws.append(sample)
    if not values:
        return MacroAuroc(float("nan"), (float("nan"), float("nan")), np.full(len(weights), np.nan), rows)
    # A resample may hold no case of a rare finding: its macro is the mean over the others.
    stacked = np.stack(draws)
    counts = np.isfinite(stacked).sum(axis=0)
    empty = np.full(len(weights), np.nan)
    macro_draws = np.divide(np.nansum(stacked, axis=0), counts, out=empty, where=counts > 0)
    return MacroAuroc(float(np.mean(values)), percentile_interval(macro_draws), macro_draws, rows)
