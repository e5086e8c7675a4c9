"""Two thousand odd inputs for every command; see ``fuzz/`` and docs/reliability.md."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import harness
from fuzz.case import Case
from fuzz.cases import commands, sound_words
from fuzz.limits import Outcome, run
from fuzz.world import World

from roentgen.errors import UserError

ROOT = Path(__file__).parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "benchmarks" / "results"


@pytest.mark.slow
def test_two_thousand_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = harness.main(["--inputs", "2000", "--seed", "0", "--json", str(tmp_path / "fuzz.json")])
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert not found["findings"] and code == 0
    assert sum(row["inputs"] for row in found["counts"]) == 2000
    tried = {row["command"] for row in found["counts"]}
    assert {"generate", "export", "eval", "data check", "data shard", "train finetune", "info"} <= tried


@pytest.mark.slow
def test_every_value_of_json_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample of what `--sweep` tries."""
    words = ["--sweep", "--every", "151"]
    code = harness.main([*words, "--json", str(tmp_path / "fuzz.json")])
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert not found["findings"] and code == 0 and found["inputs"] > 150
    assert {"generate", "report", "export", "eval", "data shard", "push"} <= {row["command"] for row in found["counts"]}


def test_limits_notice_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def sentence() -> int:
        raise UserError("--x: is wrong")

    def fails() -> int:
        raise KeyError("x")

    def waits() -> int:
        import time

        time.sleep(60)
        return 0

    assert run(sentence, prog="roentgen").code == 2
    assert "KeyError" in run(fails, prog="roentgen").problem
    monkeypatch.setattr("fuzz.limits.SECONDS", 0.2)
    assert run(waits, prog="roentgen").problem == "hang"
    # In a process of its own: what this one has held before may be given again, and its peak does not grow.
    code = (
        "from fuzz import limits; limits.BYTES = 2**26; "
        "print(limits.run(lambda: len(b'x' * (3 * 2**25)) * 0, prog='roentgen').problem)"
    )
    tests = str(Path(__file__).parent)
    told = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True)
    assert "memory" in told.stdout


def test_a_termination_ends_the_run_with_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def empty(_: object) -> Iterator[World]:
        yield World(tmp_path)

    def terminated(*_: object) -> tuple[Case, Outcome, str]:
        def ends() -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0

        return Case("info", "flags", []), run(ends, prog="roentgen"), ""

    monkeypatch.setattr(harness, "prepared", empty)
    monkeypatch.setattr(harness, "one", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert harness.main(["--inputs", "5", "--json", str(tmp_path / "fuzz.json")]) == 0
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert found["inputs"] == 1 and found["counts"][0]["came_to"] == "done"
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_command_is_tried(tmp_path: Path) -> None:
    from roentgen.commands import COMMANDS

    known = commands()
    assert {name for name, command in COMMANDS.items() if not command.raw} <= known.keys()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "left.png").touch()
    assert sound_words("generate", World(tmp_path)) and sound_words("no such command", World(tmp_path)) is None


@pytest.mark.parametrize("name", ["fuzz", "fuzz-sweep"])
def test_the_document_has_the_counts_of_its_result(name: str) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    text = re.search(rf"<!-- results:{name} -->\n(.*?)<!-- /results:{name} -->", DOCUMENT.read_text(), re.DOTALL)
    assert text is not None and text[1].strip() == harness.table(result)
    assert not result["findings"] and result["inputs"] >= 2_000
