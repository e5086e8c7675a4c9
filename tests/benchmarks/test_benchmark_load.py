"""benchmarks/load.py: its arithmetic, its table, its mistakes; and what results say of the conditions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from recipe import load_script

from roentgen import provenance
from roentgen.errors import UserError
from roentgen.metrics.result import read_result


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load_script("benchmarks/load.py")
    monkeypatch.setattr(module.threads, "cores", lambda: 2)
    return module


def test_times_are_held_against_the_fair_share(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Made up: 4 s alone and 5 s of processor time; settled twice that in company, left alone five times."""

    def made_up(code: str, words: object, *, busy: int, count: int) -> list[tuple[float, float]]:
        slow = 1 if busy + count == 1 else 2 if code == bench.ON else 5
        return [(4.0 * slow - part, 5.0) for part in range(count)]

    monkeypatch.setattr(bench, "together", made_up)
    page = tmp_path / "page.md"
    page.write_text("<!-- results:load -->\n<!-- /results:load -->\n")
    out = tmp_path / "load.json"
    assert bench.main(["--out", str(out), "--update", str(page), "--only", "generate"]) == 0
    rows = {(row["scenario"], row["settled"]): row for row in read_result(out)["details"]["rows"]}
    assert rows["alone", True]["ratio"] == rows["alone", False]["ratio"] == 1
    # Two processes on two cores: one core each, 5 s. Three: two thirds of a core, 7.5 s. Four: half a core, 10 s.
    assert [rows[name, True]["fair"] for name in bench.SCENARIOS] == [4.0, 5.0, 7.5, 10.0]
    assert rows["beside one busy process", True]["ratio"] == 8 / 5
    assert rows["four at once", False]["ratio"] == 2.0
    assert "| generate, one image | beside one busy process | 5.0 | 8.0 (1.60) | 20.0 (4.00) |" in page.read_text()
    assert read_result(out)["warnings"] and read_result(out)["value"] == 8 / 5
    assert bench.main(["--out", str(out), "--unsettled", "export"]) == 0
    kinds = {(row["command"], row["settled"]) for row in read_result(out)["details"]["rows"]}
    assert len(kinds) == 4 and (bench.FLOOR, True) in kinds and ("export, 8 images", False) in kinds


def test_commands_run_beside_busy_ones_and_those_end(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = bench.subprocess.Popen

    def kept(*words: object, **options: object) -> object:
        process = popen(*words, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr(bench.subprocess, "Popen", kept)
    runs = bench.together("import sys; assert sys.argv[1] == 'word'", ["word"], busy=1, count=2)
    assert len(runs) == 2 and all(wall > 0 and used > 0 for wall, used in runs)
    assert len(started) == 3
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="code 3"):
        bench.together("import sys; sys.exit(3)", ["generate"], busy=0, count=1)


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--repeats", "0", "--out", "x"], "--repeats"), ([], "--out"), (["--out", "x", "--only", "zzz"], "--only")],
)
def test_mistakes(bench: ModuleType, flags: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word):
        bench.main(flags)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc/stat")
def test_results_say_what_else_went_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: next(clock))
    machine, own = iter([100.0, 125.0]), iter([1.0, 11.0])
    monkeypatch.setattr(provenance, "_machine_seconds", lambda: next(machine))
    monkeypatch.setattr(provenance, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(provenance, "git_state", lambda folder: {"commit": "x", "modified": True})
    facts = provenance.Surroundings().facts()
    assert facts == {"others": 1.5, "quiet": False, "tree": "modified"}
    words = provenance.in_words(facts)
    assert "1.50 cores" in words and "modified tree" in words
    assert provenance.in_words({"others": 0.0, "quiet": True, "tree": "clean"}) == provenance.in_words(None) == ""
