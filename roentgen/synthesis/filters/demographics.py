"""Are view, sex and age those asked for? Linear predictors, fitted on real images by ``roentgen train reference``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.metrics.adherence.auroc import auroc
from roentgen.prompts import Labels
from roentgen.synthesis.filters.inputs import FilterInputs, Floats
from roentgen.synthesis.filters.reference import Reference

HEAD_AUROC, HEAD_CORRELATION = 0.85, 0.6
"""Least AUROC of a predictor of view or sex, and least correlation of that of age, to be used at all."""
RIDGE = 10.0
"""Penalty of the predictors, in images."""


def head(reference: Reference, name: str) -> tuple[Floats, Mapping[str, Any]]:
    """Weights and rule of the predictor of view, sex or age; UserError where the reference has none."""
    if f"head_{name}" not in reference.arrays:
        why = reference.thresholds.get(name, {}).get("why", "its manifest does not tell it")
        raise UserError(
            f"--filter {name}: the reference has no predictor of it ({why}); leave {name} out, or give a "
            "--reference made by roentgen train reference from images of which it is known"
        )
    return np.asarray(reference.arrays[f"head_{name}"], np.float64), reference.thresholds[name]


@dataclass(frozen=True)
class Choice:
    """Is the view or the sex the one asked for? The score is the margin to the threshold of the value asked for.

    name: the attribute of ``Labels``. values: the one of a low and of a high prediction. weights: of the coordinates
    and the intercept. rule: ``threshold``, by value, of the prediction.
    """

    name: str
    values: tuple[str, str]
    weights: Floats
    rule: Mapping[str, Any]

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats:
        predicted = predict(self.weights, inputs.coordinates)
        low, high = self.values
        asked = [getattr(label, self.name) for label in labels]
        margins = {low: self.rule["threshold"][low] - predicted, high: predicted - self.rule["threshold"][high]}
        return np.array([margins[value][row] if value in margins else np.nan for row, value in enumerate(asked)])

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores < 0)

    def describe(self) -> dict[str, Any]:
        return {"measure": f"margin of a linear predictor of the {self.name}", "least": 0.0, **self.rule}


@dataclass(frozen=True)
class Age:
    """Is the age about the one asked for? The score is the difference in years."""

    weights: Floats
    rule: Mapping[str, Any]

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats:
        asked = np.array([np.nan if label.age is None else label.age for label in labels])
        return np.abs(predict(self.weights, inputs.coordinates) - asked)

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores > self.rule["most_years"])

    def describe(self) -> dict[str, Any]:
        return {"measure": "years between the age asked for and that of a linear predictor", **self.rule}


def predict(weights: Floats, coordinates: Floats) -> Floats:
    """Linear prediction (N,) from coordinates (N, K) by weights (K + 1,), the intercept last."""
    return np.asarray(coordinates @ weights[:-1] + weights[-1])


# ---------------------------------------------------------------------- thresholds


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
