"""Intervals that count dependence and cost: shares over patients, and how many matrix roots a bootstrap may take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roentgen.metrics.distribution import frechet
from roentgen.metrics.distribution.fid import fid
from roentgen.metrics.distribution.pairs import Pair, against_real
from roentgen.metrics.statistics import clustered_wilson, wilson_interval

# ------------------------------------------------------------------------------------------ shares over patients


def test_images_of_patients_of_their_own_are_wilsons() -> None:
    right = np.r_[np.ones(30), np.zeros(10)]
    assert clustered_wilson(right, np.ones(40), range(40)) == pytest.approx(wilson_interval(30, 40))


def test_patients_all_right_or_all_wrong_count_once() -> None:
    right = np.repeat([1.0] * 7 + [0.0] * 3, 10)
    groups = np.repeat(np.arange(10), 10)
    assert clustered_wilson(right, np.ones(100), groups.tolist()) == pytest.approx(wilson_interval(7, 10))
    low, high = clustered_wilson(right, np.ones(100), range(100))
    assert high - low < 0.2  # as if they were a hundred patients


def test_patients_that_are_alike_among_themselves_in_share_count_as_all_their_images() -> None:
    right = np.tile([1.0, 1.0, 1.0, 0.0], 10)
    groups = np.repeat(np.arange(10), 4).tolist()
    assert clustered_wilson(right, np.ones(40), groups) == pytest.approx(wilson_interval(30, 40))


def test_all_right_has_a_width_that_patients_set() -> None:
    groups = [0] * 8 + [1, 2]
    low, high = clustered_wilson(np.ones(10), np.ones(10), groups)
    effective = 10**2 / (8**2 + 1 + 1)
    assert (low, high) == pytest.approx(wilson_interval(effective, effective)) and low < 0.6


def test_items_may_ask_more_than_once_or_not_at_all() -> None:
    one_by_one = clustered_wilson([1, 0, 1, 1, 0], np.ones(5), ["a", "a", "a", "b", "c"])
    together = clustered_wilson([2, 1, 0, 0], [3, 1, 1, 0], ["a", "b", "c", "d"])
    assert one_by_one == pytest.approx(together)
    assert all(math.isnan(edge) for edge in clustered_wilson([0.0], [0.0], ["a"]))


@pytest.mark.parametrize(
    ("right", "asked", "groups"),
    [([2.0], [1.0], ["a"]), ([-1.0], [1.0], ["a"]), ([1.0], [1.0, 1.0], ["a"]), ([1.0], [1.0], ["a", "b"])],
)
def test_shares_that_cannot_be_are_errors(right: list[float], asked: list[float], groups: list[str]) -> None:
    with pytest.raises(ValueError, match="between 0 and asked"):
        clustered_wilson(right, asked, groups)


def test_it_covers_where_wilson_by_image_does_not() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 8)
    covered = {"clustered": 0, "by image": 0}
    for _ in range(400):
        share = rng.beta(0.8 * 2, 0.2 * 2, size=25)  # correlation of a patient's images: 1 / 3
        right = (rng.random((25, 8)) < share[:, None]).ravel().astype(float)
        low, high = clustered_wilson(right, np.ones(200), groups.tolist())
        covered["clustered"] += low <= 0.8 <= high
        low, high = wilson_interval(right.sum(), 200)
        covered["by image"] += low <= 0.8 <= high
    assert covered["clustered"] / 400 > 0.92
    assert covered["by image"] / 400 < 0.85


# ------------------------------------------------------------------------------------------ affordable resamples


def test_two_thousand_images_afford_all_resamples_and_many_more_do_not() -> None:
    assert frechet.affordable_resamples(2000, 2000, 2048, 1000) == 1000
    many = frechet.affordable_resamples(50_000, 50_000, 2048, 1000)
    assert frechet.LEAST <= many < 1000


def test_more_images_or_more_features_never_afford_more() -> None:
    sizes = [500, 1000, 2000, 4000, 8000, 16_000, 64_000]
    by_n = [frechet.affordable_resamples(n, n, 2048, 10_000) for n in sizes]
    assert by_n == sorted(by_n, reverse=True) and by_n[0] > by_n[-1]
    by_dim = [frechet.affordable_resamples(20_000, 20_000, dim, 10_000) for dim in (64, 512, 1024, 2048, 4096)]
    assert by_dim == sorted(by_dim, reverse=True) and by_dim[0] > by_dim[-1]
    assert frechet.affordable_resamples(800, 9000, 512, 10_000) == frechet.affordable_resamples(9000, 800, 512, 10_000)


def test_resamples_are_never_more_than_asked_nor_fewer_than_the_least() -> None:
    assert frechet.affordable_resamples(100, 100, 8, 7) == 7
    assert frechet.affordable_resamples(10**6, 10**6, 4096, 1000) == frechet.LEAST
    assert frechet.affordable_resamples(10**6, 10**6, 4096, 20) == 20


def test_the_result_says_how_many_resamples_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "LEAST", 10)
    monkeypatch.setattr(frechet, "WORK", 1.0)  # no work is affordable
    rng = np.random.default_rng(0)
    pair = Pair(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), resamples=500)
    found = against_real(fid, pair, bound="floor", falls_with_n=True)
    assert found.details["resamples"] == 10 and "10 resamples" in found.ci_method
