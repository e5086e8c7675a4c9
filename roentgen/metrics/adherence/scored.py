"""Does an image show what its prompt says? A classifier's answer, beside real images and shuffled prompts.

Labels come from the prompt, scores from a classifier. Neither means much alone, so every figure has a ceiling (the same
classifier on real images with the same labels) and a floor (prompts shuffled among the images). A generated image may
well score above a real one: findings drawn more plainly than life. That is a difference to report, not a success.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.metrics.adherence import laterality
from roentgen.metrics.adherence.auroc import MIN_CASES, MacroAuroc, macro_auroc
from roentgen.metrics.adherence.calibration import Threshold, weighted_f1
from roentgen.metrics.bootstrap import RESAMPLES, cluster_weights, percentile_interval

Floats = NDArray[np.float64]
NAN_INTERVAL = (float("nan"), float("nan"))
LEAVE_OUT = ("No Finding",)
SHUFFLES = 20
OVERCALL = 2
FEW = 200
"""Fewer images than this get a warning."""


@dataclass(frozen=True)
class Judged:
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

    def rows(self, chosen: NDArray[np.int64]) -> Judged:
        """The images ``chosen`` (M,), in that order."""
        return Judged(self.scores[chosen], self.labels[chosen], [self.groups[i] for i in chosen])


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


def ceiling(synthetic: Judged, real: Judged, *, seed: int = 0) -> tuple[Judged, list[str]]:
    """Real images with the synthetic ones' labels, one each where there is one, and warnings of what was not found."""
    chosen = same_labels(synthetic.labels, real.labels, seed=seed)
    found = chosen[chosen >= 0]
    warnings = []
    if len(found) < len(chosen):
        warnings.append(f"ceiling: {len(chosen) - len(found)} of {len(chosen)} images have no real one of their labels")
    if len(np.unique(found)) < len(found):
        warnings.append(f"ceiling: {len(found) - len(np.unique(found))} real images are used more than once")
    return real.rows(found), warnings


def adherence_auroc(
    synthetic: Judged,
    findings: Sequence[str],
    *,
    real: Judged | None = None,
    leave_out: Sequence[str] = LEAVE_OUT,
    min_cases: int = MIN_CASES,
    resamples: int = RESAMPLES,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Macro AUROC of the classifier on ``synthetic`` by the labels of the prompts, and by finding.

    Args:
        synthetic: generated images, labels from the prompts.
        findings: names of the columns.
        real: real images with their own labels (all of them, or those of ``ceiling``).
        leave_out: findings listed but not in the macro; "No Finding" is the complement of the others.
        min_cases: positives and negatives that a finding needs for the macro.
        resamples: of the bootstrap by group.
        shuffles: permutations of the prompts for the floor.
        seed: of bootstrap and floor.

    Returns:
        The metric's dictionary. ``details``: ``findings`` and ``macro_findings``; ``real``, the same of real images;
        ``on_common_findings``, both over the findings that both macros have and their difference (independent
        bootstraps); ``shuffled``, mean and range over the permutations.
    """
    weights = cluster_weights(synthetic.groups, resamples, seed)
    chosen = macro_auroc(
        synthetic.scores, synthetic.labels, findings, weights, leave_out=leave_out, min_cases=min_cases
    )
    warnings = _too_few(len(synthetic.scores), [row.finding for row in chosen.findings if not row.in_macro], leave_out)
    details: dict[str, Any] = {
        "macro_findings": chosen.names,
        "findings": [dataclasses.asdict(row) for row in chosen.findings],
        "shuffled": _shuffled_auroc(synthetic, findings, chosen, shuffles, seed),
    }
    if real is not None:
        draws = cluster_weights(real.groups, resamples, seed + 1)
        whole = macro_auroc(real.scores, real.labels, findings, draws, leave_out=leave_out, min_cases=min_cases)
        common = [name for name in chosen.names if name in whole.names]
        beyond = [name for name in findings if name not in common]
        details["real"] = _macro_entry(whole)
        if common:
            ours = macro_auroc(synthetic.scores, synthetic.labels, findings, weights, leave_out=beyond, min_cases=1)
            theirs = macro_auroc(real.scores, real.labels, findings, draws, leave_out=beyond, min_cases=1)
            details["on_common_findings"] = {
                "findings": common,
                "synthetic": {"value": ours.value, "ci": ours.ci},
                "real": {"value": theirs.value, "ci": theirs.ci},
                "difference": {
                    "value": ours.value - theirs.value,
                    "ci": percentile_interval(ours.draws - theirs.draws),
                },
            }
        else:
            warnings.append("no finding has enough cases in both the synthetic and the real set")
    return _result(chosen.value, chosen.ci, len(synthetic.scores), resamples, warnings, details)


def _macro_entry(macro: MacroAuroc) -> dict[str, Any]:
    return {
        "value": macro.value,
        "ci": macro.ci,
        "macro_findings": macro.names,
        "findings": [dataclasses.asdict(row) for row in macro.findings],
    }


def _shuffled_auroc(
    judged: Judged, findings: Sequence[str], macro: MacroAuroc, shuffles: int, seed: int
) -> dict[str, Any]:
    """Macro AUROC with the rows of labels permuted among the images: what a generator that ignores prompts gets."""
    beyond = [name for name in findings if name not in macro.names]
    rng = np.random.default_rng(seed)
    one = np.ones((1, len(judged.scores)))
    values = []
    for _ in range(shuffles if macro.names else 0):
        moved = judged.labels[rng.permutation(len(judged.labels))]
        values.append(macro_auroc(judged.scores, moved, findings, one, leave_out=beyond, min_cases=1).value)
    return _floor(values)


def _floor(values: Sequence[float]) -> dict[str, Any]:
    return {
        "value": float(np.mean(values)) if len(values) else float("nan"),
        "ci": percentile_interval(values),
        "ci_method": f"95 % range over {len(values)} permutations of the prompts",
    }


def adherence_f1(
    synthetic: Judged,
    findings: Sequence[str],
    thresholds: Sequence[Threshold],
    *,
    real: Judged | None = None,
    leave_out: Sequence[str] = LEAVE_OUT,
    min_cases: int = MIN_CASES,
    resamples: int = RESAMPLES,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Macro F1 at thresholds that were calibrated on real validation images (``calibration.calibrate``).

    ``real`` should be ``ceiling(...)[0]``: F1 depends on how common a finding is, so the real set must have the same
    findings in the same numbers. The floor is not 0.5 here either: it is measured. Other arguments and the result are
    those of ``adherence_auroc``; each finding also has the share that was called and the share that was asked for.
    """
    if [row.finding for row in thresholds] != list(findings):
        raise ValueError("thresholds must be those of the findings, in their order")
    weights = cluster_weights(synthetic.groups, resamples, seed)
    cut = np.array([row.threshold for row in thresholds])
    rows, draws = _f1_rows(synthetic, findings, cut, weights, leave_out, min_cases)
    names = [row["finding"] for row in rows if row["in_macro"]]
    uncalibrated = [row.finding for row in thresholds if not np.isfinite(row.threshold)]
    warnings = _too_few(len(synthetic.scores), [row["finding"] for row in rows if not row["in_macro"]], leave_out)
    if uncalibrated:
        warnings.append(f"no threshold, too few validation images: {', '.join(uncalibrated)}")
    often = [row.finding for row in thresholds if row.called > OVERCALL * row.prevalence]
    if often:
        warnings.append(
            f"thresholds that call over {OVERCALL} times too often on validation images: {', '.join(often)}"
        )
    rng = np.random.default_rng(seed)
    one = np.ones((1, len(synthetic.scores)))
    floors = []
    for _ in range(shuffles if names else 0):
        order = rng.permutation(len(synthetic.labels))
        moved = Judged(synthetic.scores, synthetic.labels[order], synthetic.groups)
        shuffled = _f1_rows(moved, findings, cut, one, leave_out, 1)[0]
        floors.append(float(np.mean([row["value"] for row in shuffled if row["finding"] in names])))
    details: dict[str, Any] = {
        "thresholds": [dataclasses.asdict(row) for row in thresholds],
        "macro_findings": names,
        "findings": rows,
        "shuffled": _floor(floors),
    }
    if real is not None:
        others, real_draws = _f1_rows(
            real, findings, cut, cluster_weights(real.groups, resamples, seed + 1), leave_out, min_cases
        )
        common = [row["finding"] for row in others if row["in_macro"] and row["finding"] in names]
        mine, theirs = (
            _mean_draws([sample for row, sample in zip(part, samples, strict=True) if row["finding"] in common])
            for part, samples in ((rows, draws), (others, real_draws))
        )
        values = {name: _mean_value(part, common) for name, part in (("synthetic", rows), ("real", others))}
        details["real"] = {"findings": others}
        details["on_common_findings"] = {
            "findings": common,
            "synthetic": {"value": values["synthetic"], "ci": percentile_interval(mine)},
            "real": {"value": values["real"], "ci": percentile_interval(theirs)},
            "difference": {"value": values["synthetic"] - values["real"], "ci": percentile_interval(mine - theirs)},
        }
    macro_draws = _mean_draws([sample for row, sample in zip(rows, draws, strict=True) if row["in_macro"]])
    value = _mean_value(rows, names)
    return _result(value, percentile_interval(macro_draws), len(synthetic.scores), resamples, warnings, details)


def _f1_rows(
    judged: Judged, findings: Sequence[str], cut: Floats, weights: Floats, leave_out: Sequence[str], min_cases: int
) -> tuple[list[dict[str, Any]], list[Floats]]:
    rows, draws = [], []
    for column, finding in enumerate(findings):
        known = np.isfinite(judged.labels[:, column])
        truth = judged.labels[known, column]
        called = judged.scores[known, column] >= cut[column]
        positives = int(truth.sum())
        usable = bool(np.isfinite(cut[column]) and len(truth))
        nothing = np.full(len(weights), np.nan)
        sample = weighted_f1(called, truth, weights[:, known]) if usable else nothing
        value = float(weighted_f1(called, truth, np.ones((1, len(truth))))[0]) if usable else float("nan")
        rows.append(
            {
                "finding": finding,
                "value": value,
                "ci": percentile_interval(sample),
                "positives": positives,
                "negatives": len(truth) - positives,
                "called": float(called.mean()) if usable else float("nan"),
                "asked": positives / len(truth) if len(truth) else float("nan"),
                "in_macro": usable and finding not in leave_out and min(positives, len(truth) - positives) >= min_cases,
            }
        )
        draws.append(sample)
    return rows, draws


def _mean_value(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> float:
    values = [row["value"] for row in rows if row["finding"] in names]
    return float(np.mean(values)) if values else float("nan")


def _mean_draws(draws: Sequence[Floats]) -> Floats:
    """Mean over findings of each resample; a resample without a case of a finding is the mean of the others."""
    if not draws:
        return np.array([np.nan])
    stacked = np.stack(draws)
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0))


def side_adherence(
    leftness: Floats,
    sides: Sequence[Sequence[str]] | NDArray[np.str_],
    findings: Sequence[str],
    groups: Sequence[object],
    *,
    real: tuple[Floats, Sequence[Sequence[str]] | NDArray[np.str_]] | None = None,
    real_groups: Sequence[object] | None = None,
) -> dict[str, Any]:
    """Share of findings that are on the side their prompt asks for; 0.5 by chance.

    Args:
        leftness: (N, F) left less right for the classifier, above 0 for the patient's left.
        sides: (N, F) "left", "right", or anything else ("bilateral", "") where there is nothing to tell apart.
        findings: names of the columns.
        groups: (N,) prompt or patient, for the intervals (``laterality.clustered_wilson``; a bootstrap would give no
            width where all are right).
        real, real_groups: leftness and sides of real images, the ceiling, and their patients.
    """
    table = _sides(leftness, sides, findings)
    entries = _side_rows(leftness, table, findings, groups)
    told = np.where(table == "left", leftness > 0, leftness < 0)
    asked = np.isin(table, ("left", "right"))
    right, n = (told & asked).sum(axis=1).astype(np.float64), asked.sum(axis=1).astype(np.float64)
    details: dict[str, Any] = {"chance": 0.5, "findings": entries}
    if real is not None:
        others = range(len(real[0])) if real_groups is None else real_groups
        details["real"] = _side_rows(real[0], _sides(real[0], real[1], findings), findings, others)
    return {
        "value": float(right.sum() / n.sum()) if n.sum() else float("nan"),
        "ci": laterality.clustered_wilson(right, n, groups),
        "ci_method": "95 % Wilson at the effective number of independent findings, by patient or prompt",
        "n": int(n.sum()),
        "warnings": [] if n.sum() >= 50 else [f"{int(n.sum())} findings with a side: use at least 50"],
        "details": details,
    }


def _sides(leftness: Floats, sides: Any, findings: Sequence[str]) -> NDArray[np.str_]:
    table = np.asarray(sides, dtype=np.str_)
    if leftness.ndim != 2 or table.shape != leftness.shape or leftness.shape[1] != len(findings):
        raise ValueError(f"shapes differ: {leftness.shape}, {table.shape}, {len(findings)} findings")
    return table


def _side_rows(
    leftness: Floats, table: NDArray[np.str_], findings: Sequence[str], groups: Sequence[object]
) -> list[dict[str, Any]]:
    entries = []
    for column, finding in enumerate(findings):
        rows = np.isin(table[:, column], ("left", "right"))
        if rows.any():
            accuracy = laterality.side_accuracy(
                leftness[rows, column],
                table[rows, column].tolist(),
                groups=[group for group, chosen in zip(groups, rows, strict=True) if chosen],
            )
            entries.append({"finding": finding, **dataclasses.asdict(accuracy)})
    return entries


def _too_few(n: int, not_in_macro: Sequence[str], leave_out: Sequence[str]) -> list[str]:
    warnings = [f"n = {n}: use at least {FEW} images"] if n < FEW else []
    few = [finding for finding in not_in_macro if finding not in leave_out]
    return [*warnings, f"not in the macro, too few cases: {', '.join(few)}"] if few else warnings


def _result(
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
