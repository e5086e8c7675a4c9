"""Memorisation, duplicates and re-identification: closed forms, planted copies, and what chance alone gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roentgen.metrics import neighbours
from roentgen.metrics.diversity import repeats as duplicates
from roentgen.metrics.memorisation import damage, reidentification
from roentgen.metrics.memorisation import nearness as memorisation
from roentgen.metrics.memorisation.authenticity import authenticity
from roentgen.metrics.memorisation.copies import FLAGGED, near_duplicate_threshold, near_duplicates
from roentgen.metrics.memorisation.planted import planted_recall
from roentgen.metrics.statistics import Bootstrap


def cloud(n: int, *, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim))


def radiographs(n: int, *, seed: int = 0, side: int = 64) -> list[np.ndarray]:
    """Smooth grey pictures that differ: low-frequency noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (n, 8, 8), dtype=np.uint8)
    return [damage.blur(np.kron(image, np.ones((side // 8, side // 8), np.uint8)), 3) for image in small]


# ----------------------------------------------------------------------------------------------- nearest neighbours


def test_nearest_agrees_with_all_distances_whatever_the_memory() -> None:
    queries, pool = cloud(23, seed=1), cloud(57, seed=2)
    everything = np.linalg.norm(queries[:, None] - pool[None], axis=2)
    order = np.argsort(everything, axis=1)[:, :4]
    for memory in (1, 3000, 2**28):  # blocks of one item, of some, of all
        numbers, distance = neighbours.nearest(queries, pool, k=4, memory=memory)
        np.testing.assert_array_equal(numbers, order)
        np.testing.assert_allclose(distance, np.take_along_axis(everything, order, axis=1), rtol=1e-12)
        np.testing.assert_array_equal(neighbours.nearest(queries, pool, memory=memory)[0][:, 0], order[:, 0])


def test_nearest_leaves_out_the_item_or_its_group_and_says_when_nothing_is_left() -> None:
    pool = np.array([[0.0], [1.0], [10.0], [12.5]])
    numbers, distance = neighbours.nearest(pool, pool, without=np.arange(4))
    np.testing.assert_array_equal(numbers[:, 0], [1, 0, 3, 2])
    np.testing.assert_array_equal(distance[:, 0], [1, 1, 2.5, 2.5])
    groups = np.array([0, 0, 1, 1])
    numbers, distance = neighbours.nearest(pool, pool, without=groups, pool_groups=groups)
    np.testing.assert_array_equal(numbers[:, 0], [2, 2, 1, 1])
    numbers, distance = neighbours.nearest(pool[:1], pool[:1], without=np.array([0]))
    assert numbers[0, 0] == -1 and math.isinf(distance[0, 0])
    with pytest.raises(ValueError, match="NaN"):
        neighbours.nearest(np.array([[np.nan]]), pool)


def test_a_copy_far_from_the_origin_is_at_distance_zero() -> None:
    pool = cloud(20) * 1e-3 + 1e6
    numbers, distance = neighbours.nearest(pool[[7]], pool)
    assert numbers[0, 0] == 7 and distance[0, 0] == 0


def test_nearer_to_train_by_patient_is_wider_than_by_image() -> None:
    train, test = cloud(100, seed=1), cloud(100, seed=2)
    # Ten patients with ten images each, that lie together: ten draws, not a hundred.
    queries = np.repeat(cloud(10, seed=3), 10, axis=0)
    patients = np.repeat(np.arange(10), 10)
    by_image = memorisation.nearer_to_train(queries, train, test)
    by_patient = memorisation.nearer_to_train(queries, train, test, groups=patients)
    assert by_image.value == by_patient.value

    def width(ci: tuple[float, float]) -> float:
        return ci[1] - ci[0]

    assert width(by_patient.ci) > 2 * width(by_image.ci)
    # Which subset of a larger train is drawn widens it further.
    larger = memorisation.nearer_to_train(queries[::10], cloud(1000, seed=4), test, groups=range(10))
    assert larger.details["subset_sd"] > 0 and width(larger.ci) > 0.3
    assert larger.per_image[memorisation.NEARER].shape == (10,)


def test_membership_test_finds_copies_and_is_right_about_chance() -> None:
    fresh, train, test = cloud(60, seed=3), cloud(150, seed=1), cloud(50, seed=2)
    none = memorisation.membership_test(fresh, train, test, bootstrap=Bootstrap(300))
    assert none["expected"] == pytest.approx(0.75, abs=0.02)  # 150 of 200 real images were trained on
    assert none["p"] > 0.05
    copies = np.concatenate([fresh[:30], train[:30]])
    found = memorisation.membership_test(copies, train, test, bootstrap=Bootstrap(300))
    assert found["p"] < 0.02 and found["share"] > found["null"][1]
    result = memorisation.nearer_to_train(copies, train, test, bootstrap=Bootstrap(200))
    assert result.n == 60 and any("60 queries" in note for note in result.notes)


def test_membership_p_is_uniform_when_nothing_was_memorised() -> None:
    p = []
    for seed in range(120):
        everything = cloud(90, dim=2, seed=seed)
        p.append(memorisation.membership_test(*np.split(everything, 3), bootstrap=Bootstrap(99, seed))["p"])
    assert 0.0 <= np.mean(np.array(p) <= 0.05) <= 0.11  # 5 % expected, 2.3 sd above at most
    assert 0.4 < np.mean(p) < 0.65


# ------------------------------------------------------------------------------------------------------ AuthPct


def test_authenticity_by_hand() -> None:
    train = np.array([[0.0], [1.0], [10.0], [14.0]])
    # Nearest 1.0 (its own neighbour 1 away): 0.4 away copies it, 1.5 away does not. Nearest 10 (4 away): 3 copies.
    queries = np.array([[1.4], [2.5], [7.0]])
    result = authenticity(queries, train)
    np.testing.assert_array_equal(result.per_image["authentic"], [0, 1, 0])
    assert result.value == pytest.approx(1 / 3)
    assert authenticity(train, train).value == 0


def test_authenticity_is_not_fooled_by_a_second_image_of_the_same_patient() -> None:
    train = np.array([[0.0], [0.1], [10.0], [20.0]])  # the first two are one patient's
    query = np.array([[-0.5]])
    assert authenticity(query, train).value == 1
    assert authenticity(query, train, train_groups=["a", "a", "b", "c"]).value == 0


def test_authenticity_beside_unseen_images() -> None:
    train, unseen = cloud(200, seed=1), cloud(200, seed=2)
    result = authenticity(cloud(200, seed=3), train, unseen=unseen)
    real = result.ceiling
    assert real is not None and abs(result.value - real["value"]) < 0.15 and real["n"] == 200


# ---------------------------------------------------------------------------------------------- near-duplicates


def test_the_threshold_flags_its_quantile_of_unseen_images_and_all_copies() -> None:
    train, unseen = cloud(300, seed=1), cloud(200, seed=2)
    fresh = cloud(190, seed=3)
    queries = np.concatenate([fresh, train[:10] + 1e-3])
    result = near_duplicates(queries, train, unseen)
    flagged = result.per_image[FLAGGED]
    assert flagged[190:].all() and flagged[:190].mean() < 0.05
    pairs = result.details["pairs"]
    assert {(pair["query"], pair["train"]) for pair in pairs[:10]} == {(190 + i, i) for i in range(10)}
    assert [pair["distance"] for pair in pairs] == sorted(pair["distance"] for pair in pairs)
    assert near_duplicates(unseen, train, unseen).value == pytest.approx(0.01)
    few = near_duplicates(queries, train, unseen[:20])
    assert any("20 unseen images" in warning for warning in few.notes)


def test_recall_on_planted_copies_of_images() -> None:
    images = radiographs(60)
    kinds = damage.plant(images[:20])
    space = {name: neighbours.thumbnails(np.stack(each)) for name, each in kinds.items()}
    train = neighbours.thumbnails(np.stack(images))
    unseen = neighbours.thumbnails(np.stack(radiographs(100, seed=9)))
    threshold = near_duplicate_threshold(unseen, train)
    numbers = np.arange(20)
    found = planted_recall(space, numbers, train, threshold=threshold)
    assert found["exact"].value == found["exact"].details["right_source"] == 1
    assert found["brighter"].value > 0.9
    wrong = planted_recall(space, numbers[::-1], train, threshold=threshold)
    assert wrong["exact"].value == 1 and wrong["exact"].details["right_source"] == 0


def test_copies_that_are_brighter_or_cropped_are_found_among_views() -> None:
    images = np.stack(radiographs(40))
    kinds = {kind: neighbours.thumbnails(np.stack(each)) for kind, each in damage.plant(list(images[:15])).items()}
    unseen = neighbours.standardise(neighbours.thumbnails(np.stack(radiographs(150, seed=9))))
    pool = neighbours.train_views(images)
    assert pool.shape == (120, 1024)
    threshold = near_duplicate_threshold(unseen, pool)
    points = {kind: neighbours.standardise(each) for kind, each in kinds.items()}
    found = planted_recall(points, np.arange(15), pool, threshold=threshold, views=3)
    assert all(entry.details["right_source"] > 0.9 for entry in found.values()), found
    listed = near_duplicates(points["cropped"], pool, unseen, views=3).details["pairs"]
    assert all(pair["train"] == pair["query"] for pair in listed[:10])
    # A change of brightness and contrast changes nothing; a flat image is no division by zero.
    np.testing.assert_allclose(neighbours.standardise(0.5 * kinds["exact"] + 0.1), points["exact"], atol=1e-4)
    assert (neighbours.standardise(np.full((1, 9), 7.0)) == 0).all()


def test_prompts_by_frequency() -> None:
    training = ["Clear lungs.", "clear  lungs", *["left effusion"] * 20]
    counts = memorisation.prompt_counts(["clear lungs", "left effusion.", "hernia"], training)
    np.testing.assert_array_equal(counts, [2, 20, 0])
    sets = memorisation.prompt_counts([frozenset({"Mass"})], [frozenset({"Mass"}), frozenset()])
    np.testing.assert_array_equal(sets, [1])
    values = np.array([0.5, 1.0, 0.0])
    never, rarely, often = memorisation.by_frequency(values, counts)
    assert (never["value"], rarely["value"], often["value"]) == (0.0, 0.5, 1.0)
    empty = memorisation.by_frequency(values[:1], counts[:1])[0]
    assert empty["n"] == 0 and math.isnan(empty["value"])


# --------------------------------------------------------------------------------------------------- duplicates


def test_difference_hash_by_hand() -> None:
    ramp = np.tile(np.linspace(0, 255, 68).astype(np.uint8), (64, 1))
    assert duplicates.difference_hash([ramp]).all()
    assert not duplicates.difference_hash([ramp[:, ::-1]]).any()
    image = radiographs(1)[0]
    darker = (image // 2).astype(np.uint8)
    same = duplicates.difference_hash([image, darker, image])
    assert (same[0] != same[1]).sum() < 25 and (same[0] == same[2]).all()
    with pytest.raises(ValueError, match="uint8"):
        duplicates.difference_hash([image.astype(float)])


def test_families_join_chains() -> None:
    pairs = np.array([[3, 4], [1, 2], [2, 3]])
    np.testing.assert_array_equal(duplicates.families(pairs, 6), [0, 1, 1, 1, 1, 5])
    np.testing.assert_array_equal(duplicates.families(np.empty((0, 2), np.int64), 2), [0, 1])


def test_pairs_below_agree_with_all_pairs_whatever_the_memory() -> None:
    features = cloud(30)
    hashes = np.random.default_rng(0).integers(0, 2, (30, 16)).astype(np.uint8)
    expected = [
        (i, j)
        for i in range(30)
        for j in range(i + 1, 30)
        if np.linalg.norm(features[i] - features[j]) <= 3 and (hashes[i] != hashes[j]).sum() <= 7
    ]
    assert expected
    for memory in (1, 5000, 2**28):
        pairs, gap, bits = duplicates.pairs_below(
            features, hashes, feature_threshold=3, hash_threshold=7, memory=memory
        )
        assert [tuple(pair) for pair in pairs] == expected
        assert gap.max() <= 3 and bits.max() <= 7


def test_duplicates_within_counts_what_was_repeated() -> None:
    real, made = radiographs(60, seed=1), radiographs(60, seed=2)
    made[50:] = [made[0]] * 10  # eleven alike
    made[49] = damage.noise(made[1], 1, seed=0)

    def space(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return neighbours.thumbnails(np.stack(images)), duplicates.difference_hash(images)

    result = duplicates.duplicates_within(*space(made), *space(real))
    details = result.details
    assert result.value == pytest.approx(13 / 60)
    assert (details["distinct"], details["largest"], details["exact"]) == (49, 11, 11)
    clean = duplicates.duplicates_within(*space(made[:49]), *space(real))
    assert clean.value == 0 and clean.details["distinct"] == 49
    # Two images of one patient are no repetition.
    patients = [0, 1, *range(2, 49), 1, *[0] * 10]
    assert duplicates.duplicates_within(*space(made), *space(real), groups=patients).value == 0
    few = duplicates.duplicates_within(*space(made), *space(real[:20]))
    assert any("equal size" in warning for warning in few.notes)


def test_thresholds_are_quantiles_of_nearest_distances_in_bits_and_in_features() -> None:
    features, hashes = cloud(40), np.random.default_rng(0).integers(0, 2, (40, 64)).astype(np.uint8)
    apart = np.linalg.norm(features[:, None] - features, axis=2) + np.diag([np.inf] * 40)
    bits = (hashes[:, None] != hashes).sum(axis=2) + np.diag([np.inf] * 40)
    expected = np.quantile(apart.min(axis=1), 0.1), np.quantile(bits.min(axis=1), 0.1)
    assert duplicates.thresholds(features, hashes, quantile=0.1) == pytest.approx(expected)


def test_images_of_one_patient_do_not_set_the_threshold() -> None:
    real = radiographs(40, seed=1)
    real += [damage.noise(image, 1, seed=0) for image in real]
    patients = [*range(40), *range(40)]
    features, hashes = neighbours.thumbnails(np.stack(real)), duplicates.difference_hash(real)
    loose, _ = duplicates.thresholds(features, hashes, groups=patients)
    tight, _ = duplicates.thresholds(features, hashes)
    assert loose > 5 * tight


# --------------------------------------------------------------------------------------------- re-identification


def test_patient_pairs() -> None:
    patients = ["a", "a", "a", "b", "b", "c", "d"]
    same, different = reidentification.patient_pairs(patients, count=50)
    assert {tuple(pair) for pair in same} == {(0, 1), (0, 2), (1, 2), (3, 4)}
    assert len(different) == 21 - 4 and all(patients[a] != patients[b] for a, b in different)
    first, _ = reidentification.patient_pairs(patients, count=2)
    assert {patients[a] for a, _ in first} == {"a", "b"}  # one a patient before any second
    assert reidentification.patient_pairs(["a", "b"], count=3)[0].shape == (0, 2)


def toy(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """A siamese that compares mean grey levels."""
    return np.array([-abs(float(a.mean()) - float(b.mean())) for a, b in zip(first, second, strict=True)])


def flat(level: float) -> np.ndarray:
    return np.full((4, 4), level, np.uint8)


def test_reidentification_with_a_toy_siamese() -> None:
    # Patients are grey levels 20 apart, two images each, one level apart.
    train = [flat(20 * p + d) for p in range(10) for d in (0, 1)]
    unseen = [flat(20 * p + 10) for p in range(10)]
    patients = [p for p in range(10) for _ in range(2)]
    pairs, _ = reidentification.patient_pairs(patients, count=10)
    same = reidentification.scores(toy, train.__getitem__, train.__getitem__, pairs, batch_size=3)
    np.testing.assert_array_equal(same, -np.ones(10))

    def features(images: list[np.ndarray]) -> np.ndarray:
        return np.array([[image.mean()] for image in images])

    def nearest_scores(images: list[np.ndarray]) -> np.ndarray:
        near = neighbours.nearest(features(images), features(train))[0][:, 0]
        pairs = np.column_stack([np.arange(len(images)), near])
        return reidentification.scores(toy, images.__getitem__, train.__getitem__, pairs)

    different = nearest_scores(unseen)
    assert (different <= -9).all()
    copies = reidentification.reidentification(nearest_scores(train[::2]), same, different)
    assert copies.value == 1 and copies.details["power"]["value"] == 1
    assert copies.details["reidentified"]["value"] == 1
    strangers = reidentification.reidentification(different, same, different)
    assert strangers.value == 0.5 and strangers.details["reidentified"]["value"] == 0
    assert strangers.details["against_same"]["value"] == 1
    half = reidentification.reidentification(np.r_[nearest_scores(train[:10:2]), different[:5]], same, different)
    assert half.value == pytest.approx(0.5 + 0.5 * 0.5, abs=0.06)
    blind = reidentification.reidentification(different, different, different)
    assert any("AUROC 0.50" in warning for warning in blind.notes)


def test_a_siamese_that_gives_no_score_a_pair_is_an_error() -> None:
    images = [flat(1)] * 4
    pairs = np.array([[0, 1], [2, 3]])
    for bad in (lambda a, b: np.zeros(1), lambda a, b: np.full(2, np.nan)):
        with pytest.raises(ValueError, match="one finite score a pair"):
            reidentification.scores(bad, images.__getitem__, images.__getitem__, pairs)
