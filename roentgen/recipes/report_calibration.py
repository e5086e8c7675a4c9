"""Calibration of the ``labels`` reporter on validation images: probabilities, thresholds, sides, severities, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from roentgen.metrics.text.grounding import matched
from roentgen.prompts import FINDINGS
from roentgen.recipes.report_targets import Targets
from roentgen.reports.boxes import side_of
from roentgen.reports.finding_net import Predictions
from roentgen.reports.grounding import regressed_boxes
from roentgen.reports.labels import logit

OVERCALL = 2.0
"""How many times as often as a finding is expected it may be called."""
SLOPE_SPREAD = 0.3
"""Standard deviation of the slope about 1 before validation images are seen: some findings have few of them."""
BOX_THRESHOLDS = np.linspace(0.1, 0.8, 29)
FEW_SIDES = 15
FEW_NORMAL = 30
MARGINS = np.linspace(0, 3, 31)
MATCH = 0.3  # IoU from which a box counts as found when the map's threshold is chosen


def calibrate_rules(seen: Predictions, targets: Targets, train: np.ndarray, val: np.ndarray) -> dict[str, Any]:
    """What ``roentgen.reports.labels.Rules`` holds, as JSON values; ``seen`` are predictions of the rows ``val``."""
    truth = targets.labels[torch.from_numpy(val)].numpy().astype(np.float64)
    calibration, thresholds, prevalence = {}, {}, {}
    logits = np.zeros(truth.shape)
    for column, name in enumerate(targets.findings):
        known = ~np.isnan(truth[:, column])
        scores, labels = logit(seen.image[known, column]), truth[known, column]
        slope, offset = platt(scores, labels)
        p = 1 / (1 + np.exp(-(slope * scores + offset)))
        logits[:, column] = slope * logit(seen.image[:, column]) + offset
        calibration[name] = [round(slope, 5), round(offset, 5)]
        thresholds[name] = round(max(best_threshold(p), common_threshold(p)), 5)
        prevalence[name] = round(float(labels.mean()) if len(labels) else 0.0, 5)
    return {
        "calibration": calibration,
        "thresholds": thresholds,
        "prevalence": prevalence,
        "side_margins": side_margins(seen, targets, val),
        "severities": severity_bounds(targets, train),
        "places": places(seen, targets, train, val),
        "abnormal": any_finding(logits, targets.normal[torch.from_numpy(val)].numpy(), targets.findings),
    }


def any_finding(logits: np.ndarray, normal: np.ndarray, findings: Sequence[str]) -> dict[str, float]:
    """Weights by finding, and the offset as "", of a logistic regression of "not normal" on ``logits`` (N, F).

    ``normal`` (N,) in {0, 1, NaN}; empty where fewer than ``FEW_NORMAL`` images are known to be normal, or not to be.
    """
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(normal)
    if min((normal[known] == 1).sum(), (normal[known] == 0).sum()) < FEW_NORMAL:
        return {}
    fit = LogisticRegression(C=0.1).fit(logits[known], normal[known] == 0)
    weights = dict(zip(findings, fit.coef_[0].tolist(), strict=True)) | {"": float(fit.intercept_[0])}
    return {name: round(value, 5) for name, value in weights.items()}


def platt(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of a logistic curve (Platt 1999) with a normal prior of the slope about 1, by Newton's method.

    Targets are Platt's, which lie a little inside 0 and 1, so that few cases do not give certainty.
    """
    positives = labels.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    target = np.where(labels > 0, high, low)
    value = np.array([1.0, 0.0])
    design = np.stack([scores, np.ones_like(scores)], 1)
    for _ in range(50):
        p = 1 / (1 + np.exp(-(design @ value)))
        gradient = design.T @ (p - target) + np.array([(value[0] - 1) / SLOPE_SPREAD**2, 0])
        curvature = (design.T * (p * (1 - p))) @ design + np.diag([1 / SLOPE_SPREAD**2, 1e-6])
        step = np.linalg.solve(curvature, gradient)
        value = value - np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(value[0]), float(value[1])


def best_threshold(p: np.ndarray) -> float:
    """The threshold of the highest expected F1 if the probabilities ``p`` (N,) are true (Lipton et al. 2014).

    Expected rather than counted: with a dozen positive images the counted optimum is mostly chance.
    """
    ranked = np.sort(p)[::-1]
    f1 = 2 * np.cumsum(ranked) / (np.arange(1, len(ranked) + 1) + ranked.sum())
    return float(ranked[int(f1.argmax())])


def common_threshold(p: np.ndarray) -> float:
    """The threshold that calls ``OVERCALL`` times as many as the probabilities ``p`` (N,) say that there are.

    Of a rare finding the highest F1 is reached by calling it many times too often, which no reader would bear.
    """
    ranked = np.sort(p)[::-1]
    return float(ranked[min(len(ranked), max(1, round(OVERCALL * float(p.sum())))) - 1])


def side_margins(seen: Predictions, targets: Targets, val: np.ndarray) -> dict[str, float]:
    """Difference of the sides' logits below which both are said, by finding; "" is that of all together.

    The best for the sides that validation images are known to have: from boxes, which say both sides as well, else from
    labels. A finding with fewer than ``FEW_SIDES`` of them has the margin of all.
    """
    cases: dict[str, list[tuple[float, int]]] = {}
    for place, row in enumerate(val.tolist()):
        for column, name in enumerate(targets.findings):
            boxes = targets.boxes[row].get(column, ())
            truth = int(targets.sides[row, column])
            if boxes:
                truth = {"left": 1, "right": -1}.get(side_of(boxes) or "", 0)
            if (boxes or truth) and FINDINGS[name].can_have_side:
                sides = seen.sides[place, column]
                cases.setdefault(name, []).append((float(logit(sides[1]) - logit(sides[0])), truth))
    margins = {"": _margin([case for found in cases.values() for case in found])}
    return margins | {name: _margin(found) for name, found in cases.items() if len(found) >= FEW_SIDES}


def _margin(cases: list[tuple[float, int]]) -> float:
    if not cases:
        return 0.5
    difference, truth = (np.array(values) for values in zip(*cases, strict=True))
    right = [(np.where(np.abs(difference) < m, 0, np.sign(difference)) == truth).mean() for m in MARGINS]
    return round(float(MARGINS[int(np.argmax(right))]), 3)


def severity_bounds(targets: Targets, train: np.ndarray) -> dict[str, list[float]]:
    """Bounds between the words of findings whose severity some training images tell: halfway between the words."""
    bounds = {}
    known = ~targets.severity[torch.from_numpy(train)].isnan()
    for column, name in enumerate(targets.findings):
        words = len(FINDINGS[name].qualifiers)
        if words > 1 and int(known[:, column].sum()) >= 50:
            bounds[name] = [round((rank + 0.5) / (words - 1), 4) for rank in range(words - 1)]
    return bounds


def places(seen: Predictions, targets: Targets, train: np.ndarray, val: np.ndarray) -> dict[str, Any]:
    """How each finding's boxes are found: regressed above the best threshold, or of the usual size around the peak."""
    regressed = targets.regressed(train.tolist())
    found: dict[str, Any] = {}
    for column, name in enumerate(targets.findings):
        boxes = [box for row in train.tolist() for box in targets.boxes[row].get(column, ())]
        if not boxes:
            continue
        if column in regressed:
            threshold, score = _box_threshold(seen, targets, val, column)
            found[name] = {"how": "regressed", "threshold": threshold, "boxes": len(boxes), "validation_f1": score}
        else:
            size = np.median([(box[2] - box[0], box[3] - box[1]) for box in boxes], axis=0)
            found[name] = {"how": "peak", "size": [round(float(v), 4) for v in size], "boxes": len(boxes)}
        mean = np.mean(boxes, axis=0)
        found[name]["mean_box"] = [round(float(v), 4) for v in mean]
    return found


def _box_threshold(seen: Predictions, targets: Targets, val: np.ndarray, column: int) -> tuple[float, float]:
    cases = [
        (place, targets.boxes[row][column]) for place, row in enumerate(val.tolist()) if column in targets.boxes[row]
    ]
    best = (0.5, 0.0)
    for threshold in BOX_THRESHOLDS if cases else ():
        hits = said = there = 0
        for place, true in cases:
            boxes = regressed_boxes(seen.maps[place, column], seen.edges[place], threshold=float(threshold))
            hits += matched(boxes, true, MATCH)
            said, there = said + len(boxes), there + len(true)
        score = 2 * hits / (said + there)
        if score > best[1]:
            best = (round(float(threshold), 3), round(score, 4))
    return best
