"""FID, KID, precision, recall, density, coverage and FD-infinity: closed forms, other people's code, floors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from roentgen.metrics.distribution import frechet, kernel
from roentgen.metrics.distribution import pairs as distribution
from roentgen.metrics.distribution.fid import fd_infinity, fid, fid_by_finding
from roentgen.metrics.distribution.kernel import kid
from roentgen.metrics.distribution.pairs import Pair
from roentgen.metrics.distribution.prdc import SHARES, manifold_share, manifolds, radii
from roentgen.metrics.measure import Result
from roentgen.metrics.statistics import Bootstrap


def draws(n: int, dim: int = 8, *, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Correlated Gaussian features, float32 as a network gives them."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(dim, dim)) / np.sqrt(dim) + np.eye(dim)
    return (scale * (rng.normal(size=(n, dim)) @ mixing) + shift).astype(np.float32)


def streamed(features: np.ndarray, size: int) -> frechet.Moments:
    """Moments of features that come in batches of ``size``."""
    builder = frechet.MomentsBuilder(features.shape[1])
    for start in range(0, len(features), size):
        builder.add(features[start : start + size])
    return builder.finish()


# --------------------------------------------------------------------------------------------- Frechet


def test_fid_is_torch_fidelitys_and_clean_fids() -> None:
    """Unequal n, on the same features."""
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    clean = pytest.importorskip("cleanfid.fid")
    import torch

    for n, m, dim in ((300, 190, 24), (40, 60, 64)):  # the second has singular covariances
        a, b = draws(n, dim), draws(m, dim, shift=0.3, scale=1.3, seed=1)
        statistics = [theirs.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
        ours = frechet.frechet_distance(frechet.moments(a), frechet.moments(b))
        expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        assert ours == pytest.approx(expected, rel=1e-5)
        assert ours == pytest.approx(frechet.frechet_distance(frechet.moments(b), frechet.moments(a)), rel=1e-5)
        if n > dim:
            assert ours == pytest.approx(clean.fid_from_feats(a.astype(float), b.astype(float)), rel=1e-6)


def test_two_gaussians_by_hand() -> None:
    """Diagonal covariances: |m|^2 + sum (sd_a - sd_b)^2, with moments given and not sampled."""
    sd_a, sd_b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    a = frechet.Moments(101, np.zeros(3), np.diag(sd_a**2) * 100)
    b = frechet.Moments(51, np.array([1.0, -2.0, 0.0]), np.diag(sd_b**2) * 50)
    assert frechet.frechet_distance(a, b) == pytest.approx(5 + (4 + 1 + 0), rel=1e-12)
    assert frechet.trace_root(a, b) == pytest.approx((sd_a * sd_b).sum(), rel=1e-12)


def test_identical_sets_give_zero() -> None:
    for x in (draws(200, 16), draws(10, 16), np.repeat(draws(30, 4), 2, axis=1)):  # full rank, few, repeated columns
        whole = frechet.moments(x)
        scale = np.trace(whole.covariance)
        assert frechet.frechet_distance(whole, whole) <= 1e-6 * scale
        assert frechet.frechet_distance(whole, frechet.moments(x[::-1])) <= 1e-6 * scale


def test_order_and_batches_change_nothing() -> None:
    x, y = draws(2500, 12), draws(2500, 12, shift=0.2, seed=1)
    expected = frechet.frechet_distance(frechet.moments(x), frechet.moments(y))
    order = np.random.default_rng(0).permutation(len(x))
    for size in (1, 37, 1024, 2500):
        mixed = streamed(x[order], size)
        assert mixed.n == 2500
        assert frechet.frechet_distance(mixed, frechet.moments(y)) == pytest.approx(expected, rel=1e-9)


def test_builder_takes_empty_batches_and_refuses_nothing_at_all() -> None:
    builder = frechet.MomentsBuilder(4)
    with pytest.raises(ValueError, match="no features"):
        builder.finish()
    builder.add(np.empty((0, 4)))
    builder.add(draws(3, 4))
    assert builder.finish().n == 3


def test_merging_without_processes_is_the_same() -> None:
    own = frechet.moments(draws(5))
    assert frechet.merge_across_processes(own) is own


def test_trace_root_is_right() -> None:
    """How much faster than scipy it is, at 2048 dimensions: benchmarks/eval.py."""
    linalg = pytest.importorskip("scipy.linalg")
    a = frechet.moments(draws(500, 384))
    b = frechet.moments(draws(500, 384, scale=1.5, seed=1))
    theirs = np.trace(linalg.sqrtm(a.covariance @ b.covariance)).real
    assert frechet.trace_root(a, b) == pytest.approx(theirs, rel=1e-6)


def test_interval_draws_patients_whole() -> None:
    """Copies of each image under one patient add nothing; as images of their own they would."""
    x, y = draws(60, 4), draws(60, 4, shift=0.5, seed=1)
    twice_x, twice_y = np.repeat(x, 8, axis=0), np.repeat(y, 8, axis=0)
    groups = np.repeat(np.arange(60), 8).tolist()
    low, high = frechet.frechet_interval(x, y, bootstrap=Bootstrap(200))
    by_patient = frechet.frechet_interval(twice_x, twice_y, groups_a=groups, groups_b=groups, bootstrap=Bootstrap(200))
    by_image = frechet.frechet_interval(twice_x, twice_y, bootstrap=Bootstrap(200))
    assert by_patient[1] - by_patient[0] == pytest.approx(high - low, rel=0.15)
    assert by_image[1] - by_image[0] < 0.6 * (high - low)


def test_fd_infinity_takes_the_bias_away() -> None:
    """Two samples of one distribution: the distance falls with n and the extrapolation is near its floor."""
    x, y = draws(3000, 16), draws(20000, 16, seed=1)
    line = fd_infinity(Pair(x, y, resamples=2))
    at_n = frechet.frechet_distance(frechet.moments(x), frechet.moments(y))
    first, *_, last = line.details["points"]
    assert first["n"] == 300 and last == {"n": 3000, "value": pytest.approx(at_n, rel=1e-12)}
    assert line.details["slope"] > 0 and abs(line.value) < at_n < first["value"]
    # Known distance: unit shift of every feature.
    shifted = fd_infinity(Pair(x + 1, y, resamples=2))
    assert shifted.value == pytest.approx(16, abs=1.2)
    with pytest.raises(ValueError, match="too few"):
        fd_infinity(Pair(x[:2], y))


# ------------------------------------------------------------------------------------------------ KID


def test_kid_is_torch_fidelitys() -> None:
    """The same subsets for the same seed, unequal n."""
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    import torch

    a, b = draws(90, 16), draws(70, 16, shift=0.2, seed=1)
    expected = theirs.kid_features_to_metric(
        torch.from_numpy(a).double(),
        torch.from_numpy(b).double(),
        kid_subsets=15,
        kid_subset_size=32,
        rng_seed=2020,
        verbose=False,
    )
    found = kid(Pair(a, b, resamples=2), subsets=15, subset_size=32)
    assert found.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert found.details["sd_over_subsets"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


def test_kid_of_all_images_is_clean_fids() -> None:
    """clean-fid draws its subsets from numpy's global state; where they are everything, nothing is drawn."""
    clean = pytest.importorskip("cleanfid.fid")
    a, b = draws(60, 16).astype(float), draws(60, 16, shift=0.2, seed=1).astype(float)
    expected = clean.kernel_distance(a, b, num_subsets=1, max_subset_size=1000)
    assert kernel.mmd2(a, b) == pytest.approx(expected, rel=1e-9)


def test_mmd_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(7, 3).astype(float), draws(5, 3, shift=1, seed=1).astype(float)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    expected = (
        np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        + np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        - 2 * np.mean([k(a, b) for a in x for b in y])
    )
    for rows in (2, 512):
        monkeypatch.setattr(kernel, "ROWS", rows)
        assert kernel.mmd2(x, y) == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased_and_its_subsets_are_not_the_whole_set() -> None:
    values = [
        kid(Pair(draws(40, seed=2 * i), draws(40, seed=2 * i + 1), resamples=2), subsets=5).value for i in range(60)
    ]
    assert abs(np.mean(values)) < 2.5 * np.std(values) / np.sqrt(60) and min(values) < 0
    found = kid(Pair(draws(41), draws(300, seed=1), resamples=200), subsets=30)
    assert found.details["subset_size"] == 20 and found.details["sd_over_subsets"] > 0
    assert found.ci[0] < found.details["all_images"] < found.ci[1]
    large = kid(Pair(draws(2500), draws(2400, seed=1), resamples=2), subsets=2)
    assert large.details["subset_size"] == 1000
    with pytest.raises(ValueError, match="do not fit"):
        kid(Pair(draws(10), draws(10)), subset_size=11)


# ----------------------------------------------------------------------------------------------- PRDC


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(60, 60), (45, 80), (80, 45)])
def test_prdc_is_the_reference(k: int, n: int, m: int, capsys: pytest.CaptureFixture[str]) -> None:
    reference = pytest.importorskip("prdc")
    for shift, scale in ((0.0, 1.0), (0.8, 0.6), (6.0, 1.0)):
        real, synthetic = draws(m, 6), draws(n, 6, shift=shift, scale=scale, seed=1)
        expected = reference.compute_prdc(real, synthetic, nearest_k=k)
        for rows in (7, 512):
            found = manifolds(real, synthetic, k=k, rows=rows)
            for name in ("precision", "recall", "density", "coverage"):
                assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12), (name, shift)


def test_prdc_of_known_sets() -> None:
    """On a line: real at 0..9, neighbours 1 apart."""
    real = np.arange(10.0)[:, None]
    np.testing.assert_allclose(radii(real, 1), 1, atol=1e-9)
    np.testing.assert_allclose(radii(real, 2), [2, 1, 1, 1, 1, 1, 1, 1, 1, 2], atol=1e-9)
    # Three generated points in the middle and one far off; balls of real ones reach 1, strictly.
    found = manifolds(real, np.array([[4.4], [4.5], [4.6], [50.0]]), k=1)
    assert found.precision == 0.75 and found.density == 1.5 and found.coverage == 0.2
    same = manifolds(real, real, k=2)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = manifolds(real, real + 1000, k=2)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="at least 6"):
        manifolds(real, real[:5])


def test_mode_collapse_is_recall_and_coverage() -> None:
    real = draws(400, 6)
    few = np.repeat(draws(10, 6, seed=1), 40, axis=0) + draws(400, 6, scale=1e-3, seed=2)
    whole, collapsed = manifolds(real, draws(400, 6, seed=3)), manifolds(real, few)
    assert collapsed.recall < 0.2 < whole.recall and collapsed.coverage < 0.3 < whole.coverage


# -------------------------------------------------------------------------------------------- as results


@pytest.fixture
def pair() -> Pair:
    patients = np.repeat(np.arange(100), 3).tolist()
    return Pair(draws(150, 6, shift=2), draws(300, 6, seed=1), None, patients, resamples=50)


METRICS: dict[str, Callable[[Pair], Result]] = {"fid": fid, "kid": kid, "fd_infinity": fd_infinity}
METRICS |= {name: partial(manifold_share, name=name) for name in SHARES}


def measured(name: str, pair: Pair) -> Result:
    return distribution.against_real(METRICS[name], pair, bound="floor", falls_with_n=name in ("fid", "fd_infinity"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_result_with_a_floor(name: str, pair: Pair) -> None:
    found = measured(name, pair)
    low, high = found.ci
    assert low <= found.value <= high and found.n == 150 and "%" in found.ci_method
    floor = found.floor
    assert floor is not None
    better = (
        floor["value"] > found.value
        if name in ("precision", "recall", "density", "coverage")
        else (floor["value"] < found.value)
    )
    assert better and floor["n"] + floor["real_n"] in (300, 2 * min(floor["n"], floor["real_n"]))
    assert found == measured(name, replace(pair))  # nothing is left to chance


def test_floor_halves_share_no_patient(pair: Pair) -> None:
    halves = pair.halves
    assert halves is not None and halves.synthetic_groups and halves.real_groups
    assert not set(halves.synthetic_groups) & set(halves.real_groups)
    assert len(halves.synthetic) + len(halves.real) == 300 and abs(len(halves.synthetic) - 150) <= 3
    one_patient = replace(pair, real_groups=[0] * 300)
    assert one_patient.halves is None
    found = measured("precision", one_patient)
    assert found.floor is None and any("too few real" in line for line in found.notes)


def test_fid_is_held_against_the_floor_at_equal_n(pair: Pair) -> None:
    at_n = measured("fid", pair).details["at_floor_n"]
    assert at_n["n"] in (149, 150, 151, 147, 153) and at_n["floor"] < at_n["value"]


def test_small_n_is_a_warning() -> None:
    few = Pair(draws(20, 32), draws(30, 32, seed=1), resamples=20)
    assert any("not above the feature dimension 32" in line for line in fid(few).notes)
    assert any("not to be trusted" in line for line in fd_infinity(few).notes)
    assert any("subsets of 10" in line for line in kid(few).notes)
    assert any("n = 20" in line for line in manifold_share(few, "coverage").notes)
    many = Pair(draws(200, 4), draws(300, 4, seed=1), resamples=20)
    assert fid(many).notes == []


def test_per_finding(pair: Pair) -> None:
    """Effusion is generated as it is, cardiomegaly far off, and of hernia there are too few."""
    synthetic = {name: np.zeros(150) for name in ("Effusion", "Cardiomegaly", "Hernia")}
    real = {name: np.zeros(300) for name in ("Effusion", "Cardiomegaly", "Hernia")}
    synthetic["Effusion"][:70] = synthetic["Cardiomegaly"][70:] = synthetic["Hernia"][:5] = 1
    real["Effusion"][:150] = real["Cardiomegaly"][150:] = real["Hernia"][:200] = 1
    real["Effusion"][299] = np.nan
    features = np.concatenate([draws(70, 6), draws(80, 6, shift=4)])
    found = fid_by_finding(replace(pair, synthetic=features), synthetic, real)
    assert found["Effusion"].value < 5 < found["Cardiomegaly"].value
    assert (found["Effusion"].n, found["Effusion"].details["real_n"]) == (70, 150)
    assert np.isnan(found["Hernia"].value) and "at least 50" in found["Hernia"].notes[0]


@pytest.mark.parametrize("name", METRICS)
def test_nan_features_are_refused(name: str, pair: Pair) -> None:
    broken = pair.synthetic.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        METRICS[name](replace(pair, synthetic=broken))


def test_distances_grow_with_the_damage() -> None:
    for name in ("fid", "kid"):
        values = [
            METRICS[name](Pair(draws(200, 6, shift=s), draws(200, 6, seed=1), resamples=5)).value for s in (0, 0.5, 1)
        ]
        assert all(low < high for low, high in pairwise(values))


def test_both_ways_to_the_distance_of_features_agree() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 12)), rng.normal(0.3, 1.2, size=(50, 12))
    whole = frechet.frechet_distance(frechet.moments(x), frechet.moments(y))
    assert frechet.feature_distance(x, y) == pytest.approx(whole, rel=1e-9)
    few = frechet.frechet_distance(frechet.moments(x[:8]), frechet.moments(y[:9]))
    assert frechet.feature_distance(x[:8], y[:9]) == pytest.approx(few, rel=1e-7)
