"""YAML files of settings as text: mappings and lists of strings, typed only by the settings they are for.

YAML would make False of ``precision: no`` and text of ``overwrite: "false"``; here a scalar stays what was written, as
on the command line. Files come from anywhere, so size, depth and number of values have limits, and references (``&``,
``*``), which can grow without end, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roentgen.errors import UserError

MOST_BYTES, MOST_VALUES, DEEPEST = 1_000_000, 10_000, 20
NULLS = ("", "null", "~")


class Plain(str):
    """Text without quotes: it may stand for a number, true or nothing; quoted text is an ordinary ``str``."""

    __slots__ = ()


def read(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file; UserError that names the file."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no ordinary file'}; name a YAML file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES:,} bytes, too large for settings")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    found = from_text(text, str(path))
    if found in ("", None):
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected lines of the form key: value")
    return found


def from_text(text: str, where: str) -> Any:
    """What a YAML text holds: mappings, lists, quoted text as ``str`` and all else as ``Plain``."""
    import yaml

    try:
        events = iter([event for event in _limited(yaml.parse(text, Loader=yaml.SafeLoader), where)])
        while not isinstance(event := next(events), yaml.DocumentStartEvent):
            if isinstance(event, yaml.StreamEndEvent):
                return None
        found = _tree(next(events), events, where)
        next(events)
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise UserError(f"{where}: holds several documents (---); keep one")
        return found
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({' '.join(str(error).split())})") from None


def _limited(events: Iterator[Any], where: str) -> Iterator[Any]:
    import yaml

    depth = 0
    for count, event in enumerate(events):
        starts, ends = (yaml.SequenceStartEvent, yaml.MappingStartEvent), (yaml.SequenceEndEvent, yaml.MappingEndEvent)
        depth += isinstance(event, starts) - isinstance(event, ends)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{where}: references (& and *) are not read; write the value where it is needed")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise UserError(f"{where}: tags such as {event.tag} are not read; write the plain value")
        if depth > DEEPEST:
            raise UserError(f"{where}: nested more than {DEEPEST} deep; settings are not")
        if count > MOST_VALUES:
            raise UserError(f"{where}: more than {MOST_VALUES:,} values; settings are fewer")
        yield event


def _tree(event: Any, events: Iterator[Any], where: str) -> Any:
    import yaml

    if isinstance(event, yaml.ScalarEvent):
        return Plain(event.value) if event.style is None else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_tree(event, events, where))
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise UserError(f"{where}: a key is not plain text")
        if event.value in mapping:
            raise UserError(f"{where}: {event.value} is given twice")
        mapping[event.value] = _tree(next(events), events, where)
    return mapping
