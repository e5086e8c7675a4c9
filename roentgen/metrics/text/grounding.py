"""Are boxes where the findings are? Box precision and recall, the pointing game, pixels, and RadFact's questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.statistics import USUAL, Bootstrap, Floats, estimate, ratio_estimate
from roentgen.reports.boxes import Box, centre, holds, iou

LEVELS = (0.1, 0.3, 0.5)
GRID = 200  # cells of a side in which pixels are counted
COVERED = 0.5  # share of a box that has to be covered for it to count (RadFact, arXiv 2406.04449)


@dataclass(frozen=True)
class Case:
    """One finding of one image: boxes that are said, best first, and true ones; ``group`` is the patient."""

    said: tuple[Box, ...]
    true: tuple[Box, ...]
    group: object


def matched(said: Sequence[Box], true: Sequence[Box], level: float) -> int:
    """How many boxes pair one to one at IoU ``level`` or more, the best said box first."""
    left, count = list(true), 0
    for box in said:
        scores = [iou(box, other) for other in left]
        if scores and max(scores) >= level:
            left.pop(int(np.argmax(scores)))
            count += 1
    return count


def mask(boxes: Sequence[Box], grid: int = GRID) -> NDArray[np.bool_]:
    """Cells (grid, grid) whose centre lies in a box."""
    places = (np.arange(grid) + 0.5) / grid
    found = np.zeros((grid, grid), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        found |= ((places >= y1) & (places <= y2))[:, None] & ((places >= x1) & (places <= x2))[None]
    return found


def pointing(case: Case) -> float:
    """1 where the middle of the best box lies in a true one (Zhang et al. 2018), else 0; 0 without a box."""
    if not case.said:
        return 0.0
    x, y = centre(case.said[0])
    return float(any(holds(box, x, y) for box in case.true))


def cover(case: Case) -> float:
    """Intersection over union of all pixels in said boxes and all in true ones."""
    mine, theirs = mask(case.said), mask(case.true)
    union = (mine | theirs).sum()
    return float((mine & theirs).sum() / union) if union else 0.0


def covered(boxes: Sequence[Box], by: Sequence[Box]) -> int:
    """How many of ``boxes`` have more than half of their pixels in boxes of ``by``."""
    ground = mask(by)
    count = 0
    for box in boxes:
        mine = mask([box])
        count += bool(mine.any() and ground[mine].mean() > COVERED)
    return count


def grounding_scores(cases: Sequence[Case], *, bootstrap: Bootstrap = USUAL) -> dict[str, Any]:
    """Scores of the cases with intervals from a bootstrap by patient; a case without said boxes misses all its own.

    Returns:
        ``pointing`` and ``cover`` (means over cases), ``precision`` and ``recall`` by IoU level (over boxes),
        ``spatial`` precision and recall (boxes more than half covered, over boxes), ``cases`` and ``boxes`` (counts).
    """
    if not cases:
        raise ValueError("no cases")
    weights = bootstrap.weights([case.group for case in cases])

    def mean(of: Callable[[Case], float]) -> dict[str, Any]:
        values = np.array([of(case) for case in cases])
        return {key: found for key, found in estimate(values, weights).items() if key != "n"}

    def ratio(above: Callable[[Case], float], below: Callable[[Case], float]) -> dict[str, Any]:
        numerator, denominator = (np.array([of(case) for case in cases], dtype=float) for of in (above, below))
        return ratio_estimate(numerator, denominator, weights)

    def hits_at(level: float) -> Callable[[Case], float]:
        return lambda case: matched(case.said, case.true, level)

    hits: Mapping[float, Callable[[Case], float]] = {level: hits_at(level) for level in LEVELS}
    return {
        "pointing": mean(pointing),
        "cover": mean(cover),
        "precision": {f"{level:g}": ratio(hits[level], lambda case: len(case.said)) for level in LEVELS},
        "recall": {f"{level:g}": ratio(hits[level], lambda case: len(case.true)) for level in LEVELS},
        "spatial": {
            "precision": ratio(lambda case: covered(case.said, case.true), lambda case: len(case.said)),
            "recall": ratio(lambda case: covered(case.true, case.said), lambda case: len(case.true)),
        },
        "cases": len(cases),
        "boxes": sum(len(case.true) for case in cases),
    }


def prior_boxes(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """Where a finding usually is, whatever the image shows: the mean of its boxes on each side, the commoner first.

    What lies across the midline has its mean of its own. The strongest guess that needs no image.
    """
    kinds: dict[str, list[Box]] = {"right": [], "left": [], "middle": []}
    for box in boxes:
        kind = "middle" if box[0] < 0.45 and box[2] > 0.55 else "right" if centre(box)[0] < 0.5 else "left"
        kinds[kind].append(box)
    if len(kinds["middle"]) >= max(map(len, kinds.values())):
        kinds = {"middle": kinds["middle"]}
    chosen = sorted((kinds[name] for name in kinds if name != "middle" or len(kinds) == 1), key=len, reverse=True)
    means = [np.mean(kind, axis=0).tolist() for kind in chosen if kind]
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in means)


def radfact(
    said: Sequence[Mapping[str, Sequence[Box]]],
    true: Sequence[Mapping[str, Sequence[Box]]],
    groups: Sequence[object],
    *,
    bootstrap: Bootstrap = USUAL,
) -> dict[str, Any]:
    """RadFact's scores by rules: findings by label instead of a language model's entailment.

    ``said`` and ``true`` map the labels of each image to their boxes (none where no place is given). Logical: share of
    said findings that are true, and of true ones that are said. Spatial: of findings that are right on both sides and
    have boxes on both, the share of boxes that are more than half covered.
    """
    rows = []
    for mine, theirs in zip(said, true, strict=True):
        both = set(mine) & set(theirs)
        placed = [name for name in both if mine[name] and theirs[name]]
        rows.append(
            [
                len(both), len(mine), len(theirs),
                sum(covered(mine[name], theirs[name]) for name in placed), sum(len(mine[name]) for name in placed),
                sum(covered(theirs[name], mine[name]) for name in placed), sum(len(theirs[name]) for name in placed),
            ]
        )  # fmt: skip
    counts: Floats = np.array(rows, dtype=float)
    weights = bootstrap.weights(groups)
    names = {
        "logical_precision": (0, 1), "logical_recall": (0, 2), "spatial_precision": (3, 4), "spatial_recall": (5, 6)
    }  # fmt: skip
    return {
        name: {**ratio_estimate(counts[:, top], counts[:, bottom], weights), "n": int(counts[:, bottom].sum())}
        for name, (top, bottom) in names.items()
    }
