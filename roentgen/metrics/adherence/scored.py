"""Does an image show what its prompt says? A classifier's answer, beside real images and shuffled prompts.

Labels come from the prompt, scores from a classifier. Neither means much alone, so every figure has a ceiling (the same
classifier on real images with the same labels) and a floor (prompts shuffled among the images). A generated image may
well score above a real one: findings drawn more plainly than life. That is a difference to report, not a success.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.extractor import Extractor
from roentgen.metrics.measure import EvaluationInputs, Result
from roentgen.metrics.reading import labels_of
from roentgen.metrics.statistics import USUAL, Bootstrap, Drawn, Floats, known_mean, percentile_interval

LEAVE_OUT = ("No Finding",)
"""The complement of the others."""
MIN_CASES = 10
"""A finding with fewer positives or negatives is listed but left out of the macro."""
SHUFFLES = 20
FEW = 200
"""Fewer images than this get a warning."""
Figure = Callable[[int, Floats, Floats, Floats], Floats]
"""Column, its known scores (n,), labels (n,) and B sets of weights (B, n) -> the figure (B,) of that finding."""


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


def alike(synthetic: ScoredImages, real: ScoredImages, *, seed: int = 0) -> tuple[ScoredImages, list[str]]:
    """Real images with the synthetic ones' labels, one each where there is one, and warnings of what was not found."""
    chosen = same_labels(synthetic.labels, real.labels, seed=seed)
    found = chosen[chosen >= 0]
    warnings = []
    if len(found) < len(chosen):
        warnings.append(f"ceiling: {len(chosen) - len(found)} of {len(chosen)} images have no real one of their labels")
    if len(np.unique(found)) < len(found):
        warnings.append(f"ceiling: {len(found) - len(np.unique(found))} real images are used more than once")
    return real.rows(found), warnings


@dataclass(frozen=True, eq=False)
class OfFinding(Drawn):
    """A figure of one finding: which images (N,) have its label, and how many of them with and without it."""

    finding: str
    known: NDArray[np.bool_]
    positives: int
    negatives: int

    @property
    def cases(self) -> int:
        """How many images tell it apart, at most: those of the rarer class."""
        return min(self.positives, self.negatives)


def by_finding(
    figure: Figure, scores: Floats, labels: Floats, findings: Sequence[str], weights: Floats
) -> list[OfFinding]:
    """``figure`` of each column of ``labels`` (N, F) and ``scores`` (N, F), or several of them (..., N, F)."""
    if scores.shape[-2:] != labels.shape or scores.shape[-1] != len(findings):
        raise ValueError(f"shapes differ: {scores.shape}, {labels.shape}, {len(findings)} findings")
    found = []
    for column, finding in enumerate(findings):
        known = np.isfinite(labels[:, column])
        score, label = scores[..., known, column].astype(np.float64), labels[known, column]
        positives = int(label.sum())
        value = float(figure(column, score, label, np.ones((1, len(label))))[0])
        draws = figure(column, score, label, weights[:, known])
        found.append(OfFinding(value, draws, finding, known, positives, len(label) - positives))
    return found


@dataclass(frozen=True, eq=False)
class Macro(Drawn):
    """Mean figure over the findings that have enough cases.

    findings: of each its name as ``finding``, value and ci (NaN without positives or without negatives), how many
    positives and negatives, unknown labels not counted, and whether it is ``in_macro``.
    """

    findings: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        return [row["finding"] for row in self.findings if row["in_macro"]]


def macro(
    figure: Figure,
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    weights: Floats,
    *,
    leave_out: Sequence[str] = (),
    min_cases: int = MIN_CASES,
) -> Macro:
    """``figure`` of each finding, and macro, of ``scores`` (N, F) for ``labels`` (N, F) in {0, 1, NaN = unknown}.

    ``weights`` (B, N) are the bootstrap's; the same weights make two results paired. ``leave_out``: findings listed
    but kept out of the macro.
    """
    each = by_finding(figure, scores, labels, findings, weights)
    chosen = [
        one for one in each if one.finding not in leave_out and one.cases >= min_cases and math.isfinite(one.value)
    ]
    rows = [
        {
            "finding": one.finding, **one.entry, "positives": one.positives, "negatives": one.negatives,
            "in_macro": one in chosen,
        }
        for one in each
    ]  # fmt: skip
    return Macro(*mean_of(chosen, len(weights)), rows)


def mean_of(drawn: Sequence[Drawn], resamples: int) -> tuple[float, Floats]:
    """Mean over findings and its draws (B,), NaN of none; a resample without a case of a rare one is the mean over the
    others."""
    if not drawn:
        return math.nan, np.full(resamples, np.nan)
    return float(np.mean([one.value for one in drawn])), known_mean(np.stack([one.draws for one in drawn]))


def adherence(
    figure: Figure,
    synthetic: ScoredImages,
    findings: Sequence[str],
    *,
    real: ScoredImages | None = None,
    ceiling: str = "real images",
    bootstrap: Bootstrap = USUAL,
) -> Result:
    """Macro of ``figure`` on ``synthetic`` by the labels of the prompts, and by finding.

    Args:
        figure: such as AUROC.
        synthetic: generated images, labels from the prompts.
        findings: names of the columns.
        real: real images with their own labels (all of them, or those of ``alike``).
        ceiling: words for them.
        bootstrap: by group; its seed is the floor's too.

    Returns:
        The floor is the mean and range over ``SHUFFLES`` permutations of the prompts: what a generator that ignores
        prompts gets. ``details``: ``findings``, each with its ceiling, and ``macro_findings``; ``real``, the same of
        real images; ``on_common_findings``, both over the findings that both macros have, which is the ceiling, and
        their difference (independent bootstraps).
    """
    n = len(synthetic.scores)
    weights = bootstrap.weights(synthetic.groups)

    def of(images: ScoredImages, draws: Floats, among: Sequence[str] | None = None) -> Macro:
        """The macro over the findings that have enough cases, or over ``among``."""
        beyond = LEAVE_OUT if among is None else [name for name in findings if name not in among]
        least = MIN_CASES if among is None else 1
        return macro(figure, images.scores, images.labels, findings, draws, leave_out=beyond, min_cases=least)

    mine = of(synthetic, weights)
    rng, one = np.random.default_rng(bootstrap.seed), np.ones((1, n))
    moved = [synthetic.labels[rng.permutation(n)] for _ in range(SHUFFLES if mine.names else 0)]
    floors = [of(ScoredImages(synthetic.scores, labels, synthetic.groups), one, mine.names).value for labels in moved]
    notes = [f"n = {n}: use at least {FEW} images"] if n < FEW else []
    if few := [name for name in findings if name not in mine.names and name not in LEAVE_OUT]:
        notes.append(f"not in the macro, too few cases: {', '.join(few)}")
    shuffled = {
        "value": float(np.mean(floors)) if floors else math.nan,
        "ci": percentile_interval(floors),
        "ci_method": f"95 % range over {len(floors)} permutations of the prompts",
    }
    details: dict[str, Any] = {"macro_findings": mine.names, "findings": mine.findings, "shuffled": shuffled}
    top = None
    if real is not None:
        draws = bootstrap.apart().weights(real.groups)
        whole = of(real, draws)
        details["real"] = {**whole.entry, "macro_findings": whole.names, "findings": whole.findings}
        for row, other in zip(mine.findings, whole.findings, strict=True):
            row["ceiling"] = {key: other[key] for key in ("value", "ci", "positives")}
        if common := [name for name in mine.names if name in whole.names]:
            ours, theirs = of(synthetic, weights, common), of(real, draws, common)
            details["on_common_findings"] = {
                "findings": common, "synthetic": ours.entry, "real": theirs.entry,
                "difference": ours.less(theirs).entry,
            }  # fmt: skip
            top = {**theirs.entry, "what": f"{ceiling}, {len(common)} findings"}
        else:
            notes.append("no finding has enough cases in both the synthetic and the real set")
    return Result(
        **mine.entry,
        n=n,
        ci_method=bootstrap.said(),
        floor=shuffled | {"what": "prompts shuffled"},
        ceiling=top,
        notes=notes,
        details=details,
    )


SHOWN = "shows what is asked"
"""Column of single images by which the best and the worst are chosen."""


def judged(inputs: EvaluationInputs, extractor: Extractor) -> tuple[ScoredImages, ScoredImages, list[str]]:
    """Synthetic and real images as the classifier sees them, on the findings that it and the real labels share."""
    findings = [name for name in extractor.findings if name in inputs.real.findings]
    mine, theirs = labels_of(inputs, findings)
    return (
        ScoredImages(inputs.scores("synthetic", extractor, findings), mine, inputs.bootstrap_groups),
        ScoredImages(inputs.scores("real", extractor, findings), theirs, inputs.real.patients),
        findings,
    )


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
