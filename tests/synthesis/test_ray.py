"""Sets that a Ray cluster draws are those made alone: by a stand-in for Ray, and by Ray where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from recipe import load_script

ROOT = Path(__file__).resolve().parents[2]
ASKED = ("--per-finding", "4", "--findings", "Effusion,Edema", "--filter", "none", "--format", "folder")


@pytest.fixture(scope="module")
def model(make_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline that reads the prompts of a plan whole."""
    made: Path = make_pipeline(tmp_path_factory.mktemp("models") / "tiny", window=77)
    return made


class RayTaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class RayError(Exception):
    pass


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of Ray as is used: tasks run when they are asked for, the last one first."""
    fake = types.ModuleType("ray")
    fake.__spec__ = importlib.util.spec_from_loader("ray", None)
    state: dict[str, Any] = {"tasks": 0, "most": 0, "waiting": 0, "ended": False, "lost": False}

    class Remote:
        def __init__(self, function: Any) -> None:
            self.function = function

        def remote(self, *words: Any) -> Any:
            state["tasks"] += 1
            state["waiting"] += 1
            state["most"] = max(state["most"], state["waiting"])
            return lambda: self.function(*words)

    def get(task: Any) -> Any:
        state["waiting"] -= 1
        if state["lost"]:
            raise RayError("the worker died")
        try:
            return task()
        except Exception as error:
            raise RayTaskError(error) from error

    def init(**named: Any) -> None:
        if named["address"] == "nowhere:1":
            raise ConnectionError("no cluster\nthere")

    fake.init = init  # type: ignore[attr-defined]
    fake.put = lambda value: value  # type: ignore[attr-defined]
    fake.remote = lambda **named: Remote  # type: ignore[attr-defined]
    fake.wait = lambda tasks: ([tasks[-1]], tasks[:-1])  # type: ignore[attr-defined]
    fake.get = get  # type: ignore[attr-defined]
    fake.cluster_resources = lambda: {"CPU": 2.0}  # type: ignore[attr-defined]
    fake.shutdown = lambda: state.update(ended=True)  # type: ignore[attr-defined]
    fake.exceptions = types.SimpleNamespace(RayTaskError=RayTaskError, RayError=RayError)  # type: ignore[attr-defined]
    fake.state = state  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr("roentgen.synthesis.ray_cluster._LOADED", {})
    return fake


def sums(folder: Path) -> str:
    return (folder / "SHA256SUMS").read_text()


def test_a_cluster_makes_the_set_that_one_process_makes(ray: Any, model: Path, tmp_path: Path, run_cli: Any) -> None:
    words = ("export", *ASKED, "--model", model, "--shard-size", 1)
    assert run_cli(*words, "--out", tmp_path / "a" / "set")[0] == 0
    code, _, err = run_cli(*words, "--out", tmp_path / "b" / "set", "--ray", "local")
    assert code == 0, err
    assert sums(tmp_path / "a" / "set") == sums(tmp_path / "b" / "set")
    assert ray.state["tasks"] == 8 and ray.state["most"] == 4 and ray.state["ended"]


def test_what_goes_wrong_is_one_sentence(ray: Any, model: Path, tmp_path: Path, run_cli: Any) -> None:
    words = ("export", *ASKED, "--model", model, "--out", tmp_path / "set")
    code, _, err = run_cli(*words, "--ray", "nowhere:1")
    assert code == 2 and "--ray nowhere:1: no cluster answers" in err
    ray.state["lost"] = True
    code, _, err = run_cli(*words, "--ray", "auto")
    assert code == 2 and "--ray: shard 0 was lost" in err and ray.state["ended"]
    ray.state["lost"] = False
    code, _, err = run_cli(*words, "--ray", "auto")  # goes on
    assert code == 0 and (tmp_path / "set" / "SHA256SUMS").is_file()


def test_a_worker_with_another_model_is_told(
    ray: Any, model: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roentgen.synthesis.maker import Maker

    settings, told = Maker.settings, iter(range(100))
    monkeypatch.setattr(Maker, "settings", lambda self: {**settings(self), "hash": str(next(told))})
    code, _, err = run_cli("export", *ASKED, "--model", model, "--out", tmp_path / "set", "--ray", "auto")
    assert code == 2 and "--ray: a worker has another model" in err


def test_without_ray_it_is_told_first(run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    code, _, err = run_cli("export", *ASKED, "--out", tmp_path / "set", "--ray", "auto")
    assert code == 2 and "--ray auto: Ray is not installed" in err and not (tmp_path / "set").exists()


@pytest.mark.slow
def test_two_workers_and_one_killed(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray (the extra ray) is not among the packages of the tests")
    scale = load_script("benchmarks/scale.py")
    rows = scale.compare(scale.Settings(model=str(model), images=2, shard_size=4, steps=20), tmp_path)
    assert len({row["sums"] for row in rows}) == 1
