"""Figures of a run reach the trackers that are asked for; one that is missing is one sentence."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from roentgen.errors import UserError
from roentgen.training import trackers
from roentgen.training.trackers import Log

SETTINGS = {"rate": 1e-4, "train": {"unet": True}, "reward": "/home/somebody/reward", "text_window": None}


def test_tensorboard_holds_every_figure(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(["tensorboard", "tensorboard"], tmp_path, SETTINGS)
    for images, loss in ((640, 0.5), (1280, 0.25)):
        log.add_scalar("train/loss", loss, images)
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(640, 0.5), (1280, 0.25)]
    assert len(list((tmp_path / "log").iterdir())) == 1


@pytest.mark.parametrize("words", [["--trackers", "tensorboard,mlflow"], ["--trackers", "tensorboard", "mlflow"]])
def test_several_trackers_on_the_command_line(words: list[str], tmp_path: Path) -> None:
    from roentgen.config import parse_settings
    from roentgen.recipes.classifier import Settings

    made = parse_settings(Settings, [*words, "--manifest", "m.csv", "--out", str(tmp_path)], prog="x")
    assert made.trackers == ("tensorboard", "mlflow")
    with pytest.raises(UserError, match="--trackers tensorbord"):
        parse_settings(Settings, ["--trackers", "tensorbord", "--manifest", "m.csv", "--out", "o"], prog="x")


@pytest.mark.parametrize("recipe", ["finetune", "classifier", "autoencoder", "masked"])
def test_a_missing_package_is_told_first(recipe: str, run_cli: Any, tmp_path: Path, monkeypatch: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    given = {"finetune": ["--model", "mini"], "masked": ["--model", "mini"]}.get(recipe, [])
    words = ["--manifest", tmp_path / "none.csv", "--out", tmp_path / "run", "--trackers", "tensorboard,wandb"]
    code, _, err = run_cli("train", recipe, *given, *words)
    assert code == 2 and "--trackers wandb" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    from accelerate import tracking

    def refuse(self: Any, *rest: Any, **named: Any) -> None:
        raise RuntimeError("no account\nlog in")

    monkeypatch.setattr(tracking.WandBTracker, "__init__", refuse)
    monkeypatch.setattr(trackers, "_quiet_settings", dict)  # made by the package, which may not be here
    with pytest.raises(UserError, match=r"--trackers wandb: .*no account log in.*WANDB_MODE"):
        Log(["wandb"], tmp_path, SETTINGS)


def test_mlflow_that_does_not_start_is_told_what_would(tmp_path: Path, monkeypatch: Any) -> None:
    from accelerate import tracking

    def refuse(self: Any, *rest: Any, **named: Any) -> None:
        raise RuntimeError("folders are in maintenance mode")

    monkeypatch.setattr(tracking.MLflowTracker, "__init__", refuse)
    with pytest.raises(UserError, match=r"--trackers mlflow: .*MLFLOW_TRACKING_URI.*sqlite"):
        Log(["mlflow"], tmp_path, SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("names", [["wandb"], ["mlflow"], ["tensorboard", "wandb", "mlflow"]], ids="+".join)
def test_offline_services_get_figures_and_settings(names: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    """Runs where the packages are installed; neither is among the packages of the tests."""
    for name in names:
        pytest.importorskip(name)
    PartialState(cpu=True)  # as every recipe has; the trackers ask it who they are
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [__file__])  # a program in a repository, whose branch MLflow would tell
    log = Log(names, tmp_path / "run", SETTINGS)
    log.add_scalar("train/loss", 0.5, 640)
    for tracker in log.trackers:
        tracker.finish()
    if "wandb" in names:
        until = time.monotonic() + 60
        while b"train/loss" not in (stored := stored_in(tmp_path)):  # its own process writes it, in a while
            assert time.monotonic() < until
            time.sleep(0.1)
        private = ("somebody", str(tmp_path), sys.executable, "test_trackers")
        assert [word for word in private if word.encode() in stored] == []
    if "mlflow" in names:
        import mlflow

        (run,) = mlflow.search_runs(experiment_names=[trackers.PROJECT], output_format="list")
        assert run.data.metrics == {"train/loss": 0.5} and run.data.params["reward"] == "reward"
        told = {key: value for key, value in run.data.tags.items() if key.startswith("mlflow.source.") and value}
        assert told == {"mlflow.source.name": trackers.PROJECT, "mlflow.source.type": "LOCAL"}
        assert not run.data.tags.get("mlflow.user")


def stored_in(folder: Path) -> bytes:
    """What Weights & Biases would send of a run below a folder: its records and its files, not its own logs."""
    paths = [*folder.rglob("run-*.wandb"), *folder.glob("run/wandb/*/files/**/*")]
    return b"".join(path.read_bytes() for path in paths if path.is_file())
