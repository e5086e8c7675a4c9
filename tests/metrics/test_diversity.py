"""MS-SSIM against the usual libraries, groups and pairs, distances in feature space."""

from __future__ import annotations

import numpy as np
import pytest

from roentgen.metrics.diversity import grouping as diversity
from roentgen.metrics.diversity.feature_distance import feature_figures, pair_distances, standardised
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim
from roentgen.metrics.statistics import Bootstrap


def pictures(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Two smooth pictures, a noisy copy and a negative: MS-SSIM from 0.9 down to 0."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(2, *shape)).cumsum(1).cumsum(2)
    low = smooth.min((1, 2), keepdims=True)
    base = (smooth - low) / np.ptp(smooth, axis=(1, 2), keepdims=True) * 200 + rng.uniform(0, 55, smooth.shape)
    noisy = np.clip(base[0] + rng.normal(0, 20, shape), 0, 255)
    return np.stack([base[0], base[1], noisy, 255 - base[1]]).astype(np.uint8)


PAIRS = np.array([(0, 1), (0, 2), (1, 3), (2, 3)])


@pytest.mark.parametrize("shape", [(176, 176), (192, 208)])
def test_ms_ssim_equals_pytorch_msssim(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("pytorch_msssim")
    images = pictures(shape)
    x, y = (torch.from_numpy(images[PAIRS[:, side]]).float()[:, None] / 255 for side in (0, 1))
    expected = reference.ms_ssim(x, y, data_range=1.0, size_average=False).numpy()
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(pair_ms_ssim(images, PAIRS), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(176, 176), (181, 199)])
def test_ms_ssim_equals_torchmetrics_with_its_mirrored_edges(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")
    images = pictures(shape)
    x, y = (torch.from_numpy(images[PAIRS[:, side]]).float()[:, None] / 255 for side in (0, 1))
    expected = image.multiscale_structural_similarity_index_measure(x, y, reduction="none", data_range=1.0).numpy()
    np.testing.assert_allclose(pair_ms_ssim(images, PAIRS, edges="mirror"), expected, atol=1e-5)


def test_ms_ssim_does_not_depend_on_batches_or_order() -> None:
    images = pictures((176, 176))
    whole = pair_ms_ssim(images, PAIRS)
    np.testing.assert_allclose(pair_ms_ssim(images, PAIRS, batch_size=1), whole, atol=1e-6)
    np.testing.assert_allclose(pair_ms_ssim(images, PAIRS[:, ::-1]), whole, atol=1e-6)
    every = np.array([(i, j) for i in range(4) for j in range(i + 1, 4)])
    values = pair_ms_ssim(np.concatenate([images, images[::-1]]), np.concatenate([every, 4 + every]), batch_size=7)
    np.testing.assert_allclose(values.reshape(2, -1).mean(axis=1), pair_ms_ssim(images, every).mean(), atol=1e-6)
    assert pair_ms_ssim(images, np.array([(2, 2)]))[0] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="edges"):
        pair_ms_ssim(images, PAIRS, edges="zeros")
    with pytest.raises(ValueError, match="176"):
        pair_ms_ssim(images[:, :100], PAIRS)


def test_images_of_one_kind_are_named_alike_in_every_process() -> None:
    from roentgen.metrics.pairing import kind_of
    from roentgen.prompts import parse

    # Clusters are drawn in the order of their names, and that of a set changes from process to process.
    assert str(kind_of(parse("edema and effusion, PA view"))) == "(('Edema', 'Effusion'), 'PA')"


def test_groups_are_whole_apart_and_spread() -> None:
    keys = ["a"] * 9 + ["b"] * 4 + ["c"] * 3 + [None] * 5
    groups = diversity.groups_of(keys)
    assert groups.shape == (3, 4) and len(np.unique(groups)) == 12
    assert all(len({keys[i] for i in group}) == 1 for group in groups)
    assert {keys[group[0]] for group in diversity.groups_of(keys, most=2)} == {"a", "b"}
    patients = [f"p{i // 3}" for i in range(9)]
    assert diversity.groups_of(["a"] * 9, size=4, apart=patients).shape == (0, 4)  # three patients cannot make four
    for group in diversity.groups_of(["a"] * 9, size=3, apart=patients):
        assert len({patients[i] for i in group}) == 3


def test_pairs_across_prompts_differ_and_do_not_repeat() -> None:
    keys = [i % 50 for i in range(300)]
    for wanted in (200, 10**6):
        pairs = diversity.pairs_across(keys, pairs=wanted)
        assert all(keys[i] != keys[j] for i, j in pairs)
        assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs)
    assert len(pairs) == 300 * 299 // 2 - 50 * 15
    assert len(diversity.pairs_across(["a", "a"])) == 0


def test_distances_by_hand() -> None:
    x = np.array([[1.0, 0], [0, 2], [-3, 0], [1, 0]])
    found = pair_distances(x, np.array([(0, 1), (0, 2), (0, 3)]))
    np.testing.assert_allclose(found["cosine"], [1, 2, 0], atol=1e-12)
    np.testing.assert_allclose(found["l2"], [np.sqrt(5 / 2), np.sqrt(16 / 2), 0], atol=1e-12)


def test_standardised_by_the_reference() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(3, 2, (500, 3))
    reference[:, 1] = 7.0  # does not vary
    z = standardised(reference, reference)
    assert z.shape == (500, 2)
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=1e-9)
    with pytest.raises(ValueError, match="NaN"):
        standardised(np.full((2, 3), np.nan), reference)
    with pytest.raises(ValueError, match="no dimension"):
        standardised(reference[:, 1:2], reference[:, 1:2])


def test_a_collapsed_generator_is_seen() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 16))
    kinds, patients = [i % 10 for i in range(400)], list(range(400))
    keys = [i // 4 for i in range(120)]
    varied = feature_figures(rng.normal(size=(120, 16)), real)
    one = rng.normal(size=(30, 16))[keys] + 0.1 * rng.normal(size=(120, 16))
    collapsed = feature_figures(one, real)
    groups, of_real = diversity.groups_of(keys), diversity.groups_of(kinds, apart=patients)
    within = diversity.within_groups(varied, groups, keys, bootstrap=Bootstrap(100))
    assert within["value"] == pytest.approx(1, abs=0.1) and within["n"] == 30
    assert within["l2"]["value"] == pytest.approx(np.sqrt(2), abs=0.1)
    beside = diversity.within_groups(feature_figures(real, real), of_real, kinds, bootstrap=Bootstrap(100))
    assert beside["value"] == pytest.approx(1, abs=0.1)
    alike = diversity.within_groups(collapsed, groups, keys, bootstrap=Bootstrap(100))
    across = diversity.across_groups(collapsed, keys, bootstrap=Bootstrap(100))
    assert alike["value"] < 0.05 and across["value"] == pytest.approx(1, abs=0.1)
    assert alike["ci"][0] <= alike["value"] <= alike["ci"][1]


def test_ms_ssim_within_and_across_beside_real() -> None:
    rng = np.random.default_rng(0)
    made = np.repeat(np.stack([pictures((176, 176), seed)[0] for seed in range(3)]), 4, axis=0)
    made = np.clip(made + rng.normal(0, 5, made.shape), 0, 255).astype(np.uint8)
    keys = [i // 4 for i in range(12)]
    real = np.concatenate([pictures((176, 176), seed)[:2] for seed in range(8, 12)])
    kinds = ["a"] * 4 + ["b"] * 4

    def of(images: np.ndarray) -> diversity.Figures:
        return lambda pairs: {"ms-ssim": pair_ms_ssim(images, pairs)}

    within = diversity.within_groups(of(made), diversity.groups_of(keys), keys, bootstrap=Bootstrap(20))
    across = diversity.across_groups(of(made), keys, 6, bootstrap=Bootstrap(20))
    assert within["value"] > 0.9 > 0.5 > across["value"] and across["n"] == 6
    groups = diversity.groups_of(kinds, apart=list(range(8)))
    beside = diversity.within_groups(of(real), groups, kinds, bootstrap=Bootstrap(20))
    assert beside["n"] == 2 and beside["value"] < within["value"]
    assert len(diversity.few_prompts({"within": within, "real_within": beside})) == 2
    assert len(diversity.groups_of(list(range(12)))) == 0
