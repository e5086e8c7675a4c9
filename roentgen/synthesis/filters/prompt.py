"""Does the classifier see what the prompt says?

Thresholds (``prompt_rules``) are quantiles of real images that no fit has seen; none is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.metrics.adherence.auroc import auroc
from roentgen.metrics.adherence.laterality import LEFT, RIGHT
from roentgen.metrics.statistics import wilson_interval
from roentgen.prompts import NO_FINDING, Labels
from roentgen.synthesis.filters.inputs import FilterInputs, Floats

SIDE_ACCURACY = 0.75
"""Least lower end of the 95 % interval of the share of sides told right, for a finding's side to be judged."""


@dataclass(frozen=True)
class Prompt:
    """Does the classifier see what the prompt says?

    The score is the smallest of the margins, in logits, by which the classifier agrees with each statement: a finding
    is there, it is on its side, a normal image has none of the others.

    rules: by finding, as in ``reference.json``: ``judged``; ``threshold`` of the probability; ``most_if_normal``, the
    highest probability in a normal image; ``sides`` with ``judged`` and ``least``, the leftness that a left one must
    have at least and a right one at most with its sign turned.
    findings: columns of the classifier.
    """

    rules: Mapping[str, Mapping[str, Any]]
    findings: Sequence[str]
    sensitivity: float

    def scores(self, inputs: FilterInputs, labels: Sequence[Labels]) -> Floats:
        probabilities = logit(inputs.outputs["probabilities"])
        left = leftness(inputs.outputs["sides"])
        found = [self._margin(p, side, asked) for p, side, asked in zip(probabilities, left, labels, strict=True)]
        return np.array(found)

    def _margin(self, probabilities: Floats, left: Floats, asked: Labels) -> float:
        margins = []
        for name in asked.findings:
            rule = self.rules.get(name)
            if rule is None or not rule["judged"]:
                continue
            column = self.findings.index(name)
            margins.append(probabilities[column] - float(logit(np.array(rule["threshold"]))))
            side = asked.sides.get(name)
            if side in ("left", "right") and rule.get("sides", {}).get("judged"):
                margins.append((left[column] if side == "left" else -left[column]) - rule["sides"]["least"])
        if asked.findings == (NO_FINDING,):
            for name, rule in self.rules.items():
                if rule["judged"] and rule.get("most_if_normal") is not None:
                    most = float(logit(np.array(rule["most_if_normal"])))
                    margins.append(most - probabilities[self.findings.index(name)])
        return min(margins, default=float("nan"))

    def keeps(self, scores: Floats) -> NDArray[np.bool_]:
        return ~(scores < 0)

    def describe(self) -> dict[str, Any]:
        return {
            "measure": "smallest margin in logits by which the classifier agrees with a statement of the prompt",
            "least": 0.0,
            "threshold_from": f"each finding and side is accepted in {self.sensitivity:.0%} of real images that have "
            "it, or more",
            "judged": {name: _words(rule) for name, rule in self.rules.items() if rule["judged"]},
            "not_judged": {name: rule["why"] for name, rule in self.rules.items() if not rule["judged"]},
        }


def _words(rule: Mapping[str, Any]) -> str:
    """What the card says of a finding that is judged."""
    against = " against other sources only" if rule.get("other_sources") else ""
    parts = [f"AUROC {rule['auroc']:.2f}{against}", f"at least {rule['threshold']:.3f}"]
    if rule.get("most_if_normal") is not None:
        parts.append(f"if normal at most {rule['most_if_normal']:.3f}")
    if rule.get("sides", {}).get("judged"):
        parts.append("side too")
    return ", ".join(parts)


def logit(probability: NDArray[np.floating]) -> Floats:
    """ln(p / (1 - p)), p kept off 0 and 1 by 1e-6."""
    p = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)))


def leftness(sides: NDArray[np.floating]) -> Floats:
    """How far a finding is on the patient's left: logit of the left less that of the right, (...,) of (..., 2)."""
    return logit(sides[..., LEFT]) - logit(sides[..., RIGHT])


# ---------------------------------------------------------------------- thresholds


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
    """What ``Prompt`` compares with.

    The threshold of a finding is the 1 - ``sensitivity`` quantile of its probability where it is there. The highest
    probability in a normal image is a quantile over normal ones, such that by Bonferroni at least ``specificity`` of
    them pass all findings.

    Args:
        table: labels (N rows), columns of a manifest.
        outputs: ``probabilities`` (N, F) and ``sides`` (N, F, 2) of the same images.
        findings: their columns.
        sensitivity, specificity, least_auroc, least_cases: see ``roentgen train reference``.
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
