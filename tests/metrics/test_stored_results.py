"""Stored results that are damaged: computed again, refused by name, or shown without the missing part."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from roentgen.errors import UserError
from roentgen.metrics.report import page
from roentgen.metrics.report.html import Report, render
from roentgen.metrics.report.tables import report
from roentgen.metrics.result import Context, read_measure, shown
from roentgen.metrics.suite import INDEX, read_index

ROOT = Path(__file__).parents[2]
STORED = ROOT / "eval" / "results" / "mini-suite"
SHOWN = ("fid", "auroc", "calibration", "nearest", "planted_copies", "sharpness")
ODD: tuple[Any, ...] = (None, "x", 3, [], {}, [1], {"a": 1})


def small(value: Any) -> Any:
    """The same with two items of each list of objects."""
    if isinstance(value, dict):
        return {key: small(item) for key, item in value.items()}
    if isinstance(value, list):
        return [small(item) for item in (value[:2] if value and isinstance(value[0], dict | list) else value)]
    return value


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each item of nested objects and lists."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*here, key)
        if isinstance(item, dict | list):
            yield from places(item, (*here, key))


def damaged(stored: Any, rng: Random) -> Iterator[tuple[str, Any]]:
    """Each item gone, and each another value."""
    for *way, last in places(stored):
        for odd in ("gone", rng.choice(ODD)):
            changed = copy.deepcopy(stored)
            inner = changed
            for key in way:
                inner = inner[key]
            if odd == "gone":
                del inner[last]
            else:
                inner[last] = odd
            yield f"{way} {last}: {odd!r}", changed


@pytest.mark.parametrize("name", SHOWN)
def test_a_damaged_measure_is_refused_by_name_or_shown(tmp_path: Path, name: str) -> None:
    rng = Random(0)
    path = tmp_path / f"{name}.json"
    for number, (what, result) in enumerate(damaged(small(json.loads((STORED / f"{name}.json").read_text())), rng)):
        path.write_text(json.dumps(result))
        try:
            read = read_measure(path)
        except UserError as error:
            assert path.name in str(error), what
            continue
        results = {name: read}
        try:
            drawn = page.drawings(results) if number % 40 == 0 else []
            whole = Report("t", "", page.lines(results), [], [], drawn, [], page.tables(results), {}, "")
            assert "</html>" in render(whole)
        except Exception as error:
            raise AssertionError(what) from error


def test_a_floor_without_value_is_refused(tmp_path: Path) -> None:
    stored = json.loads((STORED / "fid.json").read_text())
    del stored["details"]["floor"]["value"]
    path = tmp_path / "fid.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"fid\.json.*floor"):
        read_measure(path)


def test_all_stored_measures_are_whole() -> None:
    for name in read_index(STORED)["measures"]:
        read_measure(STORED / f"{name}.json")


@pytest.mark.parametrize("text", ['{"measures": []}', '{"key": []}', '{"key": {}, "measures": 3}', '{"key": 1}'])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match=INDEX):
        read_index(tmp_path)


@pytest.mark.parametrize("detail", [{}, {"rows": 3}, {"rows": [{}]}, {"rows": None}])
def test_what_a_table_lacks_is_told_of_the_file(tmp_path: Path, detail: Any) -> None:
    stored = json.loads((STORED / "fid.json").read_text())
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(stored | {"details": detail}))

    def table(result: Any) -> str:
        return str([row["name"] for row in result["details"]["rows"]])

    with pytest.raises(UserError, match=r"speed\.json"):
        report("x", out=None, result=path, update=None, measure=lambda _: None, table=table)


def test_a_mistake_of_ones_own_stays_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), shown(tmp_path):
        raise RuntimeError("not the file's")


def test_a_script_may_say_other_settings_than_its_flags() -> None:
    @dataclasses.dataclass(frozen=True)
    class Flags:
        seed: int = 7
        images: int = 1

    context = Context.of("eval/x.py", Flags(images=2), settings={"most": 1})
    assert (context.settings, context.seed, context.command) == ({"most": 1}, 7, "python eval/x.py --images=2")
