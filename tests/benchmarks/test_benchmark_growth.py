"""benchmarks/growth.py: one run for real on tiny sets, its table, its mistakes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from roentgen.errors import UserError
from roentgen.metrics.result import read_result

SCRIPT = "growth"


def test_tasks_run_and_a_row_says_what_an_image_more_costs(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "import sys; from pathlib import Path; assert len(list(Path('images').iterdir())) == int(sys.argv[1])"
    monkeypatch.setattr(bench, "TASKS", {"look": ["-c", words, "ROWS"]})
    page, out = tmp_path / "page.md", tmp_path / "growth.json"
    page.write_text("<!-- results:growth -->\n<!-- /results:growth -->\n")
    assert bench.main(["--rows", "10,20", "--out", str(out), "--update", str(page)]) == 0
    runs = read_result(out)["details"]["tasks"]["look"]
    assert [run["rows"] for run in runs] == [10, 20] and all(run["memory"] > 0 for run in runs)
    assert "| look | 20 |" in page.read_text()


def test_random_hashes_are_no_near_duplicates(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--near", "300"]) == 0
    assert capsys.readouterr().out == '{"found": 0}\n'


@pytest.mark.parametrize("rows", ["10", "20,10", "5,10", "10,x"])
def test_sizes_that_do_not_rise(bench: ModuleType, rows: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rows"):
        bench.main(["--rows", rows, "--out", str(tmp_path / "x.json")])
