"""Settings of a recipe: a frozen dataclass filled from YAML files and flags, nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from roentgen.errors import UserError

T = TypeVar("T")


def parse_settings(cls: type[T], argv: Sequence[str] | None, *, prog: str, description: str) -> T:
    """Fill dataclass ``cls`` from ``--config FILE`` (YAML, may be repeated) and flags, later ones winning.

    A field that is a dataclass itself is a section in YAML and dotted flags (``--loss.noise_offset 0.1``).
    An unknown key, a wrong type or an unreadable file raises ``UserError`` with the key or file in it.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    parser.add_class_arguments(cls, as_group=False)
    try:
        namespace = parser.parse_args(_plain_flags(cls, sys.argv[1:] if argv is None else argv))
    except (jsonargparse.ArgumentError, OSError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{message} (see --help for the settings)") from None
    return _filled(cls, namespace)


def _filled(cls: type[T], namespace: Any) -> T:
    hints = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = namespace[field.name]
        if dataclasses.is_dataclass(hints[field.name]) and not dataclasses.is_dataclass(value):
            value = _filled(hints[field.name], value)  # type: ignore[arg-type]
        values[field.name] = value
    return cls(**values)


def _booleans(cls: type, prefix: str = "--") -> set[str]:
    """Flags of the boolean fields, those of sections included."""
    found = set()
    for name, hint in typing.get_type_hints(cls).items():
        if hint is bool:
            found.add(prefix + name)
        elif dataclasses.is_dataclass(hint):
            found |= _booleans(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def _plain_flags(cls: type, argv: Sequence[str]) -> list[str]:
    """Flags as the parser wants them: ``--dry-run`` is ``--dry_run``, and a boolean named alone is true."""
    booleans = _booleans(cls)
    result = []
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            alone = place + 1 == len(argv) or argv[place + 1].startswith("--")
            if name in booleans and not equals and alone:
                equals, value = "=", "true"
            word = name + equals + value
        result.append(word)
    return result


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return result


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
