"""benchmarks/report.py: what a further image costs, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roentgen import errors

SCRIPT = "report"


def test_a_further_image_is_the_difference_of_two_commands(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "seconds", lambda images: 3.0 + 0.25 * len(images))
    document = tmp_path / "doc.md"
    document.write_text("<!-- results:reports-speed -->\n<!-- /results:reports-speed -->\n")
    words = ["--out", str(tmp_path / "speed.json"), "--update", str(document), "--repeats", "2", "--further", "4"]
    assert bench.main(words) == 0
    found = json.loads((tmp_path / "speed.json").read_text())["details"]["seconds"]
    assert found["cold"]["median"] == 3.25 and found["further"]["median"] == pytest.approx(0.25)
    assert "| each further image | 0.25 |" in document.read_text()


def test_the_command_is_run(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(bench, "timed", lambda words: (seen.extend(words), (1.5, 0.1))[1])
    assert bench.seconds([Path("a.png")]) == 1.5
    assert seen[1:5] == ["-m", "roentgen", "report", "a.png"] and "--out" in seen


@pytest.mark.parametrize(
    ("words", "names"),
    [([], "--out"), (["--further", "0"], "--further"), (["--out", "x.json", "--further", "5000"], "--further")],
)
def test_bad_settings_are_one_sentence(
    bench: Any, words: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(lambda: bench.main(words), prog="benchmarks/report.py") == 2
    assert names in capsys.readouterr().err
