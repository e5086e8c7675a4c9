"""One command line, or a YAML file, to filled dataclasses."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from roentgen.config import yaml_text
from roentgen.config.help_text import help_text
from roentgen.config.settings import Setting, dataclass_of, default_of, fields_of, settings_of, whole_of
from roentgen.config.values import convert, did_you_mean, several, shown, unwrap
from roentgen.config.yaml_text import Plain
from roentgen.errors import UserError
from roentgen.files import user_path

T = TypeVar("T")


def parse_settings(
    cls: type[T], argv: Sequence[str] | None, *, prog: str, about: str | None = None, configs: Path | None = None
) -> T:
    """``cls`` filled from ``argv`` (default: the process's own); see ``parse_groups``."""
    made: T = parse_groups((cls,), argv, prog=prog, about=about, configs=configs)[0]
    return made


def parse_groups(
    classes: Sequence[type],
    argv: Sequence[str] | None,
    *,
    prog: str,
    about: str | None = None,
    configs: Path | None = None,
) -> list[Any]:
    """Each of ``classes`` filled from one command line.

    ``about`` is a docstring: its first paragraph describes the command in ``--help``, its indented lines are examples.
    ``configs`` is a folder whose files ``--config`` may name without folder and ending. ``--help`` prints and exits
    with 0; UserError for everything that is wrong, cross checks of ``__post_init__`` included.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    settings = settings_of(*classes)
    until = words.index("--") if "--" in words else len(words)
    if {"-h", "--help"} & set(words[:until]):
        print(help_text(settings, prog=prog, about=about))
        raise SystemExit(0)
    try:
        files, given = _read_words(words, settings)
        values: dict[str, Any] = {}
        for file in files:
            values |= _read_file(file, settings, configs)
        values |= given
        return [_fill(cls, "", values) for cls in classes]
    except UserError as error:
        raise UserError(f"{error} (see {prog} --help)") from None


def parse_call(function: Callable[..., Any], argv: Sequence[str] | None, *, prog: str) -> dict[str, Any]:
    """Keyword arguments for ``function``, whose parameters are the settings and whose docstring is their help.

    Where its one parameter is a dataclass, the settings and the help are that one's.
    """
    cls = dataclass_of(function)
    made: Any = parse_settings(cls, argv, prog=prog, about=cls.__doc__)
    if (whole := whole_of(function)) is not None:
        return {whole: made}
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def _read_words(words: Sequence[str], settings: Sequence[Setting]) -> tuple[list[str], dict[str, Any]]:
    """The ``--config`` files in order, and what the flags give: {key: (raw value, how to name it)}."""
    flags = {one.key: one for one in settings if not one.positional}
    shorts = {one.short: one for one in settings if one.short}
    places = [one for one in settings if one.positional]
    files: list[str] = []
    loose: list[str] = []
    given: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            loose += queue
            break
        if not re.match(r"--?[^\W\d]", word):
            loose.append(word)
            continue
        name, equals, value = word.partition("=")
        if not name.startswith("--") and len(name) > 2:  # -n4
            name, equals, value = word[:2], "=", word[2:].removeprefix("=")
        if name == "--config":
            files.append(value if equals else _next(queue, name))
            continue
        one = shorts.get(name) or flags.get(name[2:].replace("-", "_"))
        negated = flags.get(name[5:].replace("-", "_")) if name.startswith("--no-") else None
        if one is None and negated is not None and negated.base is bool and not equals:
            given[negated.key] = (Plain("false"), name)
            continue
        if one is None:
            known = [each.flag for each in flags.values()] + ["--config", "--help"]
            raise UserError(f"unknown flag {name!r}{did_you_mean(name.replace('_', '-'), known)}")
        if equals:
            raw: Any = _word(value)
        elif one.base is bool:
            raw = Plain(queue.pop(0) if queue and queue[0].lower() in ("true", "false") else "true")
        elif one.is_list:
            raw = [_word(_next(queue, name))]
            while queue and not re.match(r"--?[^\W\d]|--$", queue[0]):
                raw.append(_word(queue.pop(0)))
            if one.key in given:
                raw = several(given[one.key][0]) + raw
        else:
            raw = _word(_next(queue, name))
        given[one.key] = (raw, one.flag)
    for one in places:
        if not loose:
            break
        given[one.key] = ([_word(word) for word in loose] if one.is_list else _word(loose[0]), one.key)
        loose = [] if one.is_list else loose[1:]
    if loose:
        raise UserError(f"{loose[0]!r} belongs to no flag{did_you_mean('--' + loose[0], [o.flag for o in settings])}")
    return files, given


def _word(word: str) -> str:
    return Plain(word) if word else word  # an empty word is an empty text, not a blank


def _next(queue: list[str], flag: str) -> str:
    if not queue or (queue[0].startswith("--") and queue[0] != "--"):
        raise UserError(f"{flag} needs a value")
    return queue.pop(0)


def _read_file(
    name: str, settings: Sequence[Setting], configs: Path | None, above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The values of a YAML file, and below them those of the one that it names as its ``base``; ``above`` name it."""
    path = user_path(name) if name else Path()
    if configs is not None and not path.exists():
        named = {each.stem: each for each in sorted(configs.rglob("*.yaml"))}
        if name in named:
            path = named[name]
        elif "/" not in name and not path.suffix:
            raise UserError(
                f"--config {name}: no such file and no configuration of that name{did_you_mean(name, [*named])}"
            )
    keys = {one.key for one in settings}
    values: dict[str, Any] = {}

    def add(mapping: Mapping[str, Any], prefix: str) -> None:
        for key, value in mapping.items():
            full = prefix + key.replace("-", "_")
            inner = [known for known in keys if known.startswith(f"{full}.")]
            where = f"{path}: {prefix}{key}"
            if inner and isinstance(value, dict):
                add(value, f"{full}.")
            elif inner:
                wanted = ", ".join(sorted(known.removeprefix(f"{full}.") for known in inner))
                raise UserError(f"{where}: expected a section with any of {wanted}, got {shown(value)}")
            elif full not in keys:
                raise UserError(f"{path}: unknown key '{prefix}{key}'{did_you_mean(full, sorted(keys))}")
            elif full in values:
                raise UserError(f"{where}: is given twice")
            else:
                values[full] = (value, where)

    content = yaml_text.read(path)
    base = content.pop("base", None) if "base" not in keys else None
    add(content, "")
    if base is None:
        return values
    if not isinstance(base, str) or not base or path.resolve() in above:
        raise UserError(f"{path}: base: expected the name of another file of settings, got {shown(base)}")
    return _read_file(base, settings, configs, (*above, path.resolve())) | values


def from_json(cls: type[T], values: Any, where: str) -> T:
    """A dataclass of settings from what a JSON file says of it, types and ranges checked as on the command line.

    UserError that begins with ``where`` on anything else than a mapping of its fields.
    """
    mapping = yaml_text.from_text(json.dumps(values), where)  # JSON is YAML
    if not isinstance(mapping, dict):
        raise UserError(f"{where}: expected a mapping, got {shown(mapping)}")
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{did_you_mean(key, known)}")
    made: T = _fill(cls, "", {key: (value, f"{where}.{key}") for key, value in mapping.items()})
    return made


def _fill(cls: type, prefix: str, values: Mapping[str, Any], start: Any = MISSING) -> Any:
    """``cls`` with its ``values``, the others as in ``start`` or as the class has them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    made: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        key, (base, _) = prefix + field.name, unwrap(hints[field.name])
        default = default_of(field) if start is MISSING else getattr(start, field.name)
        if dataclasses.is_dataclass(base):
            made[field.name] = _fill(base, f"{key}.", values, default)  # type: ignore[arg-type]
        elif key in values:
            raw, where = values[key]
            made[field.name] = convert(hints[field.name], raw, where)
        elif default is MISSING:
            one = next(each for each in fields_of(cls, prefix, "", MISSING) if each.key == key)
            raise UserError(f"{one.flag} is missing" + (f": {one.help.rstrip('.')}" if one.help else ""))
        else:
            made[field.name] = default
    return cls(**made)
