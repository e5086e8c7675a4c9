"""Calibration, AUROC, F1 and sides of a classifier on generated images: closed forms, ceilings and floors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roentgen.metrics.adherence import calibration
from roentgen.metrics.adherence import scored as adherence
from roentgen.metrics.adherence.auroc import by_auroc
from roentgen.metrics.adherence.f1 import (
    adherence_f1,
    best_f1_threshold,
    calibrate,
    f1_score,
    prevalence_threshold,
    weighted_f1,
)
from roentgen.metrics.adherence.laterality import side_adherence
from roentgen.metrics.adherence.scored import ScoredImages
from roentgen.metrics.statistics import Bootstrap

FINDINGS = ["No Finding", "Effusion", "Mass"]


def judged(signal: float, n: int = 300, seed: int = 0) -> ScoredImages:
    """Scores that tell labels apart by ``signal``, two images a patient, a few labels unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < 0.3).astype(float)
    scores = 1 / (1 + np.exp(-(signal * (labels - 0.5) + rng.normal(size=(n, 3)))))
    labels[rng.random((n, 3)) < 0.05] = np.nan
    return ScoredImages(scores, labels, [f"p{i // 2}" for i in range(n)])


def test_best_f1_threshold_by_trying_all() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = np.r_[1.0, (rng.random(39) < 0.3).astype(float)]
        scores = rng.integers(0, 12, 40) / 12  # with ties
        best = max(f1_score(scores >= cut, labels) for cut in np.unique(scores))
        threshold = best_f1_threshold(scores, labels)
        assert f1_score(scores >= threshold, labels) == pytest.approx(best, abs=1e-12)


def test_threshold_lies_between_scores_and_calls_fewest() -> None:
    scores, labels = np.array([0.9, 0.8, 0.3, 0.1]), np.array([1.0, 1, 0, 0])
    assert best_f1_threshold(scores, labels) == pytest.approx(0.55)
    # F1 is 2/3 for one call and for four: the higher threshold is taken.
    tied = np.array([0.9, 0.7, 0.5, 0.3])
    assert best_f1_threshold(tied, np.array([1.0, 0, 0, 1])) == pytest.approx(0.8)
    assert best_f1_threshold(np.array([0.9, 0.5]), np.array([1.0, 0])) == pytest.approx(0.7)
    assert best_f1_threshold(np.ones(4), labels) == 1.0


def test_prevalence_threshold_calls_as_many_as_there_are() -> None:
    rng = np.random.default_rng(2)
    scores, labels = rng.random(500), (rng.random(500) < 0.13).astype(float)
    threshold = prevalence_threshold(scores, labels)
    assert (scores >= threshold).sum() == labels.sum()
    with pytest.raises(ValueError, match="no positive"):
        prevalence_threshold(scores, np.zeros(500))


def test_f1_by_hand_and_with_weights() -> None:
    called, labels = np.array([True, True, True, False, False]), np.array([1.0, 1, 0, 1, 0])
    assert f1_score(called, labels) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    weights = np.array([[1.0, 2, 0, 3, 1], [0, 0, 0, 0, 2]])
    values = weighted_f1(called, labels, weights)
    assert values[0] == pytest.approx(2 * 3 / (2 * 3 + 3)) and np.isnan(values[1])


def test_calibration_error_closed_form_and_edges() -> None:
    # Two bins: mean score 0.25 with frequency 0.5, and 1.0 with frequency 1.
    scores, labels = np.array([0.2, 0.3, 1.0, 1.0]), np.array([0.0, 1, 1, 1])
    one = np.ones((1, 4))
    assert calibration.calibration_error(scores, labels, one, bins=2)[0] == pytest.approx(0.5 * 0.25)
    curve = calibration.reliability_curve(scores, labels, bins=2)
    assert [(entry["n"], entry["score"], entry["frequency"]) for entry in curve] == [(2, 0.25, 0.5), (2, 1.0, 1.0)]
    assert sum(entry["n"] for entry in calibration.reliability_curve(scores, labels, bins=7)) == 4
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration.reliability_curve(scores * 2, labels)


def test_calibrated_scores_have_a_small_error_and_overcalling_a_large_one() -> None:
    rng = np.random.default_rng(3)
    p = rng.random((4000, 1))
    labels = (rng.random((4000, 1)) < p).astype(float)
    groups = list(range(4000))
    right = calibration.calibration(p, labels, ["A"], groups, bootstrap=Bootstrap(50))
    over = calibration.calibration(p**0.3, labels, ["A"], groups, bootstrap=Bootstrap(50))
    assert right.value < 0.03 < 0.15 < over.value
    assert over.ci[0] < over.value < over.ci[1] and right.ci[0] < right.value < right.ci[1]
    rare = calibration.calibration(
        p[:12], np.r_[np.ones((2, 1)), np.zeros((10, 1))], ["A"], groups[:12], bootstrap=Bootstrap(9)
    )
    assert np.isnan(rare.value) and "left out: A" in rare.notes[0]


def test_thresholds_need_cases() -> None:
    part = judged(2.0)
    labels = part.labels.copy()
    labels[:, 2] = np.where(np.arange(len(labels)) < 3, 1.0, 0.0)
    rows = calibrate(part.scores, labels, FINDINGS)
    assert np.isfinite(rows[1].threshold) and rows[1].f1 > 0.6
    assert np.isnan(rows[2].threshold) and rows[2].positives == 3
    with pytest.raises(ValueError, match="shapes"):
        calibrate(part.scores, labels[:, :2], FINDINGS)


def test_auroc_stands_between_ceiling_and_floor() -> None:
    made, real = judged(1.0), judged(3.0, seed=1)
    result = adherence.adherence(by_auroc, made, FINDINGS, real=real, bootstrap=Bootstrap(100))
    details = result.details
    assert details["macro_findings"] == ["Effusion", "Mass"]
    assert details["shuffled"]["value"] == pytest.approx(0.5, abs=0.03)
    assert 0.6 < result.value < details["real"]["value"]
    common = details["on_common_findings"]
    assert common["difference"]["value"] == pytest.approx(common["synthetic"]["value"] - common["real"]["value"])
    assert common["difference"]["ci"][1] < 0  # worse than real, and certainly so
    assert result.ci[0] < result.value < result.ci[1] and result.n == 300 and not result.notes


def test_interval_widens_when_images_share_patients() -> None:
    made = judged(1.0)
    one = adherence.adherence(by_auroc, made, FINDINGS, bootstrap=Bootstrap(300))
    few = ScoredImages(made.scores, made.labels, [f"p{i // 30}" for i in range(300)])
    ten = adherence.adherence(by_auroc, few, FINDINGS, bootstrap=Bootstrap(300))
    assert ten.value == one.value and ten.ci != one.ci


def test_f1_at_thresholds_from_elsewhere() -> None:
    thresholds = calibrate(*_both(judged(2.0, seed=5)), FINDINGS)
    made, real = judged(1.5), judged(2.5, seed=1)
    result = adherence_f1(made, FINDINGS, thresholds, real=real, bootstrap=Bootstrap(100))
    rows = {row["finding"]: row for row in result.details["findings"]}
    known = np.isfinite(made.labels[:, 1])
    expected = f1_score(made.scores[known, 1] >= thresholds[1].threshold, made.labels[known, 1])
    assert rows["Effusion"]["value"] == pytest.approx(expected)
    assert result.value == pytest.approx((rows["Effusion"]["value"] + rows["Mass"]["value"]) / 2)
    floor = result.details["shuffled"]["value"]
    assert 0 < floor < result.value < result.details["on_common_findings"]["real"]["value"]
    assert {row["method"] for row in result.details["thresholds"]} == {"prevalence"}
    blind = judged(0.0, seed=6)  # the best F1 of scores that know nothing is had by calling nearly everything
    known = np.isfinite(blind.labels[:, 1])
    scores, labels = blind.scores[known, 1], blind.labels[known, 1]
    called = (scores >= best_f1_threshold(scores, labels)).mean()
    assert called > 0.8
    greedy = [replace(row, called=called) for row in thresholds]
    assert "too often" in " ".join(adherence_f1(made, FINDINGS, greedy, bootstrap=Bootstrap(20)).notes)
    with pytest.raises(ValueError, match="order"):
        adherence_f1(made, FINDINGS, thresholds[::-1])


def _both(part: ScoredImages) -> tuple[np.ndarray, np.ndarray]:
    return part.scores, part.labels


def test_ceiling_has_the_same_labels() -> None:
    made, real = judged(1.0, n=60), judged(1.0, n=400, seed=1)
    top, warnings = adherence.alike(made, real)
    np.testing.assert_array_equal(top.labels == 1, made.labels == 1)
    assert not warnings
    lonely = ScoredImages(made.scores[:3], np.array([[1.0, 1, 1]] * 3), ["a", "b", "c"])
    pool = ScoredImages(made.scores[:2], np.array([[1.0, 1, 1], [0, 0, 0]]), ["d", "e"])
    again, warnings = adherence.alike(lonely, pool)
    assert len(again.scores) == 3 and "used more than once" in warnings[0]
    none, warnings = adherence.alike(pool, lonely)
    assert len(none.scores) == 1 and "1 of 2 images have no real one" in warnings[0]


def test_sides_by_hand() -> None:
    leftness = np.array([[0.2, -0.1], [-0.3, 0.4], [0.1, 0.0], [0.5, 0.2]])
    sides = [["left", "right"], ["right", ""], ["right", "left"], ["bilateral", "left"]]
    result = side_adherence(leftness, sides, ["Effusion", "Mass"], range(4))
    assert result.n == 6 and result.value == pytest.approx(4 / 6)
    first, second = result.details["findings"]
    assert (first["value"], first["n"]) == (2 / 3, 3) and (second["value"], second["n"]) == (2 / 3, 3)
    assert "at least 50" in result.notes[0]
    flipped = side_adherence(-leftness, sides, ["Effusion", "Mass"], range(4))
    assert flipped.value == pytest.approx(1 / 6)  # a tie is wrong on both sides


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ScoredImages(np.full((2, 1), np.nan), np.zeros((2, 1)), ["a", "b"])
    with pytest.raises(ValueError, match="shapes"):
        ScoredImages(np.zeros((2, 1)), np.zeros((2, 2)), ["a", "b"])
