"""The settings of a dataclass or a function, each with its type, default, help and group."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from roentgen.config.ranges import Positional, Short
from roentgen.config.values import LISTS, arm, unwrap


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
        return typing.get_origin(self.base) in LISTS


def settings_of(*classes: type) -> list[Setting]:
    """The settings of dataclasses, in order, sections opened."""
    found: list[Setting] = []
    for cls in classes:
        generated = not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}(")
        group = "settings" if generated or len(classes) == 1 else paragraphs(cls.__doc__ or "")[0].rstrip(".")
        found += fields_of(cls, "", group, MISSING)
    twice = {one.key for one in found if sum(one.key == other.key for other in found) > 1}
    assert not twice, f"named twice: {twice}"
    return found


def fields_of(cls: type, prefix: str, group: str, outer: Any) -> Iterator[Setting]:
    """The settings of one dataclass; ``outer`` is the instance that is the default of its section."""
    hints = typing.get_type_hints(cls, include_extras=True)
    helps = _sections(cls.__doc__ or "")
    for field in dataclasses.fields(cls):
        default = default_of(field) if outer is MISSING else getattr(outer, field.name)
        base, extras = unwrap(hints[field.name])
        if dataclasses.is_dataclass(base):
            yield from fields_of(base, f"{prefix}{field.name}.", group, default)  # type: ignore[arg-type]
            continue
        said, section = helps.get(field.name, ("", ""))
        help = " ".join(extra for extra in extras if isinstance(extra, str)) or said
        short = next((extra.flag for extra in extras if isinstance(extra, Short)), "")
        positional = any(isinstance(extra, Positional) for extra in extras)
        yield Setting(prefix + field.name, hints[field.name], default, help, section or group, short, positional)


def dataclass_of(function: Callable[..., Any], *, leave_out: Collection[str] = ()) -> type:
    """The parameters of ``function`` as a dataclass; the sections of its docstring are its groups and their help.

    A function of one dataclass has that one's fields and docstring.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    if (whole := whole_of(function)) is not None:
        return hints[whole]  # type: ignore[no-any-return]
    fields: list[Any] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in leave_out and parameter.kind is not parameter.VAR_KEYWORD:
            default = MISSING if parameter.default is parameter.empty else parameter.default
            fields.append((name, hints[name], dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(function.__name__, fields, frozen=True, kw_only=True)
    made.__doc__ = function.__doc__
    return made


def whole_of(function: Callable[..., Any]) -> str | None:
    """The parameter of ``function`` that is a dataclass of all its settings, if it has one."""
    names = list(inspect.signature(function).parameters)
    hint = typing.get_type_hints(function).get(names[0]) if len(names) == 1 else None
    return names[0] if dataclasses.is_dataclass(hint) else None


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n") if part.strip()]


def _sections(doc: str) -> dict[str, tuple[str, str]]:
    """(help, title) of each ``name: help`` in the sections (``Title:`` and indented lines) of a docstring."""
    helps: dict[str, tuple[str, str]] = {}
    title = ""
    names: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        if re.match(r"\S.*", line):
            title, names = (line.strip(": ") if line.endswith(":") else ""), []
        elif title and (found := re.match(r" {4}(\w+(?:, \w+)*): +(.*)", line)):
            names = found[1].split(", ")
            helps |= {name: (found[2].strip(), "" if title == "Args" else title.lower()) for name in names}
        elif line.strip():
            helps |= {name: (f"{helps[name][0]} {line.strip()}", helps[name][1]) for name in names}
    return helps


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, or ``MISSING``."""
    return field.default if field.default_factory is MISSING else field.default_factory()
