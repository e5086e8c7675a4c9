"""Metrics against closed forms, definitions written out, and independent implementations."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from roentgen import files, provenance
from roentgen.data.prompt_table import LabelledPrompt, read_labelled_prompts
from roentgen.errors import UserError
from roentgen.metrics import neighbours, result
from roentgen.metrics.adherence import auroc, laterality
from roentgen.metrics.distribution import frechet
from roentgen.metrics.diversity.grouping import within_groups
from roentgen.metrics.diversity.ms_ssim import pair_ms_ssim
from roentgen.metrics.memorisation import nearness as memorisation
from roentgen.metrics.report import tables as report
from roentgen.metrics.statistics import Bootstrap, percentile_interval, wilson_interval
from roentgen.prompts import Labels

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------------------------- bootstrap


def test_clusters_are_drawn_whole() -> None:
    groups = ["a", "b", "a", "c", "c", "c"]
    weights = Bootstrap(500, 1).weights(groups)
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many clusters as there are
    assert np.array_equal(weights, Bootstrap(500, 1).weights(groups))
    assert not np.array_equal(weights, Bootstrap(500, 2).weights(groups))


def test_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = Bootstrap(4000).mean(values)["ci"]
    standard_error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.15 * standard_error)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.15 * standard_error)
    # Copies within a patient are no further evidence: ten copies of each leave the width as it was.
    copied = Bootstrap(4000).mean(np.repeat(values, 10), np.repeat(np.arange(400), 10))["ci"]
    assert copied[1] - copied[0] == pytest.approx(high - low, rel=0.1)


def test_interval_of_nothing_is_nan() -> None:
    assert np.isnan(percentile_interval([np.nan, np.nan])).all()
    with pytest.raises(ValueError, match="at least one item"):
        Bootstrap(10).weights([])


# -------------------------------------------------------------------------------------------- AUROC


def pairwise_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    return float(np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]))


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_counts_pairs_and_ties(levels: int) -> None:
    scores = RNG.integers(levels, size=70).astype(float)
    labels = (RNG.random(70) < 0.3).astype(float)
    assert auroc.auroc(scores, labels) == pytest.approx(pairwise_auroc(scores, labels), abs=1e-12)


def test_auroc_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores, labels = RNG.normal(size=200).round(1), (RNG.random(200) < 0.4).astype(float)
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    expected = u / (labels.sum() * (1 - labels).sum())
    assert auroc.auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_weights_are_copies() -> None:
    scores, labels = RNG.integers(5, size=30).astype(float), (RNG.random(30) < 0.5).astype(float)
    weights = RNG.integers(0, 4, size=(6, 30)).astype(float)
    values = auroc.weighted_auroc(scores, labels, weights)
    for value, row in zip(values, weights.astype(int), strict=True):
        copied = pairwise_auroc(np.repeat(scores, row), np.repeat(labels, row))
        assert value == pytest.approx(copied, abs=1e-12)


def test_auroc_extremes_and_bad_input() -> None:
    labels = np.array([0.0, 0, 1, 1])
    assert auroc.auroc(np.array([1.0, 2, 3, 4]), labels) == 1
    assert auroc.auroc(np.array([4.0, 3, 2, 1]), labels) == 0
    assert auroc.auroc(np.ones(4), labels) == 0.5
    assert np.isnan(auroc.auroc(np.ones(4), np.ones(4)))
    with pytest.raises(ValueError, match="finite"):
        auroc.auroc(np.array([1.0, np.nan, 3, 4]), labels)


def test_macro_leaves_out_rare_findings_and_unknown_labels() -> None:
    n = 100
    labels = np.zeros((n, 3))
    labels[:40, 0] = 1
    labels[:9, 1] = 1  # one too few
    labels[:, 2] = np.nan
    labels[:30, 2], labels[30:60, 2] = 1, 0
    scores = np.where(np.isnan(labels), 0.5, labels) + RNG.normal(0, 0.7, (n, 3))
    scores[60:, 2] = 99  # unknown: must not count
    weights = Bootstrap(200).weights(range(n))
    macro = auroc.macro_auroc(scores, labels, ["A", "B", "C"], weights)
    assert macro.names == ["A", "C"]
    a, b, c = macro.findings
    assert [b[key] for key in ("positives", "negatives", "in_macro")] == [9, 91, False]
    assert (c["positives"], c["negatives"]) == (30, 30)
    assert c["value"] == pytest.approx(pairwise_auroc(scores[:60, 2], labels[:60, 2]))
    assert macro.value == pytest.approx((a["value"] + c["value"]) / 2)
    assert macro.ci[0] < macro.value < macro.ci[1]
    alone = auroc.macro_auroc(scores, labels, ["A", "B", "C"], weights, leave_out=["C"])
    assert alone.names == ["A"] and alone.value == pytest.approx(a["value"])


def test_macro_of_nothing_is_nan() -> None:
    macro = auroc.macro_auroc(np.zeros((4, 1)), np.zeros((4, 1)), ["A"], np.ones((3, 4)))
    assert np.isnan(macro.value) and macro.names == []


# ---------------------------------------------------------------------------------- Frechet distance


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int) -> np.ndarray:
    """n points whose sample mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_two_gaussians_by_hand() -> None:
    # Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2 = (3^2 + 4^2) + (1 - 2)^2 + (3 - 1)^2 = 30.
    a = with_moments(np.array([0.0, 0]), np.diag([1.0, 9]), 50)
    b = with_moments(np.array([3.0, 4]), np.diag([4.0, 1]), 60)
    assert frechet.frechet_distance(frechet.moments(a), frechet.moments(b)) == pytest.approx(30, rel=1e-9)
    assert frechet.frechet_distance(frechet.moments(a), frechet.moments(a)) == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_the_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a = RNG.normal(size=(40, 6)) @ RNG.normal(size=(6, 6))
    b = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    value = frechet.frechet_distance(frechet.moments(a), frechet.moments(b))
    assert value == pytest.approx(expected, rel=1e-9)


def test_streaming_moments_do_not_depend_on_the_batches() -> None:
    x = RNG.normal(size=(57, 4)) + 1000
    whole = frechet.moments(x)
    for size in (1, 10, 56):
        builder = frechet.MomentsBuilder(4)
        for start in range(0, 57, size):
            builder.add(x[start : start + size])
        parts = builder.finish()
        assert parts.n == 57
        np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(parts.covariance, np.cov(x.T), rtol=1e-9)


@pytest.mark.parametrize("dimension", [5, 80])  # fewer and more than there are points
def test_weighted_frechet_is_that_of_copies(dimension: int) -> None:
    x, y = RNG.normal(size=(30, dimension)), RNG.normal(size=(40, dimension)) * 2 + 1
    u, v = RNG.integers(0, 3, 30), RNG.integers(0, 3, 40)
    value = frechet.weighted_frechet(x, y, x @ y.T, u.astype(float), v.astype(float))
    copies = frechet.moments(np.repeat(x, u, axis=0)), frechet.moments(np.repeat(y, v, axis=0))
    # eigenvalues of singular matrices are zero to 1e-16 of the largest, and their roots to 1e-8 of it
    assert value == pytest.approx(frechet.frechet_distance(*copies), rel=1e-5)


def test_frechet_interval_holds_the_value() -> None:
    x, y = RNG.normal(size=(60, 3)), RNG.normal(size=(60, 3)) + 1
    value = frechet.frechet_distance(frechet.moments(x), frechet.moments(y))
    low, high = frechet.frechet_interval(x, y, bootstrap=Bootstrap(60))
    assert low < value < high < 3 * value
    same = Bootstrap(5).weights(range(60))  # an image and its copy, drawn together
    assert frechet.resampled_distance(x, x, zip(same, same, strict=True)).draws == pytest.approx(0, abs=1e-9)


def test_frechet_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        frechet.moments(np.array([[1.0, np.nan]]))


# ------------------------------------------------------------------------------------------ MS-SSIM


def test_ms_ssim_of_copies_is_one_and_of_noise_low() -> None:
    image = RNG.integers(0, 256, (176, 176), dtype=np.uint8)
    images = np.stack([*[image] * 3, *RNG.integers(0, 256, (3, 176, 176), dtype=np.uint8)])
    pairs = np.array([(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)])
    found = pair_ms_ssim(images, pairs, batch_size=6)
    assert found[:3] == pytest.approx(1, abs=1e-5)
    assert found[3:].max() < 0.3
    np.testing.assert_allclose(pair_ms_ssim(images, pairs, batch_size=3), found, atol=1e-6)


def test_ms_ssim_within_a_group_averages_all_pairs() -> None:
    images = RNG.integers(0, 256, (3, 176, 176), dtype=np.uint8)
    images[1] = images[0]
    images[2] = 255 - images[0] // 2
    pairs = [pair_ms_ssim(images, np.array([pair]))[0] for pair in ((0, 1), (0, 2), (1, 2))]
    groups = np.array([[0, 1, 2]])
    found = within_groups(
        lambda chosen: {"ms-ssim": pair_ms_ssim(images, chosen)}, groups, "aaa", bootstrap=Bootstrap(2)
    )
    assert found["value"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_ms_ssim_refuses_small_images() -> None:
    with pytest.raises(ValueError, match="176"):
        pair_ms_ssim(np.zeros((2, 175, 175), np.uint8), np.array([(0, 1)]))


# ------------------------------------------------------------------------------------- memorisation


def test_planted_copies_are_found() -> None:
    train, test = RNG.normal(size=(200, 8)), RNG.normal(size=(200, 8))
    fresh = RNG.normal(size=(60, 8))
    copies = train[20:80] + RNG.normal(0, 1e-3, (60, 8))
    found = memorisation.nearer_to_train(copies, train, test)
    assert found.value == 1 and found.details["subsets"] == 1
    assert found.per_image[memorisation.NEAREST].tolist() == list(range(20, 80))
    assert found.per_image[memorisation.DISTANCE].max() < 0.02
    half = memorisation.nearer_to_train(np.concatenate([copies, fresh]), train, test, bootstrap=Bootstrap(200))
    assert half.value == pytest.approx(0.75, abs=0.1)
    assert half.ci[0] < half.value < half.ci[1]


def test_a_larger_train_set_is_no_memorisation() -> None:
    train, test, fresh = (RNG.normal(size=(n, 6)) for n in (2000, 200, 300))
    found = memorisation.nearer_to_train(fresh, train, test, bootstrap=Bootstrap(200))
    assert found.details["pool"] == 200 and found.details["subsets"] == 20
    assert found.value == pytest.approx(0.5, abs=0.08)  # without equal pools it is about 0.9
    to_train, to_test = cdist(fresh, train), cdist(fresh, test)
    assert (to_train.min(axis=1) < to_test.min(axis=1)).mean() > 0.8


def test_ties_count_half() -> None:
    pool = RNG.normal(size=(20, 3))
    assert memorisation.nearer_to_train(pool[:5], pool, pool).value == 0.5


def test_thumbnails_are_block_means() -> None:
    images = RNG.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    small = neighbours.thumbnails(images, 32).reshape(2, 32, 32)
    means = images.reshape(2, 32, 2, 32, 2).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(small, means, atol=1e-5)


# --------------------------------------------------------------------------------------- laterality


def test_wilson_by_hand() -> None:
    # 8 of 10: (0.8 + z2/20 +- z sqrt(0.016 + z2/400)) / (1 + z2/10) with z = 1.96, Newcombe 1998.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    assert np.isnan(wilson_interval(0, 0)).all()


def test_side_accuracy() -> None:
    sides = ["left", "left", "right", "right"]
    found = laterality.side_accuracy(np.array([2.0, -1, -3, 0]), sides)
    assert [found[key] for key in ("n", "value", "left", "right")] == [4, 0.5, 0.5, 0.5]  # a tie is wrong
    assert found["auroc"] == 0.75
    assert laterality.side_accuracy(np.array([5.0, 4, 1, 2]), sides, threshold=3)["value"] == 1
    assert np.isnan(laterality.side_accuracy(np.empty(0), [])["value"])
    with pytest.raises(ValueError, match="left or right"):
        laterality.side_accuracy(np.zeros(1), ["bilateral"])


def test_brightness_knows_that_the_patients_left_is_on_the_right() -> None:
    images = np.full((3, 60, 60), 100, np.uint8)
    images[0, 40:, 50:] = 200  # fluid at the patient's left base
    images[1, 40:, :10] = 200
    images[2, :30, 50:] = 20  # air at the patient's left apex
    effusion = laterality.brightness_asymmetry(images, "Effusion")
    assert effusion.tolist() == [100, -100, 0]
    assert laterality.brightness_asymmetry(images, "Pneumothorax")[2] == 80


# ------------------------------------------------------------------------------------------ pairing


def rows_of(*rows: dict[str, object]) -> pd.DataFrame:
    blank = {"view": "PA", "sex": "M", "age": 50.0, "patient_id": "p", "text": "", "source": "s"}
    table = pd.DataFrame([{**blank, **row} for row in rows])
    for finding in ("No Finding", "Effusion", "Mass"):
        if finding not in table:
            table[finding] = np.nan
    return table


def labelled(identifier: str, *findings: str, age: float = 50.0) -> LabelledPrompt:
    return LabelledPrompt(identifier, "text", Labels(findings, {}, "PA", "M", age))


def test_labelled_prompts(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    header, one = "id,prompt,labels,view,sex,age", "a,Left effusion,Effusion:left;Mass,PA,,51"
    path.write_text("\n".join([header, one, "b,Clear,No Finding,,,"]))
    first, second = read_labelled_prompts(path)
    assert first.labels == Labels(("Effusion", "Mass"), {"Effusion": "left"}, "PA", None, 51.0)
    assert second.labels == Labels(("No Finding",))
    path.write_text("id,prompt,labels\na,x,Efusion\n")
    with pytest.raises(UserError, match="Efusion"):
        read_labelled_prompts(path)
    path.write_text("id,prompt\na,x\n")
    with pytest.raises(UserError, match="labels"):
        read_labelled_prompts(path)


def test_the_repositorys_evaluation_list_can_be_read() -> None:
    prompts = read_labelled_prompts(provenance.ROOT / "prompts" / "evaluation.csv")
    assert len(prompts) >= 1000


# ------------------------------------------------------------------------------------------ results


@dataclass(frozen=True)
class Flags:
    manifest: Path
    seed: int = 0


def context(**changes: object) -> result.Context:
    values: dict[str, object] = {
        "extractor": "x",
        "resize": "none",
        "seed": 0,
        "settings": {},
        "model": {"hash": "h"},
        "inputs": {},
        "command": "python eval/mini.py",
    }
    return result.Context(**{**values, **changes})  # type: ignore[arg-type]


def test_results_are_whole_and_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.json"
    written = result.write_result(
        path,
        metric="m",
        value=np.float64(0.5),
        ci=(float("nan"), 1.0),
        ci_method="none",
        n=3,
        context=context(),
        details={"a": np.arange(2), "b": (True, None, Path("x"))},
    )
    assert result.read_result(path) == written
    assert written["value"] == 0.5 and written["ci"] == [None, 1.0] and written["n"] == 3
    assert written["details"] == {"a": [0, 1], "b": [True, None, "x"]}
    assert set(result.KEYS) <= set(written)
    assert [item.name for item in path.parent.iterdir()] == ["r.json"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(UserError, match="no such result"):
        result.read_result(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        result.read_result(path)
    path.write_text(json.dumps({"metric": "m"}))
    with pytest.raises(UserError, match="no value"):
        result.read_result(path)


def test_no_path_of_a_machine_is_published(tmp_path: Path) -> None:
    assert provenance.portable(str(provenance.ROOT / "prompts" / "x.csv")) == str(Path("prompts/x.csv"))
    assert provenance.portable(tmp_path / "secret" / "m.csv") == "m.csv"
    assert provenance.portable("../../elsewhere/m.csv") == "m.csv"
    assert provenance.portable("mini") == "mini" and provenance.portable(3) == 3
    command = provenance.command_line("eval/mini.py", Flags(tmp_path / "m.csv"))
    assert command == "python eval/mini.py --manifest=m.csv"


def test_git_state_outside_git_is_null(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) == {"commit": None, "modified": None}
    assert provenance.git_state(provenance.ROOT / "tests")["commit"] is None  # below a checkout, but not one


def test_hash_of_a_folder_sees_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("1")
    first = files.file_hash(tmp_path / "f")
    assert first == files.file_hash(tmp_path / "f")
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "b")
    assert files.file_hash(tmp_path / "f") != first
    with pytest.raises(UserError, match="cannot be read"):
        files.file_hash(tmp_path / "none")


def test_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("top\n<!-- results:mini -->\nold\n<!-- /results:mini -->\nend\n")
    assert report.replace_between_markers(page, "mini", r"new \1", write=False)
    assert "old" in page.read_text()
    assert report.replace_between_markers(page, "mini", r"new \1")
    assert page.read_text() == "top\n<!-- results:mini -->\n\nnew \\1\n\n<!-- /results:mini -->\nend\n"
    assert not report.replace_between_markers(page, "mini", r"new \1")
    page.write_text("no markers")
    with pytest.raises(UserError, match="results:mini"):
        report.replace_between_markers(page, "mini", "x")


def test_figures() -> None:
    entry = {"value": 0.756, "ci": [0.7, 0.8], "n": 12}
    assert report.figure(entry) == "0.76 [0.70, 0.80]"
    assert report.figure(entry, digits=1, count=True) == "0.8 [0.7, 0.8], n = 12"
    assert report.figure(None) == report.figure({"value": None}) == "–"
