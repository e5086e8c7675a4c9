"""Does synthetic data improve a classifier? Gains over real images alone, per finding and macro, and group gaps.

Runs are paired: all arms of a seed share the real subset, the initial weights and the test images. A gain is the mean
over seeds of the difference in AUROC to the baseline at the same real n.

Intervals and p-values cover test patients and training seeds by one bootstrap over both (Owen, "The pigeonhole
bootstrap", 2007): a resample draws patients with replacement and, independently, seeds with replacement, the same draw
for all arms, and averages the drawn seeds' AUROC on the drawn patients. Of S seeds only S - 1 are drawn: the variance
of a bootstrap mean over S of S seeds is too small by (S - 1) / S, a third with three seeds; with S - 1 it is that of
the mean, s^2 / S, exactly (Rao & Wu 1988). An interval is the value plus and minus 1.96 standard deviations of the
draws, p that of the normal distribution, so that p is not bounded by the number of resamples.

Where patients make most of the variance the interval holds what it promises; where seeds do, three seeds cannot tell
their own spread and it is too narrow. Both standard deviations stand beside each interval (``standard_error``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.metrics.adherence.auroc import weighted_auroc
from roentgen.metrics.adherence.scored import MIN_CASES, by_finding
from roentgen.metrics.statistics import LEVEL, Drawn, Floats, correct, known_mean, t_quantile

NO_FINDING = "No Finding"
AGE_BANDS = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}  # years, the upper bound excluded
MANY = 500  # cases of the rarer class, from which on sorting is faster than all pairs
Z = t_quantile((1 + LEVEL) / 2, math.inf)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The test images and their bootstrap: labels (N, F) 1, 0, NaN; weights (B, N); groups: a grouping's name -> the
    group of each image (N,), "" where unknown."""

    labels: Floats
    findings: tuple[str, ...]
    weights: Floats
    groups: Mapping[str, NDArray[np.str_]]

    @property
    def scored(self) -> list[int]:
        """Columns that are in the macro: enough cases, and a finding."""
        return enough_cases(self.labels, self.findings)


@dataclass(frozen=True, eq=False)
class Scores:
    """AUROC of one arm at one subset over the scored findings.

    seeds (S, F), seed_draws (S, F, B): each seed's own. ensemble (F,), ensemble_draws (F, B): of the mean over seeds of
    the probabilities. groups: grouping -> group -> the ensemble's macro.
    """

    seeds: Floats
    seed_draws: Floats
    ensemble: Floats
    ensemble_draws: Floats
    groups: Mapping[str, Mapping[str, Drawn]]


def enough_cases(labels: Floats, findings: Sequence[str]) -> list[int]:
    """Columns with at least ``MIN_CASES`` positives and negatives, "No Finding" left out."""
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    least = np.minimum(positives, negatives)
    return [i for i, finding in enumerate(findings) if finding != NO_FINDING and least[i] >= MIN_CASES]


def groups_of(table: pd.DataFrame) -> dict[str, NDArray[np.str_]]:
    """Sex, age band and view of a manifest's rows, "" where unknown."""
    age = table["age"].to_numpy(np.float64, na_value=np.nan)
    band = np.full(len(table), "", dtype=object)
    for name, (low, high) in AGE_BANDS.items():
        band[(age >= low) & (age < high)] = name
    return {
        "sex": table["sex"].to_numpy(dtype=str),
        "age": band.astype(str),
        "view": table["view"].to_numpy(dtype=str),
    }


def pairwise_auroc(scores: Floats, labels: Floats, weights: Floats) -> Floats:
    """``weighted_auroc``, all pairs at once as one matrix product: several times as fast where a finding is rare."""
    positive = labels == 1
    if min(positive.sum(), (~positive).sum()) > MANY:
        return weighted_auroc(scores, labels, weights)
    above, below = scores[positive][:, None], scores[~positive][None]
    right = (above > below) + 0.5 * (above == below)
    of_positives, of_negatives = weights[:, positive], weights[:, ~positive]
    total = ((of_negatives @ right.T) * of_positives).sum(axis=1)
    pairs = of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    return np.divide(total, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def aurocs(scores: Floats, labels: Floats, weights: Floats, columns: Sequence[int]) -> tuple[Floats, Floats]:
    """AUROC (F,) and its draws (F, B) of ``columns`` of scores and labels (N, ...); unknown labels are not counted."""
    chosen = list(columns)
    names = [str(column) for column in chosen]
    found = by_finding(lambda _, *of: pairwise_auroc(*of), scores[:, chosen], labels[:, chosen], names, weights)
    return np.array([one.value for one in found]), np.stack([one.draws for one in found])


def macro(values: Floats) -> Floats:
    """Mean over findings, the second axis from the end for draws (..., F, B); a resample without a case of a rare
    finding is the mean over the others."""
    return known_mean(np.moveaxis(values, -2, 0))


def score(probabilities: Floats, sample: HeldOut) -> Scores:
    """AUROCs of one arm at one subset; ``probabilities`` (S, N, F) of its seeds on the test images."""
    columns = sample.scored
    each = [aurocs(one, sample.labels, sample.weights, columns) for one in probabilities]
    together = probabilities.mean(axis=0)
    ensemble, draws = aurocs(together, sample.labels, sample.weights, columns)
    return Scores(
        seeds=np.stack([values for values, _ in each]),
        seed_draws=np.stack([seed_draws for _, seed_draws in each]),
        ensemble=ensemble,
        ensemble_draws=draws,
        groups={name: group_macros(together, sample, name) for name in sample.groups},
    )


def group_findings(sample: HeldOut, grouping: str) -> list[int]:
    """Columns with enough cases in every group, so that the groups' macros are over the same findings."""
    names = sample.groups[grouping]
    found = sample.scored
    for name in np.unique(names[names != ""]):
        here = enough_cases(sample.labels[names == name], sample.findings)
        found = [column for column in found if column in here]
    return found


def group_macros(probabilities: Floats, sample: HeldOut, grouping: str) -> dict[str, Drawn]:
    """Macro AUROC in each group of ``grouping``; {} where fewer than two can be compared."""
    names, columns = sample.groups[grouping], group_findings(sample, grouping)
    groups = np.unique(names[names != ""])
    if len(groups) < 2 or not columns:
        return {}
    found = {}
    for name in groups:
        inside = names == name
        values, draws = aurocs(probabilities[inside], sample.labels[inside], sample.weights[:, inside], columns)
        found[str(name)] = Drawn(float(values.mean()), macro(draws))
    return found


def gap(groups: Mapping[str, Drawn]) -> Drawn:
    """Largest minus smallest macro AUROC among the groups."""
    values, draws = [one.value for one in groups.values()], np.stack([one.draws for one in groups.values()])
    return Drawn(max(values) - min(values), draws.max(axis=0) - draws.min(axis=0))


# ------------------------------------------------------------------------------------------------------- inference


def seed_weights(seeds: int, resamples: int) -> Floats:
    """(B, S): share of each of S seeds in each resample, S - 1 being drawn; (B, 1) of ones for one seed."""
    if seeds == 1:
        return np.ones((resamples, 1))
    counts = np.random.default_rng([0, 3]).multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
    return counts / (seeds - 1)


def from_spread(difference: Drawn) -> dict[str, Any]:
    """Value of a difference, its 95 % interval and two-sided p that it is 0, by the spread of its draws.

    Draws without a case of any finding are left out.
    """
    value, known = difference.value, difference.draws[np.isfinite(difference.draws)]
    if not math.isfinite(value) or len(known) < 2:
        return {"value": value, "ci": (math.nan, math.nan), "p": math.nan}
    error = float(known.std(ddof=1))
    half = Z * error
    # No difference at all, as between a set and itself, has no error to be measured by.
    p = 1.0 if value == 0 else math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 0.0
    return {"value": value, "ci": (value - half, value + half), "p": p}


def over_both(values: Floats, draws: Floats) -> dict[str, Any]:
    """Mean over seeds of ``values`` (S,), its interval over patients and seeds, and p that it is 0 (two-sided).

    ``draws`` (S, B): each seed's figure on B resamples of the patients, the same resamples for all seeds. sd: of
    ``values``. With one seed the interval is over patients only.
    """
    seeds, resamples = draws.shape
    found = from_spread(Drawn(float(values.mean()), (seed_weights(seeds, resamples).T * draws).sum(axis=0)))
    patients = draws.mean(axis=0)
    sd = float(values.std(ddof=1)) if seeds > 1 else math.nan
    alone = {"patients": float(patients[np.isfinite(patients)].std(ddof=1)), "seeds": sd / math.sqrt(seeds)}
    return {**found, "seeds": values.tolist(), "sd": sd, "standard_error": alone}


@dataclass(frozen=True, eq=False)
class Size:
    """All arms at one subset: name -> scores. ``baseline`` is one of them."""

    arms: Mapping[str, Scores]
    baseline: str

    def auroc(self, arm: str, columns: Sequence[int]) -> dict[str, Any]:
        """Macro AUROC over ``columns`` of the scored findings: mean of seeds, and of the ensemble."""
        scores = self.arms[arm]
        found = over_both(_macros(scores, columns), _draws(scores, columns))
        del found["p"]  # that an AUROC is not 0 says nothing
        return {**found, "ensemble": _ensemble(scores, columns).entry}

    def gain(self, arm: str, columns: Sequence[int]) -> dict[str, Any]:
        """Macro AUROC over ``columns`` of ``arm`` minus the baseline's, paired by seed and by patient."""
        scores, base = self.arms[arm], self.arms[self.baseline]
        values = _macros(scores, columns) - _macros(base, columns)
        draws = _draws(scores, columns) - _draws(base, columns)
        together = _ensemble(scores, columns).less(_ensemble(base, columns))
        return {**over_both(values, draws), "ensemble": from_spread(together)}


def _ensemble(scores: Scores, columns: Sequence[int]) -> Drawn:
    """Macro AUROC of the seeds' mean probabilities over ``columns`` of the scored findings."""
    chosen = list(columns)
    return Drawn(float(scores.ensemble[chosen].mean()), macro(scores.ensemble_draws[chosen]))


def _draws(scores: Scores, columns: Sequence[int]) -> Floats:
    """(S, B): macro AUROC of each seed over ``columns`` of the scored findings on each resample of the patients."""
    return macro(scores.seed_draws[:, list(columns)])


def _macros(scores: Scores, columns: Sequence[int]) -> Floats:
    """(S,): macro AUROC of each seed over ``columns`` of the scored findings."""
    return scores.seeds[:, list(columns)].mean(axis=1)


def gap_entries(arm: Scores, base: Scores) -> dict[str, Any]:
    """For each grouping: the groups' macro AUROC, the gap between them, and the gap minus the baseline's.

    All of the seeds' mean probabilities, with intervals over patients only.
    """
    found = {}
    for name, groups in arm.groups.items():
        if not groups:
            continue
        mine = gap(groups)
        found[name] = {
            "groups": {group: one.entry for group, one in groups.items()},
            "gap": mine.entry,
            "change": from_spread(mine.less(gap(base.groups[name]))),
        }
    return found


def analyse(
    predictions: Mapping[tuple[str, str], Floats], sample: HeldOut, *, baseline: str, rare: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """One entry for each arm and subset, in the order of ``predictions``: (arm, subset) -> (S, N, F) probabilities.

    Every subset needs ``baseline``, and all its arms the same seeds. ``rare``: columns with a macro of their own.
    p-values are corrected by Holm's rule over the findings of an entry, over the macro gains of all entries, and over
    the changes of gaps of all entries.
    """
    columns = sample.scored
    if not columns:
        raise ValueError(f"no finding has {MIN_CASES} positives and negatives")
    every = range(len(columns))
    scarce = [place for place, column in enumerate(columns) if column in rare]
    names = [sample.findings[column] for column in columns]
    arms: dict[str, dict[str, Scores]] = {}
    for (arm, subset), values in predictions.items():
        arms.setdefault(subset, {})[arm] = score(values, sample)
    sizes = {subset: Size(each, baseline) for subset, each in arms.items()}
    entries = []
    for arm, subset in predictions:
        size = sizes[subset]
        entry: dict[str, Any] = {"arm": arm, "subset": subset, "auroc": size.auroc(arm, every)}
        findings = {name: {"auroc": size.auroc(arm, [place])} for place, name in enumerate(names)}
        if scarce:
            entry["rare"] = size.auroc(arm, scarce)
        if arm != baseline:
            entry["gain"] = size.gain(arm, every)
            if scarce:
                entry["rare_gain"] = size.gain(arm, scarce)
            gains = correct({name: size.gain(arm, [place]) for place, name in enumerate(names)})
            for name in names:
                findings[name]["gain"] = gains[name]
        entry["findings"] = [{"finding": name, **findings[name]} for name in names]
        entry["groups"] = gap_entries(size.arms[arm], size.arms[baseline])
        entries.append(entry)
    tested = [entry for entry in entries if "gain" in entry]
    for key in ("gain", "rare_gain"):
        _correct_together([entry for entry in tested if key in entry], key)
    _correct_together([found for entry in tested for found in entry["groups"].values()], "change")
    return entries


def _correct_together(entries: Sequence[dict[str, Any]], key: str) -> None:
    corrected = correct({str(number): entry[key] for number, entry in enumerate(entries)})
    for number, entry in enumerate(entries):
        entry[key] = corrected[str(number)]
