"""Text, from a YAML file or the command line, as the typed value of a setting."""

from __future__ import annotations

import difflib
import errno
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from roentgen.config import yaml_text
from roentgen.config.ranges import Filled, PathOrName, Range, Tilde
from roentgen.config.yaml_text import NULLS, Plain
from roentgen.errors import UserError
from roentgen.files import reason, user_path

BOOLEANS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
LONGEST_NUMBER = 40
LISTS = (tuple, list, Sequence)


def convert(hint: Any, raw: Any, where: str) -> Any:
    """``raw``, text or lists and mappings of text, as what ``hint`` says; UserError that begins with ``where``."""
    base, extras = unwrap(hint)
    inner = arm(base)
    if inner is not base:
        if isinstance(raw, Plain) and raw.lower() in NULLS:
            return None
        value = convert(inner, raw, where)
    else:
        value = _convert(base, raw, where)
    if any(isinstance(extra, Tilde) for extra in extras) and value:
        path = _path(value, where)
        value = str(path) if value.startswith("~") else value
    for extra in extras:
        wrong = extra.wrong(value) if isinstance(extra, Range | Filled) else ""
        if wrong:
            raise UserError(f"{where}: {wrong}" if isinstance(extra, Filled) else f"{where} {shown(value)}: {wrong}")
    return value


def _convert(base: Any, raw: Any, where: str) -> Any:
    origin = typing.get_origin(base)
    if origin in LISTS:
        items = [convert(typing.get_args(base)[0], item, where) for item in _items(base, raw, where)]
        return items if origin is list else tuple(items)
    if origin is dict:
        mapping = yaml_text.from_text(raw, where) if isinstance(raw, str) and raw.startswith("{") else raw
        if not isinstance(mapping, dict):
            raise UserError(f"{where}: expected a mapping such as {{key: value}}, got {shown(raw)}")
        inner = typing.get_args(base)[1]
        return {key: guess(item) if inner is Any else convert(inner, item, where) for key, item in mapping.items()}
    if isinstance(raw, Plain) and not raw:
        raise UserError(f'{where}: is blank; give a value, "" for an empty text, or leave it out')
    if not isinstance(raw, str):
        raise UserError(f"{where}: expected {_wanted(base)}, got {shown(raw)}")
    if origin is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(base)}
        if raw not in choices:
            raise UserError(
                f"{where} {raw[:60]}: unknown; choose one of {', '.join(choices)}{did_you_mean(raw, [*choices])}"
            )
        return choices[raw]
    if base is bool and raw.lower() in BOOLEANS:
        return BOOLEANS[raw.lower()]
    if base is int and len(raw) <= LONGEST_NUMBER and re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", raw):
        return int(raw)
    if base is float and len(raw) <= LONGEST_NUMBER:
        try:
            value = float(re.sub(r"^([+-]?)\.inf$", r"\1inf", raw.lower()))
        except ValueError:
            value = float("nan")
        if value == value:
            return value
    if base in (str, Path) and isinstance(raw, Plain) and raw.lower() in NULLS:
        raise UserError(f'{where}: is blank; write a text, "" for an empty one')
    if base is str:
        if re.search("[\ud800-\udfff]", raw):
            raise UserError(f"{where} {shown(raw)}: is not text in UTF-8; write it again")
        return str(raw)
    if base is Path:
        return _path(raw, where)
    raise UserError(f"{where}: expected {_wanted(base)}, got {shown(raw)}")


def _items(base: Any, raw: Any, where: str) -> list[Any]:
    """The items of a list: a YAML list, words of the command line, or numbers or choices with commas."""
    items: list[Any] = []
    inner = unwrap(typing.get_args(base)[0])[0]
    divided = inner in (int, float) or typing.get_origin(inner) is typing.Literal
    for item in several(raw):
        if isinstance(item, Plain) and item.startswith("["):
            items += yaml_text.from_text(item, where)
        elif isinstance(item, Plain) and divided:
            items += [Plain(part.strip()) for part in item.split(",")]
        else:
            items.append(item)
    return items


def several(raw: Any) -> list[Any]:
    return list(raw) if isinstance(raw, list) else [raw]


def _path(raw: str, where: str) -> Path:
    if not raw or "\0" in raw:
        raise UserError(f"{where}: is empty; name a file or folder" if not raw else f"{where}: holds a NUL character")
    path = user_path(raw)
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: half a character, which no name can hold
        # What is not there may be made; what may not be looked at cannot be told from it later on.
        if not isinstance(error, OSError) or error.errno in (errno.EACCES, errno.ENAMETOOLONG):
            raise UserError(f"{where} {shown(raw)}: cannot be looked at ({reason(error)}); choose another") from None
    return path


def guess(raw: Any) -> Any:
    """YAML's own reading of values whose type is not known."""
    if isinstance(raw, list):
        return [guess(item) for item in raw]
    if isinstance(raw, dict):
        return {key: guess(item) for key, item in raw.items()}
    if not isinstance(raw, Plain) or len(raw) > LONGEST_NUMBER:
        return str(raw)
    if raw.lower() in NULLS or raw.lower() in BOOLEANS:
        return BOOLEANS.get(raw.lower())
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            pass
    return str(raw)


def _wanted(base: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}.get(base, "one text")


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return ascii(value[:60]) if re.search("[\ud800-\udfff]", value) else repr(str(value[:60]))
    return "a list" if isinstance(value, list | tuple) else "a mapping" if isinstance(value, dict) else str(value)


def unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        base, deeper = unwrap(inner)
        return base, (*deeper, *extras)
    return hint, ()


def arm(base: Any) -> Any:
    """``int`` of ``int | None``; the type itself where it may not be None."""
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        arms = [arm for arm in typing.get_args(base) if arm is not type(None)]
        if {*arms} == {str, Path}:
            return PathOrName
        assert len(arms) == 1, base
        return arms[0]
    return base


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``; did you mean x?`` where one of ``known`` is near ``word``."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
