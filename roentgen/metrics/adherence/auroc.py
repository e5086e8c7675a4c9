"""Area under the ROC curve, by finding and macro, with intervals by bootstrap over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from roentgen.metrics.adherence.scored import SHOWN, Macro, ScoredImages, adherence, judged, macro, shown
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import ByFinding, EvaluationInputs, Result, measure
from roentgen.metrics.noticed import LABELS, Noticed
from roentgen.metrics.reconstruction import rows_of_originals
from roentgen.metrics.statistics import Floats


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


def by_auroc(column: int, scores: Floats, labels: Floats, weights: Floats) -> Floats:
    return weighted_auroc(scores, labels, weights)


def macro_auroc(scores: Floats, labels: Floats, findings: Sequence[str], weights: Floats, **options: Any) -> Macro:
    """``macro`` of the AUROC; ``options`` are its ``leave_out`` and ``min_cases``."""
    return macro(by_auroc, scores, labels, findings, weights, **options)


@measure(
    "auroc", "AUROC, macro over findings", suite="quick", better="higher", output="probabilities", each_extractor=True,
    reads=("reconstructed",), by_finding=ByFinding("AUROC by finding", "AUROC (0.5 is chance)", 0.5),
    tested={SHOWN: "How well the image shows what is asked"}, noticed={"auroc": Noticed("AUROC", 3, -1, (LABELS,))},
)  # fmt: skip
def measure_auroc(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    mine, theirs, findings = judged(inputs, extractor)
    found = adherence(by_auroc, mine, findings, real=theirs, bootstrap=inputs.bootstrap)
    scores = {f"score {name}": mine.scores[:, i] for i, name in enumerate(findings)}
    labels = {f"label {name}": mine.labels[:, i] for i, name in enumerate(findings)}
    per_image = {SHOWN: shown(mine, theirs), **scores, **labels}
    more = reconstructed_auroc(inputs, extractor, theirs, findings, found.details["macro_findings"])
    return found.plus(notes=inputs.notes, details={**found.details, "chance": 0.5}, per_image=per_image, **more)


def reconstructed_auroc(
    inputs: EvaluationInputs, extractor: Extractor, real: ScoredImages, findings: Sequence[str], macro: Sequence[str]
) -> dict[str, Any]:
    """``reconstructed`` of the result: macro over the findings ``macro``, beside the same images as they were."""
    if inputs.reconstructed is None or not macro:
        return {}
    rows, originals = rows_of_originals(inputs.reconstructed, inputs.real)
    before = real.rows(originals)
    scores = inputs.scores("reconstructed", extractor, findings)[rows]
    weights = inputs.bootstrap.weights(before.groups)
    beyond = [name for name in findings if name not in macro]
    after, unchanged = (
        macro_auroc(values, before.labels, findings, weights, leave_out=beyond, min_cases=1)
        for values in (scores, before.scores)
    )
    words = f"n = {len(rows):,}; the same images unchanged: {unchanged.value:.3f}"
    gap = unchanged.less(after).entry
    return {"reconstructed": {**after.entry, "n": len(rows), "what": words, "real - reconstructed": gap}}
