"""Retrieval by hand, its chance level, its floor and its check."""

from __future__ import annotations

import numpy as np
import pytest

from roentgen.metrics.statistics import Bootstrap
from roentgen.metrics.text import retrieval as r


def test_precision_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.8, 0.5], [0.2, 0.2, 0.9, 0.2]])
    relevant = np.array([[True, False, False, True], [True, False, False, False]])
    order = r.ranking(similarity, 3)
    np.testing.assert_array_equal(order, [[0, 2, 3], [2, 0, 1]])  # ties by number
    np.testing.assert_allclose(r.precision_at(order, relevant, (1, 2, 3)), [[1, 1 / 2, 2 / 3], [0, 1 / 2, 1 / 3]])
    assert np.isnan(r.precision_at(order, relevant, (4,))).all()


def test_excluded_items_are_never_found() -> None:
    similarity = np.array([[0.9, 0.1, 0.8]])
    order = r.ranking(similarity, 3, exclude=np.array([[True, False, False]]))
    np.testing.assert_array_equal(order, [[2, 1, -1]])
    precision = r.precision_at(order, np.array([[True, True, False]]), (1, 2, 3))
    np.testing.assert_array_equal(precision[:, :2], [[0, 1 / 2]])
    assert np.isnan(precision[0, 2])


def test_relevance() -> None:
    labels = np.array([[1.0, 0, np.nan], [1, 1, 0], [1, np.nan, 0], [0, 0, 0]])
    np.testing.assert_array_equal(
        r.same_findings(labels, labels),
        np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool),
    )


def clusters(spread: float, n: int = 240) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 4
    vectors = np.eye(4)[kind] + spread * rng.normal(size=(n, 4))
    return vectors, np.eye(4)[kind], [f"p{i // 2}" for i in range(n)]


def test_perfect_and_blind_vectors() -> None:
    vectors, labels, patients = clusters(0.01)
    same = r.same_findings(labels, labels)
    good = r.retrieval(vectors, vectors, same, patients, gallery_groups=patients, bootstrap=Bootstrap(50))
    entries = {entry["k"]: entry for entry in good.details["at"]}
    assert set(entries) == {5, 10, 50} and good.value == entries[5]["value"] == 1.0
    assert entries[50]["value"] == entries[50]["best"] == 1.0
    assert entries[5]["chance"] == pytest.approx(59 / 238, abs=0.01)  # an image's own patient is out of reach
    assert entries[5]["floor"] == pytest.approx(0.25, abs=0.04)
    blind = r.retrieval(
        np.random.default_rng(1).normal(size=(240, 4)), vectors, same, patients, bootstrap=Bootstrap(50)
    )
    assert blind.value == pytest.approx(0.25, abs=0.08)
    low, high = blind.ci
    assert low < blind.value < high


def test_too_small_a_gallery_and_queries_without_match_are_said() -> None:
    vectors, labels, patients = clusters(0.1, n=24)
    labels[:4] = 0
    result = r.retrieval(vectors, vectors, r.same_findings(labels, labels), patients, bootstrap=Bootstrap(20))
    text = " ".join(result.notes)
    assert result.n == 20 and "4 of 24 queries" in text and "precision at 50" in text and "n = 20" in text
    alone = np.eye(24, dtype=bool) | np.eye(24, k=4, dtype=bool)  # itself and the fifth after it
    only = r.retrieval(vectors, vectors, alone, patients, gallery_groups=patients, bootstrap=Bootstrap(20))
    assert only.n == 20 and only.details["left_out"] == 4  # the last four have but their own patient
    nothing = r.retrieval(vectors, vectors, np.zeros((24, 24), bool), patients, bootstrap=Bootstrap(20))
    assert nothing.n == 0 and np.isnan(nothing.value)


def test_shuffled_labels_are_at_chance() -> None:
    vectors, labels, patients = clusters(0.05)
    moved = labels[np.random.default_rng(3).permutation(240)]
    result = r.retrieval(vectors, vectors, r.same_findings(moved, moved), patients, bootstrap=Bootstrap(20))
    assert result.value == pytest.approx(0.4, abs=0.12)  # itself among the five, the others by chance
    entry = result.details["at"][0]
    assert entry["chance"] == pytest.approx(0.25, abs=0.01)


def test_self_retrieval() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8))
    assert r.self_retrieval(x) == 1.0
    assert r.self_retrieval(np.vstack([x, 3 * x])) == 1.0  # copies count as themselves
    with pytest.raises(ValueError, match="zeros"):
        r.self_retrieval(np.zeros((3, 2)))
