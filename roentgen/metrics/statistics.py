"""Is one model better than another? Paired tests, correction over findings, several seeds, and careful words.

Everything is paired by prompt (the same prompts and seeds for both models) and clusters by patient: prompts made from
one patient's images are not independent. scipy is needed for t and for false discoveries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Groups = Sequence[object] | NDArray[np.generic]
RESAMPLES = 1000
LEVEL = 0.95
PERMUTATIONS = 10_000
EXACT = 12
"""Up to so many clusters all sign patterns are gone through (4096) and the p-value is exact."""
FEW = 20
"""Below so many clusters a bootstrap's intervals are known to be too narrow."""


def feature_rows(features: NDArray[np.floating], *, least: int = 1) -> Floats:
    """``features`` (N, D) in float64; ValueError unless they are a finite matrix of at least ``least`` rows."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"expected features (N, D) of at least {least} image(s), got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x


def numbered(groups: Groups) -> NDArray[np.int64]:
    """A number (N,) for each of ``groups``, from 0 in the order of their names."""
    return np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1].astype(np.int64)


def own_groups(groups: Groups | None, items: Sized) -> Groups:
    """``groups``, or where there are none a group of its own for each of ``items``."""
    return range(len(items)) if groups is None else groups


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: ``resamples`` times as many clusters, with replacement, as there are, by ``seed``."""

    resamples: int = RESAMPLES
    seed: int = 0

    def weights(self, groups: Groups | None, items: Sized = ()) -> Floats:
        """How often each item is drawn in each resample, (resamples, N).

        ``groups`` (N,) names the cluster of each item; None: each of ``items`` (N,) is its own.
        """
        index = numbered(own_groups(groups, items))
        if len(index) == 0 or self.resamples < 1:
            raise ValueError("a bootstrap needs at least one item and one resample")
        clusters = int(index.max()) + 1
        rng = np.random.default_rng(self.seed)
        counts = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=self.resamples)
        return counts[:, index].astype(np.float64)

    def mean(self, values: ArrayLike, groups: Groups | None = None) -> dict[str, Any]:
        """``estimate`` of ``values`` (N,) by ``groups``."""
        array = np.asarray(values, dtype=np.float64)
        return estimate(array, self.weights(groups, array))

    def apart(self, number: int = 1) -> Bootstrap:
        """Independent of this one, for another set; ``number`` tells several apart."""
        return replace(self, seed=self.seed + number)

    def said(self, by: str = "patient or prompt") -> str:
        """How it was made, as results tell it."""
        return f"95 % percentile, bootstrap by {by}, {self.resamples} resamples"


USUAL = Bootstrap()


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure of all items, and ``draws`` (B,) of it, one for each resample."""

    value: float
    draws: Floats

    @property
    def ci(self) -> tuple[float, float]:
        return percentile_interval(self.draws)

    @property
    def entry(self) -> dict[str, Any]:
        """Value and interval, as results have them."""
        return {"value": self.value, "ci": self.ci}

    def less(self, other: Drawn) -> Drawn:
        """The difference: paired where the same weights drew both, else of independent sets."""
        return Drawn(self.value - other.value, self.draws - other.draws)

    def moved(self) -> Drawn:
        """Draws whose mean is the value, for a figure that rises in a resample, which repeats items."""
        return Drawn(self.value, self.draws - self.draws[np.isfinite(self.draws)].mean() + self.value)

    def test(self) -> dict[str, Any]:
        """``from_draws`` of this difference."""
        return from_draws(self.value, self.draws)


def percentile_interval(draws: ArrayLike) -> tuple[float, float]:
    """Central 95 % of the finite ``draws``; (nan, nan) if there are none."""
    values = np.asarray(draws, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def known_mean(values: Floats) -> Floats:
    """Mean over the first axis of what is finite; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def resampled_means(values: Floats, weights: Floats) -> Floats:
    """Mean (B,) of the finite ``values`` (N,) in each resample of ``weights`` (B, N); NaN where none was drawn."""
    known = np.isfinite(values)
    drawn = weights[:, known]
    total = drawn.sum(axis=1)
    return np.divide(drawn @ values[known], total, out=np.full(len(total), np.nan), where=total > 0)


def estimate(values: Floats, weights: Floats) -> dict[str, Any]:
    """Mean of the finite ``values`` (N,) as value, its percentile interval under ``weights`` (B, N), and their n."""
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else math.nan
    return {"value": mean, "ci": percentile_interval(resampled_means(values, weights)), "n": len(known)}


def ratio_estimate(above: Floats, below: Floats, weights: Floats) -> dict[str, Any]:
    """Value sum(above) / sum(below), both (N,), and its percentile interval under ``weights`` (B, N); NaN over 0."""
    sums, total = weights @ below, float(below.sum())
    draws = np.divide(weights @ above, sums, out=np.full(len(sums), np.nan), where=sums > 0)
    return {"value": float(above.sum()) / total if total else math.nan, "ci": percentile_interval(draws)}


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); (nan, nan) for n = 0. An effective ``n`` need not be whole."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return float("nan"), float("nan")
    z = 1.959963984540054
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_wilson(right: ArrayLike, asked: ArrayLike, groups: Groups) -> tuple[float, float]:
    """95 % interval of sum(right) / sum(asked), both (N,), where what belongs to one of ``groups`` (N,) may be alike.

    Wilson's at the effective number of independent trials: the one at which a proportion would vary as the ratio does
    over the groups (Korn & Graubard 1998), never more than the trials, never fewer than if all trials of a group were
    one. Where all are right or all wrong nothing tells how alike they are, and the latter is taken. So it is never of
    no width, as a bootstrap's is there.
    """
    hits, trials = np.asarray(right, dtype=np.float64), np.asarray(asked, dtype=np.float64)
    if not len(hits) == len(trials) == len(groups) or (hits < 0).any() or (hits > trials).any():
        raise ValueError("right must lie between 0 and asked, one of each and one group an item")
    index = numbered(groups)
    s, m = np.bincount(index, weights=hits), np.bincount(index, weights=trials)
    s, m = s[m > 0], m[m > 0]
    total = float(m.sum())
    if total == 0:
        return float("nan"), float("nan")
    share = float(s.sum()) / total
    effective = least = total * total / float((m * m).sum())
    if 0 < share < 1 and len(m) > 1:
        variance = len(m) / (len(m) - 1) * float(((s - share * m) ** 2).sum()) / total**2
        effective = total if variance == 0 else min(total, max(least, share * (1 - share) / variance))
    return wilson_interval(share * effective, effective)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, groups: Groups | None = None, *, bootstrap: Bootstrap = USUAL
) -> dict[str, Any]:
    """Difference of means a - b of values (N,) on the same prompts, by bootstrap over ``groups`` (None: prompts).

    See ``from_draws`` for the p-value. Rows in which either is NaN are left out of both and counted.
    """
    x, y, names, lost = _paired(a, b, groups)
    weights = bootstrap.weights(names)
    difference = x - y
    draws = weights @ difference / weights.sum(axis=1)
    result = from_draws(float(difference.mean()), draws)
    clusters = len(np.unique(names))
    return result | {
        "ci_method": f"95 % percentile, paired bootstrap over {clusters} "
        f"{'prompts' if groups is None else 'patients'}, {bootstrap.resamples} resamples",
        "n": len(x),
        "warnings": _warnings(clusters, lost),
        "details": {
            "a": float(x.mean()),
            "b": float(y.mean()),
            "clusters": clusters,
            "left_out": lost,
            # Where a model has no second seed the spread over prompts is the only scale there is.
            "standardised": _ratio(float(difference.mean()), float(difference.std(ddof=1)) if len(x) > 1 else math.nan),
        },
    }


def from_draws(value: float, draws: ArrayLike, null: float = 0.0) -> dict[str, Any]:
    """``value`` of a difference with its interval and two-sided p from bootstrap ``draws`` (R,) of that difference.

    For any statistic (AUROC, F1, a distance): take the draws of both models under the same weights and subtract them.
    p is the share of draws, centred on the value, at least as far from it as the value is from ``null``, with one
    added above and below the line so that it is never 0 (Davison & Hinkley 1997, section 4.4).
    """
    values = np.asarray(draws, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0 or not math.isfinite(value):
        return {"value": value, "ci": (math.nan, math.nan), "p": math.nan}
    far = np.abs(values - values.mean()) >= abs(value - null) * (1 - 1e-12)
    return {"value": value, "ci": percentile_interval(values), "p": float((1 + far.sum()) / (1 + values.size))}


def permutation_test(
    a: ArrayLike, b: ArrayLike, groups: Groups | None = None, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> dict[str, Any]:
    """Two-sided p that the means of a and b (N,) come from models that are alike: swaps the two within patients at
    random. With at most ``EXACT`` patients every swap is tried and p is exact; else one is added above and below the
    line.
    """
    x, y, names, lost = _paired(a, b, groups)
    index = numbered(names)
    clusters = int(index.max()) + 1
    exact = clusters <= EXACT
    if exact:
        swaps = (np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1
    else:
        swaps = np.random.default_rng(seed).integers(2, size=(permutations, clusters))
    sums = np.bincount(index, weights=x - y) / len(x)
    value, draws = float(sums.sum()), (1 - 2 * swaps) @ sums
    far = int((np.abs(draws) >= abs(value) * (1 - 1e-12) - 1e-15).sum())
    return {
        "value": value,
        "p": far / len(draws) if exact else (1 + far) / (1 + len(draws)),
        "method": f"{'exact' if exact else f'{permutations} random swaps'}, {clusters} "
        f"{'prompts' if groups is None else 'patients'}",
        "n": len(x),
        "warnings": _warnings(clusters, lost),
    }


def holm(p: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p-values: their chance of one false find among all is below the level. NaN stays NaN."""
    return _adjusted(p, lambda ranked: np.maximum.accumulate(ranked * np.arange(len(ranked), 0, -1)))


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Benjamini & Hochberg's (1995) adjusted p-values: the expected share of false finds. NaN stays NaN."""
    from scipy import stats

    return _adjusted(p, lambda ranked: np.asarray(stats.false_discovery_control(ranked)))


def _adjusted(p: ArrayLike, rule: Callable[[Floats], Floats]) -> Floats:
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise ValueError("p-values must lie in [0, 1]")
    order = known[np.argsort(values[known], kind="stable")]
    result = np.full(values.shape, np.nan)
    if len(order):
        result[order] = np.minimum(rule(values[order]), 1.0)
    return result


def correct(tests: Mapping[str, Mapping[str, Any]], *, level: float = 1 - LEVEL) -> dict[str, dict[str, Any]]:
    """``tests`` (a finding -> a result with ``p``) with ``p_holm``, ``p_bh`` and ``significant`` (by Holm) added.

    All findings that were tested count, so give all of them, not those that look promising.
    """
    names = list(tests)
    p = [float(tests[name]["p"]) for name in names]
    strict, mild = holm(p), benjamini_hochberg(p)
    return {
        name: {**tests[name], "p_holm": float(h), "p_bh": float(b), "significant": bool(h < level)}
        for name, h, b in zip(names, strict, mild, strict=True)
    }


def over_seeds(values: ArrayLike, draws: ArrayLike | None = None) -> dict[str, Any]:
    """Mean, sd and t interval of a figure measured with S >= 1 seeds.

    ``draws`` (R,): bootstrap draws over patients of the mean over seeds. The seeds share their prompts, so the sd over
    seeds holds nothing of the luck of which patients were drawn; with ``draws`` the interval covers both (variances
    added, degrees of freedom by Satterthwaite 1946).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    count = len(x)
    if count == 0:
        raise ValueError("no finite value")
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if count > 1 else math.nan
    between = sd**2 / count if count > 1 else math.nan
    within = 0.0
    if draws is not None:
        within = float(np.var(np.asarray(draws, dtype=np.float64), ddof=1))
    if count == 1:
        half = t_quantile((1 + LEVEL) / 2, math.inf) * math.sqrt(within) if draws is not None else math.nan
    else:
        freedom = (between + within) ** 2 / (between**2 / (count - 1)) if between > 0 else math.inf
        half = t_quantile((1 + LEVEL) / 2, freedom) * math.sqrt(between + within)
    warnings = [f"{count} seed(s): at least 3 are needed for a spread worth reading"] if count < 3 else []
    source = "seeds and patients" if draws is not None else "seeds"
    return {
        "value": mean,
        "ci": (mean - half, mean + half),
        "ci_method": f"{LEVEL:.0%} t interval over {source}" if count > 1 else "one seed: no spread over seeds in it",
        "n": count,
        "sd": sd,
        "warnings": warnings,
        "details": {"values": x.tolist()},
    }


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t with ``freedom`` >= 1 (any real number, or infinity for the normal distribution)."""
    from scipy import stats

    if not 0 < probability < 1 or not freedom >= 1:
        raise ValueError(f"probability in (0, 1) and freedom of at least 1 are needed, got {probability} and {freedom}")
    return float(stats.t.ppf(probability, freedom))


def verdict(
    value: float, ci: tuple[float, float], *, margin: float | None = None, a: str = "A", b: str = "B", unit: str = ""
) -> str:
    """What may be said of a difference a - b with its 95 % interval, in words: "no difference" is never among them.

    ``margin`` > 0: the smallest difference that would matter. Equivalence is claimed only where the whole interval
    lies within it (stricter than two one-sided tests at 5 %, which need the 90 % interval only; Schuirmann 1987).
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")
    low, high = ci
    if not all(math.isfinite(number) for number in (value, low, high)):
        return f"{a} and {b} cannot be compared: no interval"
    shown = f"{value:+.3g}{unit} [{low:+.3g}, {high:+.3g}]"
    within = margin is not None and -margin < low and high < margin
    if low > 0 or high < 0:
        size = f", by less than the margin of {margin:g}{unit}" if within else ""
        return f"{a} is {'higher' if low > 0 else 'lower'} than {b}{size}: {shown}"
    if within:
        return f"{a} and {b} are equivalent within a margin of {margin:g}{unit}: {shown}"
    if margin is None:
        return f"a difference between {a} and {b} was not shown, nor that there is none: {shown}"
    return f"neither a difference between {a} and {b} nor equivalence within {margin:g}{unit} was shown: {shown}"


def _names(groups: Groups | None, n: int) -> NDArray[np.str_]:
    names = np.asarray([str(group) for group in (range(n) if groups is None else groups)])
    if len(names) != n:
        raise ValueError(f"{len(names)} groups for {n} values")
    return names


def _paired(a: ArrayLike, b: ArrayLike, groups: Groups | None) -> tuple[Floats, Floats, NDArray[np.str_], int]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"a and b must be (N,) of the same prompts, got {x.shape} and {y.shape}")
    keep = np.isfinite(x) & np.isfinite(y)
    if not keep.any():
        raise ValueError("no prompt has a value of both models")
    return x[keep], y[keep], _names(groups, len(x))[keep], int((~keep).sum())


def _warnings(clusters: int, lost: int) -> list[str]:
    found = []
    if clusters < FEW:
        found.append(f"{clusters} patients or prompts: intervals of a bootstrap of fewer than {FEW} are too narrow")
    if lost:
        found.append(f"{lost} prompts without a value of both models left out")
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if math.isfinite(b) and b > 0 else math.nan
