"""Thresholds and calibration of a classifier's scores, always from real validation images, never from test.

A threshold of 0.5 calls findings several times too often or never, so each finding gets its own: the one that calls as
many images of ``val`` positive as are. The one with the best F1 there will not do: of a classifier that hardly knows a
finding it is had by calling nearly every image. Thresholds are fitted on one set and applied to others; nothing here
fits and scores the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.scored import MIN_CASES, ScoredImages, by_finding, judged, mean_of
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import NOTHING, ByFinding, EvaluationInputs, Result, Unavailable, bound, measure
from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, percentile_interval, wilson_interval

BINS = 10


def reliability_curve(scores: Floats, labels: Floats, *, bins: int = BINS) -> list[dict[str, Any]]:
    """Mean score against frequency of the label in ``bins`` equal parts of [0, 1]; empty bins are left out.

    ``scores`` (N,) in [0, 1], ``labels`` (N,) in {0, 1}. Each entry: low, high (a score of 1 is in the last bin), n,
    score, frequency and its Wilson interval ``ci``.
    """
    index = _bin(scores, labels, bins)
    entries = []
    for number in np.unique(index).tolist():
        inside = index == number
        n, positives = int(inside.sum()), int(labels[inside].sum())
        about = {"low": number / bins, "high": (number + 1) / bins, "n": n, "score": float(scores[inside].mean())}
        entries.append({**about, "frequency": positives / n, "ci": wilson_interval(positives, n)})
    return entries


def calibration_error(scores: Floats, labels: Floats, weights: Floats, *, bins: int = BINS) -> Floats:
    """Expected calibration error (B,) under B sets of ``weights`` (B, N): mean over images of |score - frequency| of
    their bin (Naeini, Cooper & Hauskrecht 2015, for one class of two). NaN where a set is empty.
    """
    index = _bin(scores, labels, bins)
    gap = scores.astype(np.float64) - labels
    total = weights.sum(axis=1)
    error = np.zeros(len(weights))
    for number in range(bins):
        inside = index == number
        error += np.abs(weights[:, inside] @ gap[inside])
    return np.asarray(np.divide(error, total, out=np.full(len(weights), np.nan), where=total > 0))


def _bin(scores: Floats, labels: Floats, bins: int) -> NDArray[np.int64]:
    if bins < 1 or scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"expected scores and labels (N,) and bins >= 1, got {scores.shape}, {labels.shape}, {bins}")
    if not ((scores >= 0) & (scores <= 1)).all() or not np.isin(labels, (0, 1)).all():
        raise ValueError("scores must be in [0, 1] and labels 0 or 1")
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def calibration(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    groups: Sequence[object],
    *,
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """Expected calibration error of probabilities ``scores`` (N, F) for ``labels`` (N, F), mean over findings.

    ``details["findings"]`` holds for each finding with ``MIN_CASES`` positives and negatives its value, interval, n
    and reliability ``curve``. The error of a finite set is above 0 even of a perfect classifier, the more so the
    smaller it is; a resample, which repeats images, raises it further, so the draws are shifted to the value of the
    whole set before their percentiles are taken.
    """
    each = by_finding(_error, scores, labels, findings, bootstrap.weights(groups))
    few = [one.finding for one in each if one.cases < MIN_CASES]
    chosen = [one for one in each if one.cases >= MIN_CASES]
    entries = [
        {
            "finding": one.finding,
            **_above_0(one),
            "n": int(one.known.sum()),
            "positives": one.positives,
            "curve": reliability_curve(scores[one.known, column].astype(np.float64), labels[one.known, column]),
        }
        for column, one in enumerate(each)
        if one.cases >= MIN_CASES
    ]
    return Result(
        **_above_0(Drawn(*mean_of(chosen, bootstrap.resamples))),
        n=len(scores),
        ci_method=bootstrap.said("patient shifted to the value"),
        notes=[f"fewer than {MIN_CASES} positives or negatives, left out: {', '.join(few)}"] if few else [],
        details={"bins": BINS, "findings": entries},
    )


def _error(column: int, scores: Floats, labels: Floats, weights: Floats) -> Floats:
    return calibration_error(scores, labels, weights)


def _above_0(found: Drawn) -> dict[str, Any]:
    """Value and interval, the draws moved to the value; no error is below 0."""
    low, high = found.moved().ci if np.isfinite(found.draws).any() else NOTHING
    return {"value": found.value, "ci": (max(low, 0.0), max(high, 0.0)) if low == low else NOTHING}


DRAWN = 200
"""Sets of labels drawn for ``calibrated_error``."""


def calibrated_error(
    scores: Floats,
    labels: Floats,
    chosen: Sequence[str],
    findings: Sequence[str],
    *,
    bootstrap: Bootstrap = USUAL,
) -> dict[str, Any]:
    """What ``calibration`` gives of ``chosen`` findings were ``scores`` (N, F) right: its value is not 0 at this n.

    Labels are drawn from the scores where ``labels`` (N, F) are known, at most ``DRAWN`` times: mean over draws of the
    mean over findings, and the central 95 %.
    """
    rng = np.random.default_rng(bootstrap.seed)
    draws = []
    for finding in chosen:
        column = list(findings).index(finding)
        score = scores[np.isfinite(labels[:, column]), column].astype(np.float64)
        one = np.ones((1, len(score)))
        drawn = [(rng.random(len(score)) < score).astype(np.float64) for _ in range(min(bootstrap.resamples, DRAWN))]
        draws.append([float(calibration_error(score, labels_, one)[0]) for labels_ in drawn])
    means = np.mean(draws, axis=0)
    return {"value": float(means.mean()), "ci": percentile_interval(means), "n": len(scores)}


@measure(
    "calibration", "Calibration error (ECE), macro", suite="quick", better="as real", output="probabilities",
    each_extractor=True,
    by_finding=ByFinding("Calibration error by finding", "expected calibration error (0 is perfect)"),
)  # fmt: skip
def measure_calibration(inputs: EvaluationInputs, extractor: Extractor) -> Result:
    """Calibration error of the classifier's probabilities for what the prompts say, beside real images."""
    mine, theirs, findings = judged(inputs, extractor)
    found = calibration(mine.scores, mine.labels, findings, mine.groups, bootstrap=inputs.bootstrap)
    rows = found.details["findings"]
    if not rows:
        raise Unavailable("no finding has enough prompts with and without it")
    chosen = [row["finding"] for row in rows]
    real = calibration(theirs.scores, theirs.labels, findings, theirs.groups, bootstrap=inputs.bootstrap)
    of_real = {row["finding"]: {key: row[key] for key in ("value", "ci", "n")} for row in real.details["findings"]}
    for row in rows:
        if row["finding"] in of_real:
            row["ceiling"] = of_real[row["finding"]]
    curves = {"generated": reliability(mine), "real": reliability(theirs)}
    more: dict[str, Any] = {"details": {**found.details, "reliability": curves}}
    if common := [name for name in chosen if name in of_real]:
        columns = [findings.index(name) for name in common]
        scores, labels = theirs.scores[:, columns], theirs.labels[:, columns]
        ceiling = calibration(scores, labels, common, theirs.groups, bootstrap=inputs.bootstrap)
        more["ceiling"] = bound(ceiling.entry, f"real images, {len(common)} findings")
    floor = calibrated_error(mine.scores, mine.labels, chosen, findings, bootstrap=inputs.bootstrap)
    more["floor"] = bound(floor, "labels drawn from the probabilities themselves")
    return found.plus(notes=inputs.notes, **more)


def reliability(images: ScoredImages) -> list[dict[str, Any]]:
    """Reliability curve over all findings together."""
    known = np.isfinite(images.labels)
    return reliability_curve(images.scores[known], images.labels[known])
