"""Linear probes: what a linear classifier can read from frozen features, by nested cross-validation.

L2-regularised logistic regression (scikit-learn), one a finding. The strength of regularisation is chosen inside the
training folds only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from roentgen.metrics.adherence.auroc import weighted_auroc
from roentgen.metrics.adherence.scored import by_finding, mean_of
from roentgen.metrics.report.tables import figure, table
from roentgen.metrics.statistics import Drawn, Floats, numbered

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of half the squared norm, beside the mean log loss."""
STEPS, TOLERANCE = 2000, 1e-6
INNER = 3  # folds in which the strength is chosen, finding by finding, by log loss


def fit_logistic(features: Floats, labels: Floats, use: Floats, strengths: Floats) -> tuple[Floats, Floats]:
    """Weights (D, K) and biases (K,) of K logistic regressions on ``features`` (N, D), each at its minimum.

    Args:
        features: as they are regularised; standardise them before.
        labels: (N, K) in {0, 1}; anything where ``use`` is 0.
        use: (N, K) in {0, 1}: whether report n counts for regression k.
        strengths: (K,) weight of half the squared norm beside the mean log loss; the bias is free.
    """
    weight, bias = np.zeros((features.shape[1], len(strengths))), np.zeros(len(strengths))
    for k, strength in enumerate(strengths):
        rows = use[:, k] > 0
        x, y = features[rows], labels[rows, k]
        if len(np.unique(y)) < 2:  # nothing to tell apart: the bias alone, and not without end
            bias[k] = logit(np.clip(y.mean() if len(y) else 0.5, 1e-4, 1 - 1e-4))
            continue
        fit = LogisticRegression(C=1 / (strength * len(y)), tol=TOLERANCE, max_iter=STEPS).fit(x, y)
        weight[:, k], bias[k] = fit.coef_[0], fit.intercept_[0]
    return weight, bias


def folds_of(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold 0 to ``folds`` - 1 of each item (N,); items of a group (a patient) share one, sizes differ by one group."""
    index = numbered(groups)
    count = int(index.max()) + 1
    if count < folds:
        raise ValueError(f"{count} groups cannot fill {folds} folds")
    fold_of_name = np.empty(count, dtype=np.int64)
    fold_of_name[np.random.default_rng(seed).permutation(count)] = np.arange(count) % folds
    return fold_of_name[index]


def training_sets(labels: Floats, size: int | None, seed: int) -> Floats:
    """(N, F) in {0, 1}: the reports that each finding's probe is trained on, of those whose label is known.

    ``size`` None: all. Else ``size`` reports a finding, half of them with it where there are as many: a random draw of
    64 reports would hold no pneumothorax at all.
    """
    known = np.isfinite(labels)
    if size is None:
        return known.astype(np.float64)
    chosen = np.zeros(labels.shape)
    for column in range(labels.shape[1]):
        rng = np.random.default_rng([seed, column])
        positive = rng.permutation(np.flatnonzero(labels[:, column] == 1))[: size // 2]
        negative = rng.permutation(np.flatnonzero(labels[:, column] == 0))[: size - len(positive)]
        chosen[np.r_[positive, negative], column] = 1
    return chosen


def probe_scores(
    features: Floats,
    labels: Floats,
    folds: NDArray[np.int64],
    *,
    size: int | None = None,
    seed: int = 0,
    standardise: bool = True,
) -> Floats:
    """Scores (N, F) of reports by probes that were trained on the other folds.

    A score is the report's rank within its fold, in (0, 1]: probes of different folds are not calibrated to one
    another, and pooled logits would mix their biases up. Ties keep equal ranks.

    Args:
        features: (N, D).
        labels: (N, F) in {0, 1, NaN = unknown}.
        folds: (N,) outer folds, from ``folds_of``.
        size: reports a probe is trained on (see ``training_sets``); None: all of the other folds.
        seed: of the draw of ``size`` reports and of the inner folds.
        standardise: scale each feature to unit variance over the training reports; False: one scale for all.
    """
    scores = np.full(labels.shape, np.nan)
    grid = np.asarray(STRENGTHS)
    for fold in range(int(folds.max()) + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        use = training_sets(labels[train], size, seed * 1000 + fold)
        # With all reports the findings share their inner folds.
        together = [list(range(labels.shape[1]))] if size is None else [[column] for column in range(labels.shape[1])]
        for columns in map(np.array, together):
            inside = np.flatnonzero(use[:, columns].any(axis=1))
            rows = train[inside]
            mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0)
            one = np.full_like(spread, np.sqrt((spread**2).mean()) + 1e-12)
            x = (features - mean) / (np.maximum(spread, 1e-6) if standardise else one)
            part = (np.arange(len(rows)) * INNER // len(rows))[np.random.default_rng(seed).permutation(len(rows))]
            weight, bias = _chosen(x[rows], labels[np.ix_(rows, columns)], use[np.ix_(inside, columns)], part, grid)
            scores[np.ix_(test, columns)] = rankdata(x[test] @ weight + bias, axis=0) / len(test)
    return scores


def _chosen(x: Floats, y: Floats, use: Floats, part: NDArray[np.int64], grid: Floats) -> tuple[Floats, Floats]:
    """Weights and biases on all of ``x``, each column's strength the best on the inner folds ``part`` (N,) held out."""
    losses = np.zeros((len(grid), y.shape[1]))
    for held in range(int(part.max()) + 1):
        inside, outside = use * (part != held)[:, None], use * (part == held)[:, None]
        target = np.where(outside > 0, y, 0.0)
        for place, strength in enumerate(grid):
            weight, bias = fit_logistic(x, y, inside, np.full(y.shape[1], strength))
            logits = x @ weight + bias
            losses[place] += ((np.logaddexp(0, logits) - target * logits) * outside).sum(axis=0)
    return fit_logistic(x, y, use, grid[losses.argmin(axis=0)])


def weighted_average_precision(scores: Floats, labels: Floats, weights: Floats) -> Floats:
    """Average precision (B,) of ``scores`` (N,) for ``labels`` (N,) in {0, 1} under B sets of ``weights`` (B, N).

    The sum over thresholds of precision times gain in recall; items of equal score pass a threshold together. NaN
    where a set gives no weight to the positives.
    """
    if scores.shape != labels.shape or weights.shape[1:] != scores.shape:
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, weights {weights.shape}")
    order = np.argsort(-scores, kind="stable")
    ordered = weights[:, order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) < 0])
    gained = np.add.reduceat(ordered * labels[order], starts, axis=1)
    passed = np.cumsum(np.add.reduceat(ordered, starts, axis=1), axis=1)
    precision = np.divide(np.cumsum(gained, axis=1), passed, out=np.zeros_like(passed), where=passed > 0)
    total = gained.sum(axis=1)
    return np.divide((precision * gained).sum(axis=1), total, out=np.full(len(weights), np.nan), where=total > 0)


FIGURES = {"auroc": weighted_auroc, "precision": weighted_average_precision}
Probed = Mapping[str, Sequence[Drawn]]
"""Each of ``FIGURES`` of every finding."""


def judge(scores: Sequence[Floats], labels: Floats, weights: Floats) -> Probed:
    """Mean over several ``scores`` (N, F), one a draw of the training sets, of each finding's AUROC and precision."""

    def mean(measure: Callable[[Floats, Floats, Floats], Floats], _: int, parts: Floats, *of: Floats) -> Floats:
        return np.asarray(np.mean([measure(part, *of) for part in parts], axis=0))

    numbers = [str(column) for column in range(labels.shape[1])]
    return {
        name: by_finding(partial(mean, measure), np.stack(scores), labels, numbers, weights)
        for name, measure in FIGURES.items()
    }


def summarise(result: Probed, other: Probed | None = None) -> dict[str, Any]:
    """Each finding's and the mean AUROC and average precision with intervals; of ``result`` less ``other`` if given.

    The same bootstrap weights made both, so that the difference is paired.
    """
    summary: dict[str, Any] = {}
    for name, found in result.items():
        if other is not None:
            found = [one.less(theirs) for one, theirs in zip(found, other[name], strict=True)]
        macro = Drawn(*mean_of(found, len(found[0].draws)))
        summary[name] = {"macro": macro.entry, "findings": [one.entry for one in found]}
    return summary


def bag_of_words(texts: Sequence[str], *, least: int = 5) -> Floats:
    """(N, V) in {0, 1}: which of the V words that are in ``least`` texts or more are in each text."""
    counter = CountVectorizer(binary=True, min_df=least, token_pattern=r"[a-z]+")
    return np.asarray(counter.fit_transform(texts).toarray(), dtype=np.float64)


def probe_report(result: Mapping[str, Any]) -> str:
    """Markdown of what ``eval/text_encoder_probe.py`` measured."""
    details = result["details"]
    cells = {(run["features"], run["pool"], run["size"]): run for run in details["runs"]}
    names, pool, sizes = details["features"], details["pools"][0], details["sizes"]
    shown = {name: cells[name, pool, None] for name in names if (name, pool, None) in cells}
    differences = {run["size"]: run for run in details["differences"] if run["pool"] == pool}
    rows = []
    for place, finding in enumerate(details["findings"]):
        row = [finding["finding"], str(finding["positives"])]
        row += [figure(run["auroc"]["findings"][place], digits=3) for run in shown.values()]
        if None in differences:
            row.append(_signed(differences[None]["auroc"]["findings"][place]))
            row.append(_signed(differences[None]["precision"]["findings"][place]))
        rows.append(row)
    header = ["Finding", "reports with it", *shown]
    head = list(details["encoders"])
    if None in differences:
        header += [f"{head[1]} − {head[0]}, AUROC", "average precision"]
    parts = [
        f"AUROC of linear probes on frozen states of the text encoder ({pool}), {result['n']:,} Open-i reports, text = "
        f"{' + '.join(details['sections'])}, {details['folds']} folds by patient, all other folds to train on; "
        "95 % bootstrap intervals by patient.",
        table(header, rows),
    ]
    rows = []
    for where in details["pools"]:
        for size in sizes:
            drawn = {name: cells.get((name, where, size)) for name in names}
            # Words and shuffled labels do not depend on how states are pooled, or are made for one pool only.
            row = [where, "all" if size is None else str(size)]
            row += ["–" if run is None else figure(run["auroc"]["macro"], digits=3) for run in drawn.values()]
            for run in details["differences"]:
                if (run["pool"], run["size"]) == (where, size):
                    row += [_signed(run["auroc"]["macro"]), _signed(run["precision"]["macro"])]
            rows.append(row)
    header = ["Pooling", "reports a probe learns from", *names]
    if differences:
        header += [f"{head[1]} − {head[0]}, AUROC", "average precision"]
    parts += [f"Macro AUROC over the {len(details['findings'])} findings:", table(header, rows)]
    return "\n\n".join(parts)


def _signed(entry: Mapping[str, Any]) -> str:
    low, high = entry["ci"]
    if entry["value"] is None or low is None:
        return "–"
    return f"{entry['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
