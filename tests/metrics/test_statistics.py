"""Paired tests, corrections and seeds: against scipy and statsmodels where installed, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roentgen.metrics import statistics
from roentgen.metrics.adherence import auroc
from roentgen.metrics.adherence.scored import by_finding
from roentgen.metrics.statistics import Bootstrap


def two_models(n: int, *, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prompt = rng.normal(size=n)  # hard and easy prompts, for both models
    return prompt + 0.5 * rng.normal(size=n) + shift, prompt + 0.5 * rng.normal(size=n)


# ----------------------------------------------------------------------------------------------------- two models


def test_paired_bootstrap_finds_what_an_unpaired_look_cannot() -> None:
    a, b = two_models(100, shift=0.3)
    result = statistics.paired_bootstrap(a, b)
    assert result["value"] == pytest.approx((a - b).mean())
    assert result["ci"][0] > 0 and result["p"] < 0.01
    assert (b.mean() + 1.96 * b.std() / 10) > a.mean() - 1.96 * a.std() / 10  # intervals of each overlap
    turned = statistics.paired_bootstrap(b, a)
    assert turned["value"] == -result["value"] and turned["p"] == result["p"]


def test_paired_bootstrap_agrees_with_the_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for shift in (0.0, 0.1, 0.2):
        a, b = two_models(200, shift=shift)
        expected = stats.ttest_rel(a, b)
        result = statistics.paired_bootstrap(a, b, bootstrap=Bootstrap(5000))
        low, high = expected.confidence_interval()
        assert result["p"] == pytest.approx(expected.pvalue, abs=0.02)
        np.testing.assert_allclose(result["ci"], (low, high), atol=0.01)


def test_prompts_of_one_patient_are_one_draw() -> None:
    a, b = two_models(20, shift=0.3)
    alone = statistics.paired_bootstrap(a, b)
    copied = statistics.paired_bootstrap(np.repeat(a, 10), np.repeat(b, 10), np.repeat(np.arange(20), 10))
    assert copied["ci"] == pytest.approx(alone["ci"], abs=0.03)
    assert copied["details"]["clusters"] == 20
    blind = statistics.paired_bootstrap(np.repeat(a, 10), np.repeat(b, 10))
    assert np.ptp(blind["ci"]) < 0.5 * np.ptp(copied["ci"])


def test_prompts_that_one_model_lacks_are_left_out_of_both_and_counted() -> None:
    a, b = two_models(50)
    a[3] = np.nan
    result = statistics.paired_bootstrap(a, b)
    assert result["n"] == 49 and result["details"]["left_out"] == 1
    assert result["warnings"] == ["1 prompts without a value of both models left out"]
    with pytest.raises(ValueError, match="same prompts"):
        statistics.paired_bootstrap(a, b[:-1])
    with pytest.raises(ValueError, match="no prompt"):
        statistics.paired_bootstrap([np.nan], [1.0])


def test_draws_of_any_statistic() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2.0
    good, bad = labels + rng.normal(size=120), labels + 3 * rng.normal(size=120)
    weights = Bootstrap().weights(range(120))
    draws = auroc.weighted_auroc(good, labels, weights) - auroc.weighted_auroc(bad, labels, weights)
    value = auroc.auroc(good, labels) - auroc.auroc(bad, labels)
    result = statistics.from_draws(value, draws)
    assert result["p"] < 0.05 and result["ci"][0] > 0
    assert statistics.from_draws(value, draws, null=value)["p"] == 1
    assert math.isnan(statistics.from_draws(value, [np.nan])["p"])


def test_permutation_test_is_exact_for_few_patients() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = two_models(9, shift=0.5)
    expected = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf)
    result = statistics.permutation_test(a, b)
    assert result["method"].startswith("exact, 9")
    assert result["p"] == pytest.approx(expected.pvalue, rel=1e-12)
    # By hand: three patients, all in favour of a: 2 of 8 swaps are as far out.
    assert statistics.permutation_test([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])["p"] == 0.25


def test_permutation_test_of_patients_agrees_with_scipys_of_their_sums() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = two_models(60, shift=0.15)
    groups = np.arange(60) // 2
    result = statistics.permutation_test(a, b, groups, permutations=3000)
    sums = (a - b).reshape(30, 2).sum(axis=1)  # the two of a patient are swapped together
    expected = stats.permutation_test((sums,), np.mean, permutation_type="samples", n_resamples=20_000, rng=0)
    assert result["value"] == pytest.approx((a - b).mean()) and result["p"] == pytest.approx(expected.pvalue, abs=0.02)
    large = statistics.permutation_test(a + 9, b, groups, permutations=200)
    assert large["p"] == pytest.approx(1 / 201)


def test_type_one_errors_are_near_five_per_cent() -> None:
    found = {"bootstrap": 0, "permutation": 0}
    runs = 400
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(30), 2)
        shared = rng.normal(size=(2, 30))  # what a patient's two prompts have in common
        a, b = (side[groups] + rng.normal(size=60) for side in shared)
        found["bootstrap"] += statistics.paired_bootstrap(a, b, groups, bootstrap=Bootstrap(300, seed))["p"] < 0.05
        found["permutation"] += statistics.permutation_test(a, b, groups, permutations=300, seed=seed)["p"] < 0.05
        # 2.5 to 8 %: 5 % and about two standard errors; a bootstrap of 30 clusters is known to be a little liberal.
    assert 0.025 * runs <= found["permutation"] <= 0.08 * runs, found
    assert 0.03 * runs <= found["bootstrap"] <= 0.09 * runs, found


# ---------------------------------------------------------------------------------------------------- corrections


P = np.array([0.01, 0.04, 0.03, 0.005, 0.5, 0.03])


def test_corrections_by_hand() -> None:
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]), [0.02, 0.04, 0.04, 0.02])
    for rule in (statistics.holm, statistics.benjamini_hochberg):
        np.testing.assert_array_equal(rule([0.2]), [0.2])
        assert np.isnan(rule([np.nan, 0.01])[0]) and rule([np.nan, 0.01])[1] == 0.01
        assert rule([0.9, 0.8, 1.0]).max() <= 1
        assert rule([]).shape == (0,)
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            rule([1.2])


def test_benjamini_hochberg_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(statistics.benjamini_hochberg(P), stats.false_discovery_control(P), rtol=1e-12)


def test_corrections_agree_with_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    for p in (P, np.random.default_rng(0).uniform(size=40) ** 2):
        np.testing.assert_allclose(statistics.holm(p), multitest.multipletests(p, method="holm")[1], rtol=1e-12)
        expected = multitest.multipletests(p, method="fdr_bh")[1]
        np.testing.assert_allclose(statistics.benjamini_hochberg(p), expected, rtol=1e-12)


def test_holm_keeps_the_chance_of_one_false_find() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(2000, 10))
    any_found = np.array([statistics.holm(row).min() < 0.05 for row in p])
    assert 0.035 < any_found.mean() < 0.065
    assert (p.min(axis=1) < 0.05).mean() > 0.35  # without it


def test_correct_adds_to_each_finding() -> None:
    tests = {"Effusion": {"p": 0.001, "value": 0.1}, "Mass": {"p": 0.04}, "Hernia": {"p": math.nan}}
    corrected = statistics.correct(tests)
    assert corrected["Effusion"]["significant"] and corrected["Effusion"]["value"] == 0.1
    assert corrected["Effusion"]["p_holm"] == pytest.approx(0.002)  # of two that could be tested
    assert corrected["Mass"]["significant"] and corrected["Mass"]["p_bh"] == pytest.approx(0.04)
    assert not corrected["Hernia"]["significant"] and math.isnan(corrected["Hernia"]["p_holm"])


# ---------------------------------------------------------------------------------------------------------- seeds


def test_t_quantiles_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3.7, 30, 1e4):
        for probability in (0.025, 0.5, 0.9, 0.975, 0.9995):
            expected = stats.t.ppf(probability, freedom)
            assert statistics.t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert statistics.t_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)


def test_over_seeds_by_hand() -> None:
    result = statistics.over_seeds([0.70, 0.72, 0.74])
    assert (result["value"], result["sd"]) == pytest.approx((0.72, 0.02))
    half = 4.302653 * 0.02 / math.sqrt(3)  # t with two degrees of freedom
    assert result["ci"] == pytest.approx((0.72 - half, 0.72 + half), abs=1e-7)
    one = statistics.over_seeds([0.7])
    assert math.isnan(one["sd"]) and math.isnan(one["ci"][0]) and one["warnings"]
    with pytest.raises(ValueError, match="no finite"):
        statistics.over_seeds([np.nan])


def test_over_seeds_counts_the_luck_of_the_patients_too() -> None:
    draws = np.random.default_rng(0).normal(0.72, 0.05, 4000)
    same = statistics.over_seeds([0.72, 0.72, 0.72], draws)
    assert same["ci"] == pytest.approx((0.72 - 1.96 * 0.05, 0.72 + 1.96 * 0.05), abs=0.005)
    alone = statistics.over_seeds([0.70, 0.72, 0.74])
    both = statistics.over_seeds([0.70, 0.72, 0.74], draws)
    assert np.ptp(both["ci"]) > 2 * np.ptp(alone["ci"])
    single = statistics.over_seeds([0.72], draws)
    assert single["ci"] == pytest.approx(same["ci"], abs=1e-12) and single["warnings"]


def test_intervals_over_seeds_cover() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        patients = rng.normal(0, 0.05)  # one draw of patients for all seeds
        values = patients + rng.normal(0, 0.03, size=4)
        low, high = statistics.over_seeds(values, rng.normal(0, 0.05, size=500))["ci"]
        hits += low <= 0 <= high
    assert 0.92 <= hits / 300 <= 0.99


# ---------------------------------------------------------------------------------------------------------- words


def test_verdict_never_says_no_difference() -> None:
    says = statistics.verdict
    assert says(0.05, (0.02, 0.08), a="mini", b="base").startswith("mini is higher than base: +0.05")
    assert says(-0.05, (-0.08, -0.02)).startswith("A is lower than B")
    assert says(0.005, (0.001, 0.009), margin=0.02).startswith("A is higher than B, by less than the margin of 0.02")
    assert says(0.0, (-0.01, 0.01), margin=0.02).startswith("A and B are equivalent within a margin of 0.02")
    assert "neither a difference" in says(0.0, (-0.03, 0.01), margin=0.02)
    assert "nor that there is none" in says(0.0, (-0.03, 0.01))
    assert "cannot be compared" in says(math.nan, (math.nan, math.nan))
    with pytest.raises(ValueError, match="above 0"):
        says(0.0, (0.0, 0.0), margin=-1)


def test_the_same_draws_pair_two_figures_and_others_do_not() -> None:
    a, b = two_models(200, shift=0.1)
    bootstrap = Bootstrap(400, 3)
    weights, others = bootstrap.weights(None, a), bootstrap.apart().weights(None, a)
    mine, theirs, alone = (
        statistics.Drawn(float(x.mean()), statistics.resampled_means(x, w))
        for x, w in ((a, weights), (b, weights), (b, others))
    )
    paired = mine.less(theirs)
    assert paired.value == pytest.approx((a - b).mean())
    assert paired.ci == pytest.approx(bootstrap.mean(a - b)["ci"])
    assert np.ptp(paired.ci) < np.ptp(mine.less(alone).ci)
    moved = statistics.Drawn(5.0, mine.draws).moved()
    assert moved.draws.mean() == pytest.approx(5) and np.ptp(moved.ci) == pytest.approx(np.ptp(mine.ci))


def test_a_finding_is_drawn_with_the_labels_that_are_known() -> None:
    labels = np.array([[1.0, 0.0, 1.0, np.nan, 0.0]]).T
    scores = np.array([[0.9, 0.2, 0.8, 0.0, 0.1]]).T
    (one,) = by_finding(auroc.by_auroc, scores, labels, ["Effusion"], np.ones((3, 5)))
    assert (one.value, one.positives, one.negatives, one.cases, int(one.known.sum())) == (1, 2, 2, 2, 4)
    assert one.draws.tolist() == [1, 1, 1]
