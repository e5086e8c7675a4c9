"""Linear probes of text encoders: the mathematics by hand, and the script on a few real reports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recipe import ROOT, load_script

from roentgen.errors import UserError
from roentgen.experiments.text_probe import (
    bag_of_words,
    fit_logistic,
    folds_of,
    judge,
    probe_report,
    probe_scores,
    summarise,
    training_sets,
    weighted_average_precision,
)
from roentgen.metrics.adherence.auroc import auroc, weighted_auroc
from roentgen.metrics.statistics import Bootstrap
from roentgen.models.hub import MINI


def made_up(n: int = 200, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = (x @ rng.normal(size=(d, 2)) + 0.3 * rng.normal(size=(n, 2)) > 0.5).astype(float)
    return x, y


@pytest.mark.parametrize("n", [200, 5])
def test_logistic_regression_is_at_its_minimum(n: int) -> None:
    x, y = made_up(n, 9)
    y[0, 0] = np.nan
    use = np.isfinite(y).astype(float)
    strengths = np.array([0.01, 1.0])
    weight, bias = fit_logistic(x, y, use, strengths)
    share = use / use.sum(axis=0)
    error = share * (1 / (1 + np.exp(-(x @ weight + bias))) - np.nan_to_num(y))
    assert np.abs(x.T @ error + strengths * weight).max() < 1e-4
    assert np.abs(error.sum(axis=0)).max() < 1e-4
    # Each regression is independent of its neighbours, and of reports that are not used.
    alone, _ = fit_logistic(x[1:], y[1:, :1], use[1:, :1], strengths[:1])
    assert np.allclose(alone[:, 0], weight[:, 0], atol=1e-3)


def test_one_class_only_gives_finite_weights() -> None:
    x, y = made_up(40)
    weight, bias = fit_logistic(x, np.zeros_like(y), np.c_[np.ones(40), np.zeros(40)], np.ones(2))
    assert np.isfinite(weight).all() and np.isfinite(bias).all() and np.abs(weight).max() < 1e-3


def test_average_precision_by_hand() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.0, 0.0, 1.0, 0.0])
    one = np.ones((1, 4))
    assert weighted_average_precision(scores, labels, one)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert weighted_average_precision(np.zeros(4), labels, one)[0] == pytest.approx(0.5)  # all pass together
    twice = np.array([[1.0, 2.0, 1.0, 0.0]])
    repeated = weighted_average_precision(scores[[0, 1, 1, 2]], labels[[0, 1, 1, 2]], one)
    assert weighted_average_precision(scores, labels, twice) == pytest.approx(repeated)
    assert np.isnan(weighted_average_precision(scores, labels, np.array([[0.0, 1.0, 0.0, 1.0]])))[0]


@pytest.mark.slow  # the import of torchmetrics
def test_average_precision_agrees_with_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 40, 300) / 40, rng.integers(0, 2, 300).astype(float)
    theirs = torchmetrics.functional.classification.binary_average_precision(
        torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
    )
    assert weighted_average_precision(scores, labels, np.ones((1, 300)))[0] == pytest.approx(float(theirs), abs=1e-6)


def test_folds_keep_patients_together() -> None:
    groups = [f"p{n % 20}" for n in range(100)]
    folds = folds_of(groups, 5, seed=0)
    assert all(len(set(folds[np.array(groups) == name])) == 1 for name in set(groups))
    assert np.bincount(folds).tolist() == [20] * 5
    assert (folds == folds_of(groups, 5, seed=0)).all() and (folds != folds_of(groups, 5, seed=1)).any()
    with pytest.raises(ValueError, match="fill"):
        folds_of(["a", "b"], 3, seed=0)


def test_small_training_sets_hold_half_positives_where_there_are_as_many() -> None:
    labels = np.zeros((100, 2))
    labels[:30, 0], labels[:3, 1], labels[50:, 1] = 1, 1, np.nan
    use = training_sets(labels, 16, seed=0)
    assert use.sum(axis=0).tolist() == [16, 16]
    assert (use * np.nan_to_num(labels)).sum(axis=0).tolist() == [8, 3]
    assert use[50:, 1].sum() == 0  # unknown labels teach nothing
    assert training_sets(labels, None, seed=0).sum(axis=0).tolist() == [100, 50]


@pytest.mark.parametrize("size", [None, 32])
def test_scores_are_held_out(size: int | None) -> None:
    x, y = made_up(300)
    folds = folds_of([str(n) for n in range(300)], 3, seed=0)
    scores = probe_scores(x, y, folds, size=size)
    assert min(auroc(scores[:, f], y[:, f]) for f in range(2)) > 0.9
    # The labels of a fold do not touch its own scores, and do touch the others'.
    changed = y.copy()
    changed[folds == 0] = 1 - changed[folds == 0]
    again = probe_scores(x, changed, folds, size=size)
    assert (again[folds == 0] == scores[folds == 0]).all()
    assert (again[folds != 0] != scores[folds != 0]).any()
    noise = probe_scores(np.random.default_rng(5).normal(size=(300, 6)), y, folds, size=size)
    assert abs(auroc(noise[:, 0], y[:, 0]) - 0.5) < 0.12


def test_differences_are_paired() -> None:
    x, y = made_up(200)
    folds = folds_of([str(n) for n in range(200)], 3, seed=0)
    weights = Bootstrap(100).weights(range(200))
    good = judge([probe_scores(x, y, folds)], y, weights)
    same = judge([probe_scores(3 * x, y, folds)] * 2, y, weights)
    change = summarise(same, good)["auroc"]
    assert change["macro"]["value"] == pytest.approx(0, abs=1e-3) and np.ptp(change["macro"]["ci"]) < 5e-3
    poor = summarise(good, judge([np.zeros_like(y)], y, weights))["auroc"]
    assert poor["findings"][0]["value"] == pytest.approx(good["auroc"][0].value - 0.5) and poor["macro"]["ci"][0] > 0.3
    assert good["auroc"][0].draws == pytest.approx(weighted_auroc(probe_scores(x, y, folds)[:, 0], y[:, 0], weights))


def test_bag_of_words() -> None:
    bag = bag_of_words(["No edema", "no mass", "Edema, EDEMA"], least=2)
    assert bag.tolist() == [[1, 1], [0, 1], [1, 0]]  # edema, no


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "eval/text_encoder_probe.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_script_compares_encoders(tmp_path: Path) -> None:
    pytest.importorskip("torchxrayvision")
    out, document = tmp_path / "probe.json", tmp_path / "doc.md"
    document.write_text("a\n<!-- results:text-encoder -->\n<!-- /results:text-encoder -->\nb\n")
    small = ("--limit=150", "--least=8", "--sizes", "16", "--draws=1", "--folds=3", "--resamples=50")
    done = run("--encoder", "mini", "--encoder", f"copy={MINI}", "--out", str(out), "--update", str(document), *small)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()
    assert result["details"]["encoders"] == ["mini", "copy"] and result["value"] == 0 and result["ci"] == [0, 0]
    assert result["model"]["mini"] == result["model"]["copy"]
    macro = {(r["features"], r["pool"], r["size"]): r["auroc"]["macro"]["value"] for r in result["details"]["runs"]}
    assert macro["mini", "mean", None] > 0.6 > macro["shuffled labels", "mean", None]
    assert "texts are cut at 64 tokens" in done.stderr
    assert "Lung Opacity" in document.read_text() and "+0.000" in document.read_text()
    # Without an encoder the stored result is put in the table; an old table is an error with --check.
    script, check = load_script("eval/text_encoder_probe.py"), ["--out", str(out), "--update", str(document), "--check"]
    assert script.main(check) == 0
    document.write_text(document.read_text().replace("Lung Opacity", "Opacity"))
    with pytest.raises(UserError, match="out of date"):
        script.main(check)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--encoder", "mini", "--encoder", "mini"), "same name"),
        (("--encoder", "radbart"), "--text-encoder radbart: unknown"),
        (("--encoder", "mini", "--reports", "no.tgz"), "no.tgz does not exist"),
        (("--encoder", "mini", "--limit", "20"), "lower --least"),
        ((), "no such result"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    pytest.importorskip("torchxrayvision")
    script = load_script("eval/text_encoder_probe.py")
    with pytest.raises(UserError, match=re.escape(said)):
        script.main([*flags, "--out", str(tmp_path / "x.json")])


def test_committed_result_makes_a_table() -> None:
    path = ROOT / "eval" / "results" / "text_encoder.json"
    result = json.loads(path.read_text())
    text = probe_report(result)
    assert "| Pneumothorax |" in text and "mini-finetuned − mini" in text
    assert result["details"]["encoders"] == ["mini", "mini-finetuned"] and result["n"] > 3500
