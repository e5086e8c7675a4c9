"""Every number of every recipe, command and benchmark has a range: senseless values are one sentence each."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from recipe import load_script

from roentgen import cli
from roentgen.commands.data import OWN, prepare
from roentgen.config import Range
from roentgen.config.settings import Setting, dataclass_of, settings_of
from roentgen.config.values import arm, convert, unwrap
from roentgen.config.yaml_text import Plain
from roentgen.data.sources import SOURCES
from roentgen.errors import UserError

ROOT = Path(__file__).parents[2]
FOLDERS = ("roentgen/recipes", "train", "eval")
SCRIPTS = [f"{folder}/{path.name}" for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]


script = cache(load_script)


def all_settings() -> list[tuple[str, Setting]]:
    """(where, setting) of every number that a user can give."""
    found: list[tuple[str, Setting]] = []
    for name in SCRIPTS:
        module = script(name)
        own = [getattr(module, kind) for kind in ("Settings", "Recipe", "Run") if hasattr(module, kind)]
        own = [cls for cls in own if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__]
        found += [(name, one) for one in settings_of(*own)]
    functions = {name: command.find() for name, command in cli.COMMANDS.items() if not command.raw}
    found += [(name, one) for name, function in functions.items() for one in settings_of(dataclass_of(function))]
    found += [("data prepare", one) for one in settings_of(dataclass_of(prepare))]
    for name, source in SOURCES.items():
        found += [(f"data prepare {name}", one) for one in settings_of(dataclass_of(source.reader, leave_out=OWN))]
    return [(where, one) for where, one in found if item(one.hint)[0] in (int, float)]


def item(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of one number, and everything that is said of it."""
    base, extras = unwrap(hint)
    inner, more = unwrap(arm(base))
    arguments = getattr(inner, "__args__", ())
    if getattr(inner, "__origin__", None) in (tuple, list):
        inner, last = unwrap(arguments[0])
        more = (*more, *last)
    return inner, (*extras, *more)


NUMBERS = all_settings()


@pytest.mark.parametrize(("where", "one"), NUMBERS, ids=[f"{where}:{one.key}" for where, one in NUMBERS])
def test_every_number_has_a_range_and_keeps_it(where: str, one: Setting) -> None:
    kind, extras = item(one.hint)
    ranges = [extra for extra in extras if isinstance(extra, Range)]
    assert len(ranges) == 1, f"{where} {one.flag} has no range"
    for text in ("0", "-1", "nan", "inf", "-inf", ".inf", "1e309", "9" * 5000, "many", "", "1e", "0x10"):
        try:
            value = convert(one.hint, Plain(text) if text else text, one.flag)
        except UserError as error:
            assert str(error).startswith(one.flag) and "\n" not in str(error) and len(str(error)) < 300
            assert "class" not in str(error)
        else:
            assert text in ("0", "-1") and not ranges[0].wrong(value[0] if isinstance(value, tuple) else value)
    if kind is int:
        with pytest.raises(UserError, match="whole number"):
            convert(one.hint, Plain("1.5"), one.flag)


def test_the_table_is_whole() -> None:
    places = {where for where, _ in NUMBERS}
    assert len(NUMBERS) > 150 and {"roentgen/recipes/finetune.py", "generate", "eval", "export"} <= places


@pytest.mark.parametrize("name", [name for name in SCRIPTS if hasattr(script(name), "main")])
def test_help_of_every_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        script(name).main(["--help"])
    assert stopped.value.code == 0 and "usage: " in capsys.readouterr().out
