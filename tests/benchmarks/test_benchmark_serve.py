"""benchmarks/serve.py: its load, its table, its mistakes. The servers themselves are tested elsewhere."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from recipe import ROOT

from roentgen.errors import UserError
from roentgen.metrics.result import read_result

SCRIPT = "serve"

RESULT = ROOT / "benchmarks" / "results" / "serve-cpu.json"


def test_a_load_asks_for_every_image_once(bench: ModuleType) -> None:
    asked: list[int] = []
    together = threading.Barrier(3)

    def ask(url: str, number: int) -> tuple[np.ndarray, float]:
        together.wait(30)  # three at once, or this never ends
        asked.append(number)
        return np.zeros((2, 2)), 1.0 + number

    found = bench.load("", ask, 3, 9)
    assert sorted(asked) == list(range(9)) and found["p50"] == 5.0 and found["p95"] == pytest.approx(8.6)


def test_a_failed_request_is_no_figure(bench: ModuleType) -> None:
    def ask(url: str, number: int) -> Any:
        raise SystemExit  # a thread that ends so says nothing

    with pytest.raises(UserError, match="failed"):
        bench.load("", ask, 2, 4)


def test_memory_is_that_of_the_second_half(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [100.0, 140.0, 150.0, 150.0, 150.0, 150.0, 151.0, 151.0, 151.0, 152.0]
    monkeypatch.setattr(bench, "started", lambda command: contextlib.nullcontext(("", None)))
    monkeypatch.setattr(bench, "memory_of", lambda *words: {"requests": 50, "memory_mb": held})
    assert bench.main(["--memory", "--requests", "50", "--out", str(tmp_path / "m.json")]) == 0
    assert read_result(tmp_path / "m.json")["value"] == 2.0
    assert "100 MB after 10 requests, 150 MB after 50" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--clients", "1,4", "--out", "x"], ["--clients", "8,a", "--out", "x"], []])
def test_mistakes_are_told_before_anything_is_started(bench: ModuleType, flags: list[str]) -> None:
    with pytest.raises(UserError, match=r"--clients|--out"):
        bench.main(flags)


def test_the_documents_tables_are_those_of_the_result_file(bench: ModuleType) -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    between = page.split("<!-- results:serve-memory -->")[1].split("<!-- /results:serve-memory -->")[0].strip()
    held = read_result(RESULT.with_name("serve-memory.json"))["details"]["faults"]
    assert between == bench.memory_in_words(held)
