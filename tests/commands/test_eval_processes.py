"""`roentgen eval` in several processes: the figures of one, the work shared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from forks import Forks
from image_sets import write_set
from safetensors.numpy import load_file

from roentgen.devices import Process, meeting, this_process
from roentgen.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_shares_are_disjoint_and_whole() -> None:
    shares = [Process(rank, 3).own(8) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_the_launchers_variables_say_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_process("cpu") == (Process(0, 1), "cpu")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_process("cpu") == (Process(2, 4), "cpu")


@pytest.mark.parametrize(("rank", "world"), [("4", "4"), ("-1", "2"), ("one", "2"), ("0", "two")])
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, rank: str, world: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match="RANK"):
        this_process("cpu")


def test_one_process_waits_for_nobody_and_several_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with meeting(Process()) as wait:
        wait()
    with pytest.raises(UserError, match="accelerate launch"), meeting(Process(0, 2)):
        pass


def figures(folder: Path) -> dict[str, Any]:
    found = {}
    for name in ("kid", "coverage"):
        result = json.loads((folder / f"{name}.json").read_text())
        found[name] = [result["value"], *result["ci"]]
    return found


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    tmp_path: Path, make_pipeline: Callable[..., Path], run_cli: Callable[..., tuple[int, str, str]], forks: Forks
) -> None:
    real = write_set(tmp_path / "real", {"test": 20}, 0)
    model = make_pipeline(tmp_path / "tiny", window=64)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("left pleural effusion\nno acute process\ncardiomegaly\n")
    words = ("--real", str(real), "--generate", str(model), "--prompts", str(prompts), "--num-images", "4",
             "--metrics", "kid,coverage", "--resamples", "20", "--replicates", "2", "--steps", "2")  # fmt: skip
    code, said, shown = run_cli("eval", *words, "--out", tmp_path / "one")
    two = forks(ROOT / "eval" / "suite.py", *words, "--out", tmp_path / "two", ranks=2)
    assert code == 0 and two.code == 0, shown + two.err
    assert said.count("report.html") == two.out.count("report.html") == 1  # one process reports

    for part in ("", "replicate-2"):
        a, b = tmp_path / "one" / part, tmp_path / "two" / part
        for name, values in figures(a).items():
            np.testing.assert_allclose(figures(b)[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        tables = [pd.read_csv(folder / "synthetic.csv") for folder in (a, b)]
        pd.testing.assert_frame_equal(*tables)
        made = sorted(path.name for path in (a / "images").iterdir())
        assert made == sorted(path.name for path in (b / "images").iterdir()) and len(made) == 12

    # Each process wrote a part of the cache for itself: real and first images, then the second draw's.
    assert len(list((tmp_path / "one" / "cache").glob("classifier-*/rows-*"))) == 2
    rows = sorted(len(load_file(path)["features"]) for path in (tmp_path / "two" / "cache").glob("classifier-*/rows-*"))
    assert rows == [6, 6, 16, 16]


@pytest.mark.slow
def test_a_bad_image_is_named_once_and_left_out(forks: Forks, tmp_path: Path) -> None:
    real = write_set(tmp_path / "real", {"test": 21}, 0)
    made = write_set(tmp_path / "made", {"test": 20}, 1)
    bad = tmp_path / "real" / "test_3.png"
    content = bytearray(bad.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)  # the header is whole, the pixels are not
    bad.write_bytes(content)
    words = (ROOT / "eval" / "suite.py", "--real", real, "--synthetic", made, "--metrics", "kid", "--resamples", 20)
    refused = forks(*words, "--out", tmp_path / "out", ranks=2)
    assert refused.code != 0 and refused.err.count("1 of 21 images are bad") == 1
    assert "test_3.png" in refused.err and "--skip-bad" in refused.err
    skipped = forks(*words, "--out", tmp_path / "out", "--skip-bad", ranks=2)
    assert skipped.code == 0, skipped.err
    assert json.loads((tmp_path / "out" / "kid.json").read_text())["n"] == 20
