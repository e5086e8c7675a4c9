"""benchmarks/compiled.py: its arithmetic, its table, its commands for real at tiny size, its mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from forks import Forks

from roentgen.errors import UserError
from roentgen.metrics.result import read_result

SCRIPT = "compiled"


def test_a_set_pays_once_its_images_make_up_for_the_start(bench: ModuleType) -> None:
    """1 s an image plain and 0.75 s compiled; 2 s, 52 s and 12 s to start: 50 s and 10 s by quarters of a second."""
    runs = {"plain short": 6.0, "plain long": 14.0, "cold short": 55.0, "filled short": 15.0, "filled long": 21.0}
    found = bench.figures(runs, short=4, long=12)
    assert found["seconds_per_image"] == {"plain": 1.0, "filled": 0.75}
    assert found["start"] == {"plain": 2.0, "cold": 52.0, "filled": 12.0}
    assert found["pays_from"] == {"cold": 200, "filled": 40}


def test_what_saves_nothing_never_pays(bench: ModuleType) -> None:
    runs = {"plain short": 6.0, "plain long": 14.0, "cold short": 55.0, "filled short": 15.0, "filled long": 25.0}
    assert bench.figures(runs, short=4, long=12)["pays_from"] == {"cold": None, "filled": None}


def test_one_run_at_tiny_size_without_a_compiler(
    bench: ModuleType,
    make_pipeline: Callable[..., Path],
    forks: Forks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything for real but the compiler, and the clock: whoever compiles takes 9 s more and saves half a second."""
    caches = []

    def here(command: list[str]) -> tuple[float, float]:
        caches.append(command[-1].split("'TORCHINDUCTOR_CACHE_DIR'] = ")[1].split(";")[0])
        compiled = "'--compile'" in command[-1]
        assert command[:2] == [sys.executable, "-c"]
        done = forks(*(word.replace(", '--compile'", "") for word in command[1:]))
        assert done.code == 0, done.err
        count = 2 if "'--shard-size', '2'" in command[-1] else 1
        return 5.0 + count * (0.5 if compiled else 1.0) + 9 * compiled, 0.1

    monkeypatch.setattr(bench, "timed", here)
    monkeypatch.setattr(bench, "DTYPES", ("float32",))
    page, out = tmp_path / "page.md", tmp_path / "compiled.json"
    page.write_text("<!-- results:compiled -->\n<!-- /results:compiled -->\n")
    words = ["--model", make_pipeline(tmp_path / "tiny", window=77), "--short", 1, "--long", 2]
    assert bench.main([str(word) for word in [*words, "--out", out, "--update", page]]) == 0
    found = read_result(out)
    assert found["value"] == 18 and found["details"]["dtypes"]["float32"]["difference"] == 0
    assert len(caches) == 5 and len(set(caches)) == 1
    assert "| float32 | yes, cache filled | 14.0 | 0.500 | 18 |" in page.read_text()


@pytest.mark.parametrize("flags", [["--short", "8", "--long", "8"], ["--long", "100000"]])
def test_sizes_that_do_not_rise(bench: ModuleType, flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--short"):
        bench.main([*flags, "--out", str(tmp_path / "x.json")])
