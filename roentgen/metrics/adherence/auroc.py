"""Area under the ROC curve, by finding and macro, with intervals by bootstrap over patients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.scored import (
    LEAVE_OUT,
    SHOWN,
    SHUFFLES,
    ScoredImages,
    floor_of,
    judged,
    scored_result,
    shown,
    too_few,
    with_bounds,
)
from roentgen.metrics.measure import LABELS, ByFinding, EvaluationInputs, Noticed, Result, measure
from roentgen.metrics.reconstruction import rows_of_originals
from roentgen.metrics.statistics import RESAMPLES, cluster_weights, percentile_interval

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor

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


def adherence_auroc(
    synthetic: ScoredImages,
    findings: Sequence[str],
    *,
    real: ScoredImages | None = None,
    leave_out: Sequence[str] = LEAVE_OUT,
    min_cases: int = MIN_CASES,
    resamples: int = RESAMPLES,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Macro AUROC of the classifier on ``synthetic`` by the labels of the prompts, and by finding.

    Args:
        synthetic: generated images, labels from the prompts.
        findings: names of the columns.
        real: real images with their own labels (all of them, or those of ``ceiling``).
        leave_out: findings listed but not in the macro; "No Finding" is the complement of the others.
        min_cases: positives and negatives that a finding needs for the macro.
        resamples: of the bootstrap by group.
        shuffles: permutations of the prompts for the floor.
        seed: of bootstrap and floor.

    Returns:
        The metric's dictionary. ``details``: ``findings`` and ``macro_findings``; ``real``, the same of real images;
        ``on_common_findings``, both over the findings that both macros have and their difference (independent
        bootstraps); ``shuffled``, mean and range over the permutations.
    """
    weights = cluster_weights(synthetic.groups, resamples, seed)
    chosen = macro_auroc(
        synthetic.scores, synthetic.labels, findings, weights, leave_out=leave_out, min_cases=min_cases
    )
    warnings = too_few(len(synthetic.scores), [row.finding for row in chosen.findings if not row.in_macro], leave_out)
    details: dict[str, Any] = {
        "macro_findings": chosen.names,
        "findings": [dataclasses.asdict(row) for row in chosen.findings],
        "shuffled": _shuffled_auroc(synthetic, findings, chosen, shuffles, seed),
    }
    if real is not None:
        draws = cluster_weights(real.groups, resamples, seed + 1)
        whole = macro_auroc(real.scores, real.labels, findings, draws, leave_out=leave_out, min_cases=min_cases)
        common = [name for name in chosen.names if name in whole.names]
        beyond = [name for name in findings if name not in common]
        details["real"] = _macro_entry(whole)
        if common:
            ours = macro_auroc(synthetic.scores, synthetic.labels, findings, weights, leave_out=beyond, min_cases=1)
            theirs = macro_auroc(real.scores, real.labels, findings, draws, leave_out=beyond, min_cases=1)
            details["on_common_findings"] = {
                "findings": common,
                "synthetic": {"value": ours.value, "ci": ours.ci},
                "real": {"value": theirs.value, "ci": theirs.ci},
                "difference": {
                    "value": ours.value - theirs.value,
                    "ci": percentile_interval(ours.draws - theirs.draws),
                },
            }
        else:
            warnings.append("no finding has enough cases in both the synthetic and the real set")
    return scored_result(chosen.value, chosen.ci, len(synthetic.scores), resamples, warnings, details)


def _macro_entry(macro: MacroAuroc) -> dict[str, Any]:
    return {
        "value": macro.value,
        "ci": macro.ci,
        "macro_findings": macro.names,
        "findings": [dataclasses.asdict(row) for row in macro.findings],
    }


def _shuffled_auroc(
    judged: ScoredImages, findings: Sequence[str], macro: MacroAuroc, shuffles: int, seed: int
) -> dict[str, Any]:
    """Macro AUROC with the rows of labels permuted among the images: what a generator that ignores prompts gets."""
    beyond = [name for name in findings if name not in macro.names]
    rng = np.random.default_rng(seed)
    one = np.ones((1, len(judged.scores)))
    values = []
    for _ in range(shuffles if macro.names else 0):
        moved = judged.labels[rng.permutation(len(judged.labels))]
        values.append(macro_auroc(judged.scores, moved, findings, one, leave_out=beyond, min_cases=1).value)
    return floor_of(values)


@measure(
    "auroc",
    "AUROC, macro over findings",
    suite="quick",
    better="higher",
    output="probabilities",
    each_extractor=True,
    reads=("reconstructed",),
    by_finding=ByFinding("AUROC by finding", "AUROC (0.5 is chance)", 0.5),
    tested={SHOWN: "How well the image shows what is asked"},
    noticed={"auroc": Noticed("AUROC", 3, -1, (LABELS,))},
)
def measure_auroc(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    mine, theirs, findings = judged(inputs, extractor)
    found = adherence_auroc(mine, findings, real=theirs, resamples=inputs.resamples, seed=inputs.seed)
    found["details"]["chance"] = 0.5
    scores = {f"score {name}": mine.scores[:, i] for i, name in enumerate(findings)}
    labels = {f"label {name}": mine.labels[:, i] for i, name in enumerate(findings)}
    per_image = {SHOWN: shown(mine, theirs), **scores, **labels}
    more = reconstructed_auroc(inputs, extractor, theirs, findings, found["details"]["macro_findings"])
    return with_bounds(found, "real images", notes=inputs.notes, per_image=per_image, **more)


def reconstructed_auroc(
    inputs: EvaluationInputs, extractor: Extractor, real: ScoredImages, findings: Sequence[str], macro: Sequence[str]
) -> dict[str, Any]:
    """``reconstructed`` of the result: macro over the findings ``macro``, beside the same images as they were."""
    if inputs.reconstructed is None or not macro:
        return {}
    rows, originals = rows_of_originals(inputs.reconstructed, inputs.real)
    before = real.rows(originals)
    columns = [extractor.findings.index(name) for name in findings]
    scores = inputs.of("reconstructed", extractor, "probabilities")[rows][:, columns].astype(np.float64)
    weights = cluster_weights(before.groups, inputs.resamples, inputs.seed)
    beyond = [name for name in findings if name not in macro]
    after, unchanged = (
        macro_auroc(values, before.labels, findings, weights, leave_out=beyond, min_cases=1)
        for values in (scores, before.scores)
    )
    gap = {"value": unchanged.value - after.value, "ci": percentile_interval(unchanged.draws - after.draws)}
    words = f"n = {len(rows):,}; the same images unchanged: {unchanged.value:.3f}"
    entry = {"value": after.value, "ci": after.ci, "n": len(rows), "what": words, "real - reconstructed": gap}
    return {"reconstructed": entry}
