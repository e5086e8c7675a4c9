"""benchmarks/eval.py: its images, its arithmetic, its table, its mistakes, and two sides for real."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from roentgen.errors import UserError

SCRIPT = "eval"


@pytest.fixture
def result(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A result from made-up times: ours 10 s, torch-fidelity 20 s, clean-fid 15 s; repeats 1 s longer each."""
    calls: list[dict[str, Any]] = []
    seconds = {"roentgen": 10.0, "torch-fidelity": 20.0, "roentgen-clean": 10.0, "clean-fid": 15.0}

    def made_up(folder: Path, job: dict[str, Any]) -> tuple[dict[str, float], float, float]:
        calls.append(job)
        side = job["side"]
        if side == "roots":
            return {"roentgen": 1.0, "scipy": 12.0, "difference": 1e-9}, 20.0, 1.0
        if side == "weights":
            return {}, 1.0, 1.0
        assert sorted(path.name for path in Path(job["a"]).iterdir()) == ["00000.png", "00002.png", "00004.png"]
        repeat = sum(call["side"] == side for call in calls) - 1
        fid = 5.001 if side == "roentgen" else 5.0
        return {"fid": fid, "seconds": seconds[side] - 5}, seconds[side] + repeat, 0.5

    monkeypatch.setattr(bench, "call", made_up)
    found = bench.measured(bench.Settings(images=6, side=32, repeats=3, dim=16), tmp_path)
    sides = [call["side"] for call in calls]
    assert sides == ["weights", *(["roentgen", "torch-fidelity", "roentgen-clean", "clean-fid"] * 3), "roots"]
    return found


def test_arithmetic(result: dict[str, Any]) -> None:
    assert result["tools"]["clean-fid"]["seconds"] == {
        "median": 16,
        "min": 15,
        "max": 17,
        "n": 3,
        "values": [15, 16, 17],
    }
    torch_fidelity = result["compared"]["torch-fidelity"]
    assert torch_fidelity["ratio"] == 21 / 11 and torch_fidelity["ratio_without_start"] == 3
    assert torch_fidelity["difference"] == pytest.approx(2e-4)
    assert result["compared"]["clean-fid"]["difference"] == 0
    assert result["root"]["ratio"] == 12


def test_table(bench: ModuleType, result: dict[str, Any]) -> None:
    lines = bench.table(result).splitlines()
    assert lines[2] == "| roentgen, TensorFlow-1 resize | 11 | 0.50 |  |  |"
    assert lines[3] == "| torch-fidelity | 21 | 0.50 | 1.91 | 2.0e-04 |"
    assert "12.0 times as long" in lines[7] and "6 images of 32 px" in lines[9]


def test_images_are_always_the_same(bench: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        bench.make_images(tmp_path / name, 5, side=48)
    paths = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert [path.as_posix() for path in paths] == [
        "a/00000.png",
        "a/00002.png",
        "a/00004.png",
        "b/00001.png",
        "b/00003.png",
    ]
    pictures = []
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
        pictures.append(np.asarray(Image.open(tmp_path / "one" / path)))
        assert pictures[-1].shape == (48, 48) and pictures[-1].std() > 5
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_result_and_update(bench: ModuleType, result: dict[str, Any], tmp_path: Path) -> None:
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    kept.write_text(json.dumps(result))
    page.write_text("a\n<!-- results:eval-speed -->\nstale\n<!-- /results:eval-speed -->\nb\n")
    assert bench.main(["--result", str(kept), "--update", str(page)]) == 0
    assert bench.table(result) in page.read_text() and "stale" not in page.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "3"], "--images 3: must be at least 4"),
        (["--repeats", "0"], "--repeats"),
        (["--result", "none.json"], "none.json"),
        (["--update", "none.md"], "none.md"),
    ],
)
def test_mistakes_are_one_sentence(
    bench: ModuleType, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        bench.main(words)


@pytest.mark.slow
def test_sides_run_and_agree_for_real(bench: ModuleType, tmp_path: Path) -> None:
    """Ours and clean-fid, which reads folders itself, on a few images; the matrix root at a small dimension."""
    for package in ("torch_fidelity", "cleanfid", "scipy"):
        pytest.importorskip(package)
    bench.make_images(tmp_path, 6, side=96)
    bench.call(tmp_path, {"side": "weights"})
    job = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "workers": 1}
    answer, seconds, memory = bench.call(tmp_path, {**job, "side": "roentgen-clean"})
    assert answer["fid"] > 0 and 0 < answer["seconds"] < seconds and memory > 0.1
    root, _, _ = bench.call(tmp_path, {"side": "roots", "dim": 64})
    assert root["difference"] < 1e-6
