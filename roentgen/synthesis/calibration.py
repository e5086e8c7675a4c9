"""Thresholds of the quality filter from real images that no fit has seen: each is a quantile, none is guessed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.errors import UserError
from roentgen.metrics.auroc import auroc
from roentgen.metrics.laterality import wilson_interval
from roentgen.prompts import NO_FINDING
from roentgen.synthesis.appearance import MEASURES
from roentgen.synthesis.stages import leftness, predict

Floats = NDArray[np.float64]

SIDE_ACCURACY = 0.75
"""Least lower end of the 95 % interval of the share of sides told right, for a finding's side to be judged."""
HEAD_AUROC, HEAD_CORRELATION = 0.85, 0.6
"""Least AUROC of a predictor of view or sex, and least correlation of that of age, to be used at all."""
RIDGE = 10.0
"""Penalty of the predictors, in images."""


def outside_part(patients: Sequence[str], part: str) -> NDArray[np.bool_]:
    """Which ``patients`` (N,) ``train/classifier.py --part START-END`` leaves out: it hashes each into [0, 1)."""
    try:
        start, end = (float(value) for value in part.split("-"))
    except ValueError:
        raise UserError(f"--classifier: its part {part!r} is not START-END; train it again") from None
    places = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48 for name in patients]
    return np.array([not start <= place < end for place in places], dtype=bool)


def prompt_rules(
    table: pd.DataFrame,
    outputs: Mapping[str, NDArray[np.float32]],
    findings: Sequence[str],
    *,
    sensitivity: float,
    specificity: float,
    least_auroc: float,
    least_cases: int,
) -> dict[str, Any]:
    """What ``stages.Prompt`` compares with.

    The threshold of a finding is the 1 - ``sensitivity`` quantile of its probability where it is there. The highest
    probability in a normal image is a quantile over normal ones, such that by Bonferroni at least ``specificity`` of
    them pass all findings.

    Args:
        table: labels (N rows), columns of a manifest.
        outputs: ``probabilities`` (N, F) and ``sides`` (N, F, 2) of the same images.
        findings: their columns.
        sensitivity, specificity, least_auroc, least_cases: see ``train/reference.py``.
    """
    rules: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(findings):
        scores = np.asarray(outputs["probabilities"][:, column], np.float64)
        truth = table[name].to_numpy(np.float64) if name in table else np.full(len(table), np.nan)
        positive, negative = truth == 1, truth == 0
        rule: dict[str, Any] = {"positives": int(positive.sum()), "negatives": int(negative.sum())}
        if min(rule["positives"], rule["negatives"]) < least_cases:
            why = f"only {rule['positives']} real images with it and {rule['negatives']} without"
            rules[name] = {"judged": False, "why": why, **rule}
            continue
        known = positive | negative
        rule["auroc"] = auroc(scores[known], truth[known])
        if rule["auroc"] < least_auroc:
            why = f"AUROC {rule['auroc']:.2f} on real images is below {least_auroc:g}"
            rules[name] = {"judged": False, "why": why, **rule}
            continue
        if _other_sources(table, positive, negative):
            rule["other_sources"] = True
        rule["threshold"] = float(np.quantile(scores[positive], 1 - sensitivity))
        rule["rejects_without"] = float((scores[negative] < rule["threshold"]).mean())
        sides = _side_rule(table, positive, name, outputs["sides"][:, column], sensitivity, least_cases)
        rules[name] = {"judged": True, **rule, **({} if sides is None else {"sides": sides})}
    normal = table[NO_FINDING].to_numpy(np.float64) == 1 if NO_FINDING in table else np.zeros(len(table), dtype=bool)
    judged = [name for name, rule in rules.items() if rule["judged"] and name != NO_FINDING]
    if normal.sum() >= least_cases:
        for name in judged:
            scores = np.asarray(outputs["probabilities"][normal, findings.index(name)], np.float64)
            rules[name]["most_if_normal"] = float(np.quantile(scores, 1 - (1 - specificity) / len(judged)))
    return {"sensitivity": sensitivity, "specificity": specificity, "findings": rules}


def _other_sources(table: pd.DataFrame, positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> bool:
    """Whether most positives are of sources without negatives: the AUROC may be that of telling sources apart."""
    if "source" not in table:
        return False
    source = table["source"].to_numpy()
    return bool(np.isin(source[positive], np.unique(source[negative])).mean() < 0.5)


def _side_rule(
    table: pd.DataFrame,
    positive: NDArray[np.bool_],
    name: str,
    sides: NDArray[np.float32],
    sensitivity: float,
    least_cases: int,
) -> dict[str, Any] | None:
    """How the side of a finding is judged, None where no side is known of enough images."""
    column = name + SIDE_SUFFIX
    if column not in table:
        return None
    known = positive & table[column].isin(["left", "right"]).to_numpy()
    if known.sum() < least_cases:
        return None
    to_named = leftness(sides[known]) * np.where(table[column][known] == "left", 1.0, -1.0)
    right = int((to_named > 0).sum())
    low, _ = wilson_interval(right, len(to_named))
    # Never so strict that an image must show its side more clearly than by the right sign.
    least = min(0.0, float(np.quantile(to_named, 1 - sensitivity)))
    return {"judged": low >= SIDE_ACCURACY, "images": len(to_named), "accuracy": right / len(to_named), "least": least}


def real_rule(measures: Mapping[str, Floats], share: float) -> dict[str, Any]:
    """What ``stages.Real`` compares with: each measure (N,) its own quantile, so that by Bonferroni ``share`` pass."""
    quantile = 1 - (1 - share) / len(MEASURES)
    return {"quantile": share, "most": {name: float(np.quantile(measures[name], quantile)) for name in MEASURES}}


def copies_rule(distances: Floats, share: float) -> dict[str, Any]:
    """What ``stages.Copies`` compares with: the ``share`` quantile of unseen images' nearest distances (N,)."""
    return {"quantile": share, "least": float(np.quantile(distances, share)), "images": len(distances)}


# ---------------------------------------------------------------------------- predictors of view, sex and age


def heads(
    coordinates: Floats,
    table: pd.DataFrame,
    held_coordinates: Floats,
    held: pd.DataFrame,
    *,
    sensitivity: float,
    least_cases: int,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Ridge regressions of view, sex and age on coordinates (N, K): arrays and rules of those that are good enough.

    Fitted on ``coordinates`` with ``table``, judged on ``held_coordinates`` with ``held``. Of one that is not used the
    rule has ``why``. Thresholds: a value is accepted for ``sensitivity`` of the real images that have it.
    """
    arrays: dict[str, NDArray[np.float32]] = {}
    rules: dict[str, Any] = {}
    for name, low, high in (("view", "PA", "AP"), ("sex", "F", "M")):
        target, truth = _signs(table, name, low, high), _signs(held, name, low, high)
        fewest = min((side == sign).sum() for side in (target, truth) for sign in (-1, 1))
        if fewest < least_cases:
            rules[name] = {"why": f"too few images of {low} or {high}"}
            continue
        weights = ridge(coordinates[target != 0], target[target != 0]).astype(np.float32)
        score = predict(weights.astype(np.float64), held_coordinates)
        value = auroc(score[truth != 0], (truth[truth != 0] > 0).astype(np.float64))
        if value < HEAD_AUROC:
            rules[name] = {"why": f"AUROC {value:.2f} on real images is below {HEAD_AUROC:g}"}
            continue
        most, least = np.quantile(score[truth < 0], sensitivity), np.quantile(score[truth > 0], 1 - sensitivity)
        rules[name] = {"auroc": value, "sensitivity": sensitivity, "threshold": {low: float(most), high: float(least)}}
        arrays[f"head_{name}"] = weights
    age, truth = (side["age"].to_numpy(np.float64) if "age" in side else np.array([]) for side in (table, held))
    known, held_known = np.isfinite(age), np.isfinite(truth)
    if min(known.sum(), held_known.sum()) < 10 * least_cases:
        rules["age"] = {"why": "too few images of known age"}
        return arrays, rules
    weights = ridge(coordinates[known], age[known]).astype(np.float32)
    score = predict(weights.astype(np.float64), held_coordinates[held_known])
    correlation = float(np.corrcoef(score, truth[held_known])[0, 1])
    if correlation < HEAD_CORRELATION:
        rules["age"] = {"why": f"correlation {correlation:.2f} with the age of real images is below {HEAD_CORRELATION}"}
        return arrays, rules
    error = np.abs(score - truth[held_known])
    rules["age"] = {
        "correlation": correlation, "mean_error": float(error.mean()), "sensitivity": sensitivity,
        "most_years": float(np.quantile(error, sensitivity)),
    }  # fmt: skip
    return {**arrays, "head_age": weights}, rules


def _signs(table: pd.DataFrame, name: str, low: str, high: str) -> Floats:
    """-1 where a column says ``low``, 1 where ``high``, else 0, (N,)."""
    if name not in table:
        return np.zeros(len(table))
    return (table[name] == high).to_numpy(np.float64) - (table[name] == low).to_numpy(np.float64)


def ridge(x: Floats, y: Floats, penalty: float = RIDGE) -> Floats:
    """Weights (K + 1,), the intercept last, of the ridge regression of ``y`` (N,) on ``x`` (N, K); closed form."""
    mean, level = x.mean(axis=0), y.mean()
    centred = x - mean
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (y - level))
    return np.append(weights, level - mean @ weights)
