"""The settings of a dataclass or a function, each with its type, default, help and group."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any

from roentgen.config.ranges import Positional, Short
from roentgen.config.values import arm, unwrap


@dataclass(frozen=True)
class Setting:
    """One field: ``key`` is dotted where it is in a section; ``default`` is ``MISSING`` where it must be given."""

    key: str
    hint: Any
    default: Any
    help: str
    group: str
    short: str = ""
    positional: bool = False

    @property
    def flag(self) -> str:
        """As the command line writes it."""
        return self.key.upper() if self.positional else f"--{self.key.replace('_', '-')}"

    @property
    def base(self) -> Any:
        """The type without ranges, help and ``None``."""
        return unwrap(arm(unwrap(self.hint)[0]))[0]

    @property
    def is_list(self) -> bool:
        """Whether it takes several words."""
        return typing.get_origin(self.base) in (tuple, list)


def settings_of(*classes: type) -> list[Setting]:
    """The settings of dataclasses, in order, sections opened."""
    found: list[Setting] = []
    for cls in classes:
        generated = not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}(")
        group = "settings" if generated else paragraphs(cls.__doc__ or "")[0].rstrip(".")
        found += fields_of(cls, "", group, MISSING)
    twice = {one.key for one in found if sum(one.key == other.key for other in found) > 1}
    assert not twice, f"named twice: {twice}"
    return found


def fields_of(cls: type, prefix: str, group: str, outer: Any) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls, include_extras=True)
    helps = _argument_helps(cls)
    for field in dataclasses.fields(cls):
        default = default_of(field) if outer is MISSING else getattr(outer, field.name)
        base, extras = unwrap(hints[field.name])
        if dataclasses.is_dataclass(base):
            yield from fields_of(base, f"{prefix}{field.name}.", group, default)  # type: ignore[arg-type]
            continue
        help = " ".join(extra for extra in extras if isinstance(extra, str)) or helps.get(field.name, "")
        short = next((extra.flag for extra in extras if isinstance(extra, Short)), "")
        positional = any(isinstance(extra, Positional) for extra in extras)
        yield Setting(prefix + field.name, hints[field.name], default, help, group, short, positional)


def dataclass_of(
    function: Callable[..., Any], *, positional: Sequence[str] = (), leave_out: Sequence[str] = ()
) -> type:
    """The parameters of ``function`` as a dataclass; the ``Args:`` of its docstring are the help."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in leave_out:
            hint = Annotated[hints[name], Positional()] if name in positional else hints[name]
            empty = name in positional and typing.get_origin(hints[name]) is list
            kept = parameter.default if parameter.default is not parameter.empty else () if empty else MISSING
            fields.append((name, hint, dataclasses.field(default=kept)))
    made = dataclasses.make_dataclass(function.__name__, fields, frozen=True, kw_only=True)
    made.__doc__ = function.__doc__
    return made


def paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n") if part.strip()]


def _argument_helps(thing: Any) -> dict[str, str]:
    """What the ``Args:`` section of a docstring says of each name."""
    helps: dict[str, str] = {}
    current = ""
    for line in inspect.cleandoc(thing.__doc__ or "").partition("Args:")[2].splitlines():
        if line.strip() and not line.startswith(" "):
            break
        if found := re.match(r" {4}(\w+): +(.*)", line):
            current, helps[found[1]] = found[1], found[2].strip()
        elif current and line.strip():
            helps[current] += " " + line.strip()
    return helps


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
