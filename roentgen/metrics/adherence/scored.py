"""Does an image show what its prompt says? A classifier's answer, beside real images and shuffled prompts.

Labels come from the prompt, scores from a classifier. Neither means much alone, so every figure has a ceiling (the same
classifier on real images with the same labels) and a floor (prompts shuffled among the images). A generated image may
well score above a real one: findings drawn more plainly than life. That is a difference to report, not a success.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.measure import EvaluationInputs, Result, labels_of
from roentgen.metrics.statistics import percentile_interval

if TYPE_CHECKING:
    from roentgen.metrics.extractors import Extractor

Floats = NDArray[np.float64]
NAN_INTERVAL = (float("nan"), float("nan"))
LEAVE_OUT = ("No Finding",)
SHUFFLES = 20
FEW = 200
"""Fewer images than this get a warning."""


@dataclass(frozen=True)
class ScoredImages:
    """Images that a classifier has looked at: scores (N, F), labels (N, F) in {0, 1, NaN = unknown}, groups (N,).

    groups: the patient of a real image; of a generated one the prompt, or the patient whose report it is.
    """

    scores: Floats
    labels: Floats
    groups: Sequence[object]

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape != self.labels.shape or len(self.groups) != len(self.scores):
            raise ValueError(f"shapes differ: {self.scores.shape}, {self.labels.shape}, {len(self.groups)} groups")
        if not np.isfinite(self.scores).all():
            raise ValueError("scores hold NaN or infinity")

    def rows(self, chosen: NDArray[np.int64]) -> ScoredImages:
        """The images ``chosen`` (M,), in that order."""
        return ScoredImages(self.scores[chosen], self.labels[chosen], [self.groups[i] for i in chosen])


def same_labels(wanted: Floats, pool: Floats, *, seed: int = 0) -> NDArray[np.int64]:
    """For each row of ``wanted`` (N, F) the number of a row of ``pool`` (M, F) with the same positives, -1 without one.

    No row is taken twice while there are others; a random one otherwise. It makes the ceiling: real images with the
    same findings in the same numbers, on which F1 depends.
    """
    if wanted.ndim != 2 or pool.ndim != 2 or wanted.shape[1] != pool.shape[1]:
        raise ValueError(f"labels must be (N, F) and (M, F), got {wanted.shape} and {pool.shape}")
    rng = np.random.default_rng(seed)
    options: dict[bytes, list[int]] = defaultdict(list)
    for number in rng.permutation(len(pool)):
        options[(pool[number] == 1).tobytes()].append(int(number))
    turn: dict[bytes, int] = defaultdict(int)
    chosen = np.full(len(wanted), -1, dtype=np.int64)
    for row, labels in enumerate(wanted):
        key = (labels == 1).tobytes()
        if options[key]:
            chosen[row] = options[key][turn[key] % len(options[key])]
            turn[key] += 1
    return chosen


def ceiling(synthetic: ScoredImages, real: ScoredImages, *, seed: int = 0) -> tuple[ScoredImages, list[str]]:
    """Real images with the synthetic ones' labels, one each where there is one, and warnings of what was not found."""
    chosen = same_labels(synthetic.labels, real.labels, seed=seed)
    found = chosen[chosen >= 0]
    warnings = []
    if len(found) < len(chosen):
        warnings.append(f"ceiling: {len(chosen) - len(found)} of {len(chosen)} images have no real one of their labels")
    if len(np.unique(found)) < len(found):
        warnings.append(f"ceiling: {len(found) - len(np.unique(found))} real images are used more than once")
    return real.rows(found), warnings


def floor_of(values: Sequence[float]) -> dict[str, Any]:
    return {
        "value": float(np.mean(values)) if len(values) else float("nan"),
        "ci": percentile_interval(values),
        "ci_method": f"95 % range over {len(values)} permutations of the prompts",
    }


def mean_value(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> float:
    values = [row["value"] for row in rows if row["finding"] in names]
    return float(np.mean(values)) if values else float("nan")


def mean_draws(draws: Sequence[Floats]) -> Floats:
    """Mean over findings of each resample; a resample without a case of a finding is the mean of the others."""
    if not draws:
        return np.array([np.nan])
    stacked = np.stack(draws)
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0))


def too_few(n: int, not_in_macro: Sequence[str], leave_out: Sequence[str]) -> list[str]:
    warnings = [f"n = {n}: use at least {FEW} images"] if n < FEW else []
    few = [finding for finding in not_in_macro if finding not in leave_out]
    return [*warnings, f"not in the macro, too few cases: {', '.join(few)}"] if few else warnings


def scored_result(
    value: float, ci: tuple[float, float], n: int, resamples: int, warnings: list[str], details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "value": value,
        "ci": ci,
        "ci_method": f"95 % percentile, bootstrap by patient or prompt, {resamples} resamples",
        "n": n,
        "warnings": warnings,
        "details": details,
    }


SHOWN = "shows what is asked"
"""Column of single images by which the best and the worst are chosen."""


def judged(inputs: EvaluationInputs, extractor: Extractor) -> tuple[ScoredImages, ScoredImages, list[str]]:
    """Synthetic and real images as the classifier sees them, on the findings that it and the real labels share."""
    findings = [name for name in extractor.findings if name in inputs.real.findings]
    mine, theirs = labels_of(inputs, findings)
    columns = [extractor.findings.index(name) for name in findings]

    def scores(name: str) -> Floats:
        return inputs.of(name, extractor, "probabilities")[:, columns].astype(np.float64)

    return (
        ScoredImages(scores("synthetic"), mine, inputs.bootstrap_groups),
        ScoredImages(scores("real"), theirs, inputs.real.patients),
        findings,
    )


def with_bounds(found: dict[str, Any], ceiling: str, **more: Any) -> Result:
    """An adherence result with its ceiling (said to be of ``ceiling``) and floor, also by finding."""
    details = found["details"]
    real = {row["finding"]: row for row in details.get("real", {}).get("findings", [])}
    for row in details["findings"]:
        if other := real.get(row["finding"]):
            row["ceiling"] = {key: other[key] for key in ("value", "ci", "positives")}
    if common := details.get("on_common_findings"):
        more["ceiling"] = {**common["real"], "what": f"{ceiling}, {len(common['findings'])} findings"}
    return Result.of(found, floor={**details["shuffled"], "what": "prompts shuffled"}, **more)


def shown(mine: ScoredImages, real: ScoredImages) -> Floats:
    """How well each image shows the findings asked of it, (N,) in [0, 1]; NaN where none was asked or can be judged.

    The mean over its findings of the share of real images without the finding that score lower: what the image adds to
    the AUROC of generated cases against real controls.
    """
    total, count = np.zeros(len(mine.scores)), np.zeros(len(mine.scores))
    for column in range(mine.scores.shape[1]):
        controls = np.sort(real.scores[real.labels[:, column] == 0, column])
        rows = np.flatnonzero(mine.labels[:, column] == 1)
        if len(controls) and len(rows):
            total[rows] += np.searchsorted(controls, mine.scores[rows, column]) / len(controls)
            count[rows] += 1
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
