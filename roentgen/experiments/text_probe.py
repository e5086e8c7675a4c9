"""Linear probes: what a linear classifier can read from frozen features, by nested cross-validation.

L2-regularised logistic regression, solved to its minimum in float64 by Newton's method with conjugate gradients, many
regressions at once and each independent of the others. The strength of regularisation is chosen inside the training
folds only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence.auroc import weighted_auroc
from roentgen.metrics.report.tables import figure, table
from roentgen.metrics.statistics import percentile_interval

Floats = NDArray[np.float64]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of half the squared norm, beside the mean log loss."""
NEWTON_STEPS, CG_STEPS, TOLERANCE = 50, 60, 1e-5


def fit_logistic(features: Floats, labels: Floats, use: Floats, strengths: Floats) -> tuple[Floats, Floats]:
    """Weights (D, K) and biases (K,) of K logistic regressions on ``features`` (N, D), each at its minimum.

    Args:
        features: as they are regularised; standardise them before.
        labels: (N, K) in {0, 1}; anything where ``use`` is 0.
        use: (N, K) in {0, 1}: whether report n counts for regression k.
        strengths: (K,) weight of half the squared norm beside the mean log loss; the bias is free.
    """
    y = np.where(use > 0, labels, 0.0)
    share = use / np.maximum(use.sum(axis=0), 1)
    # Along principal axes the Hessian is nearly diagonal, which is what makes the diagonal a good preconditioner; the
    # penalty does not mind the rotation, and keeps the weights within the span of the reports.
    axes = _axes(features)
    x = np.column_stack([features @ axes, np.ones(len(features))])
    penalty = np.vstack([np.broadcast_to(strengths, (x.shape[1] - 1, len(strengths))), np.full(len(strengths), 1e-9)])
    weight = np.zeros((x.shape[1], y.shape[1]))
    weight[-1] = _logit(np.clip((share * y).sum(axis=0), 1e-4, 1 - 1e-4))
    logits = x @ weight
    loss = _objective(logits, weight, y, share, penalty)
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-logits))
        gradient = x.T @ (share * (probability - y)) + penalty * weight
        if np.abs(gradient).max(initial=0) < TOLERANCE:
            break
        curvature = share * probability * (1 - probability)
        step = -_solve(x, curvature, penalty, gradient)
        moved, length = x @ step, np.ones(y.shape[1])
        slope = (gradient * step).sum(axis=0)
        for _ in range(30):  # halve the step of each regression until it goes down
            new = _objective(logits + length * moved, weight + length * step, y, share, penalty)
            bad = new > loss + 1e-4 * length * slope
            if not bad.any():
                break
            length = np.where(bad, length / 2, length)
        length = np.where(bad, 0.0, length)  # at the minimum as far as float64 can tell
        if not length.any():
            break
        weight, logits = weight + length * step, logits + length * moved
        loss = _objective(logits, weight, y, share, penalty)
    return axes @ weight[:-1], weight[-1]


def _axes(features: Floats) -> Floats:
    """Orthonormal principal axes (D, R) that span the rows of ``features`` (N, D), uncentred.

    By eigenvectors of the smaller Gram matrix: LAPACK's SVD does not converge on some bags of words.
    """
    if len(features) >= features.shape[1]:
        return np.linalg.eigh(features.T @ features)[1]
    values, vectors = np.linalg.eigh(features @ features.T)
    kept = values > 1e-10 * max(values.max(initial=0), 1e-300)
    return (features.T @ vectors[:, kept]) / np.sqrt(values[kept])


def _logit(probability: Floats) -> Floats:
    return np.log(probability / (1 - probability))


def _objective(logits: Floats, weight: Floats, y: Floats, share: Floats, penalty: Floats) -> Floats:
    fit = (share * (np.logaddexp(0, logits) - y * logits)).sum(axis=0)
    return np.asarray(fit + 0.5 * (penalty * weight**2).sum(axis=0))


def _solve(x: Floats, curvature: Floats, penalty: Floats, right: Floats) -> Floats:
    """Conjugate gradients for K systems (x' diag(curvature_k) x + diag(penalty_k)) s_k = right_k at once."""
    diagonal = (x**2).T @ curvature + penalty
    solution, residual = np.zeros_like(right), right.copy()
    preconditioned = residual / diagonal
    direction = preconditioned
    size = (residual * preconditioned).sum(axis=0)
    goal = 1e-4 * size  # of the squared norm: Newton's own convergence needs no more
    for _ in range(CG_STEPS):
        if (size <= goal).all():
            break
        product = x.T @ (curvature * (x @ direction)) + penalty * direction
        bend = (direction * product).sum(axis=0)
        length = np.divide(size, bend, out=np.zeros_like(size), where=bend > 0)
        solution, residual = solution + length * direction, residual - length * product
        preconditioned = residual / diagonal
        next_size = (residual * preconditioned).sum(axis=0)
        ratio = np.divide(next_size, size, out=np.zeros_like(size), where=size > 0)
        direction, size = preconditioned + ratio * direction, next_size
    return solution


def folds_of(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold 0 to ``folds`` - 1 of each item (N,); items of a group (a patient) share one, sizes differ by one group."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < folds:
        raise ValueError(f"{len(names)} groups cannot fill {folds} folds")
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of_name = np.empty(len(names), dtype=np.int64)
    fold_of_name[order] = np.arange(len(names)) % folds
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
    inner: int = 3,
    standardise: bool = True,
    strengths: Sequence[float] = STRENGTHS,
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
        inner: folds in which the strength is chosen, finding by finding, by log loss.
        standardise: scale each feature to unit variance over the training reports; False: one scale for all.
    """
    scores = np.full(labels.shape, np.nan)
    grid = np.asarray(strengths, dtype=np.float64)
    for fold in range(int(folds.max()) + 1):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        use = training_sets(labels[train], size, seed * 1000 + fold)
        # With all reports the findings share their features, and are fitted in one go.
        together = [list(range(labels.shape[1]))] if size is None else [[column] for column in range(labels.shape[1])]
        for columns in together:
            rows = np.flatnonzero(use[:, columns].any(axis=1))
            x, y = features[train[rows]], labels[np.ix_(train[rows], np.array(columns))]
            mean, spread = x.mean(axis=0), x.std(axis=0)
            one = np.full_like(spread, np.sqrt((spread**2).mean()) + 1e-12)
            spread = np.maximum(spread, 1e-6) if standardise else one
            part = _parts(len(rows), inner, seed)
            weight, bias = _chosen((x - mean) / spread, y, use[np.ix_(rows, np.array(columns))], part, grid)
            scores[np.ix_(test, np.array(columns))] = _ranks(((features[test] - mean) / spread) @ weight + bias)
    return scores


def _parts(count: int, inner: int, seed: int) -> NDArray[np.int64]:
    """Inner fold of each of ``count`` reports."""
    return (np.arange(count) * inner // count)[np.random.default_rng(seed).permutation(count)]


def _chosen(x: Floats, y: Floats, use: Floats, part: NDArray[np.int64], grid: Floats) -> tuple[Floats, Floats]:
    """Weights and biases on all of ``x``, each column's strength the best on the inner folds held out."""
    count = y.shape[1]
    losses = np.zeros((len(grid), count))
    for held in range(int(part.max()) + 1):
        inside, outside = use * (part != held)[:, None], use * (part == held)[:, None]
        weight, bias = fit_logistic(x, np.tile(y, len(grid)), np.tile(inside, len(grid)), np.repeat(grid, count))
        logits = (x @ weight + bias).reshape(len(x), len(grid), count).transpose(1, 0, 2)
        target = np.where(outside > 0, y, 0.0)
        losses += ((np.logaddexp(0, logits) - target * logits) * outside).sum(axis=1)
    return fit_logistic(x, y, use, grid[losses.argmin(axis=0)])


def _ranks(values: Floats) -> Floats:
    """Average rank over N of each value in its column (N, F), ties sharing one."""
    ranks = np.empty(values.shape)
    for column in range(values.shape[1]):
        _, index, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks[:, column] = (last - (counts - 1) / 2)[index] / len(values)
    return ranks


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


@dataclass(frozen=True)
class ProbeResult:
    """AUROC and average precision a finding: values (F,) and bootstrap draws (F, B)."""

    auroc: Floats
    auroc_draws: Floats
    precision: Floats
    precision_draws: Floats


def judge(scores: Sequence[Floats], labels: Floats, weights: Floats) -> ProbeResult:
    """Mean over several ``scores`` (N, F), one a draw of the training sets, of each finding's AUROC and precision."""
    found: dict[str, list[Floats]] = {"auroc": [], "precision": []}
    with_all = np.concatenate([np.ones((1, len(labels))), weights])
    for column in range(labels.shape[1]):
        known = np.isfinite(labels[:, column])
        truth, drawn = labels[known, column], with_all[:, known]
        for name, measure in (("auroc", weighted_auroc), ("precision", weighted_average_precision)):
            found[name].append(np.mean([measure(part[known, column], truth, drawn) for part in scores], axis=0))
    area, precision = np.stack(found["auroc"]), np.stack(found["precision"])
    return ProbeResult(area[:, 0], area[:, 1:], precision[:, 0], precision[:, 1:])


def interval(value: float, draws: Floats) -> dict[str, Any]:
    """``value`` with the percentile interval of its draws, as results store it."""
    return {"value": float(value), "ci": percentile_interval(draws)}


def summarise(result: ProbeResult, other: ProbeResult | None = None) -> dict[str, Any]:
    """Each finding's and the mean AUROC and average precision with intervals; of ``result`` less ``other`` if given.

    The same bootstrap weights made both, so that the difference is paired.
    """
    summary: dict[str, Any] = {}
    for name in ("auroc", "precision"):
        value, draws = _of(result, name)
        if other is not None:
            value, draws = value - _of(other, name)[0], draws - _of(other, name)[1]
        summary[name] = {
            "macro": interval(float(np.mean(value)), np.mean(draws, axis=0)),
            "findings": [interval(v, d) for v, d in zip(value.tolist(), draws, strict=True)],
        }
    return summary


def _of(result: ProbeResult, name: str) -> tuple[Floats, Floats]:
    if name == "auroc":
        return result.auroc, result.auroc_draws
    return result.precision, result.precision_draws


def bag_of_words(texts: Sequence[str], *, least: int = 5) -> Floats:
    """(N, V) in {0, 1}: which of the V words that are in ``least`` texts or more are in each text."""
    words = [set(re.findall(r"[a-z]+", text.lower())) for text in texts]
    counts = Counter(word for text in words for word in text)
    vocabulary = sorted(word for word, count in counts.items() if count >= least)
    return np.array([[word in text for word in vocabulary] for text in words], dtype=np.float64).reshape(len(texts), -1)


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
