"""Values of settings, good and bad, by their types: for flags and for YAML files."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from roentgen.config.ranges import Range
from roentgen.config.settings import Setting
from roentgen.config.values import arm, unwrap

WORDS = (
    *("two", "nan", "inf", "-inf", "1e309", "-1", "0", "1.5", "1e3", "0x10", "1_0", "_1", "1__0", "+5", " 5", "5 "),
    *("٣", "½", "１", "9" * 25, "9" * 5000, "true", "False", "null", "~", "[1]", "{a: 1}", "1,2", "--", "-", "[", "]"),
    *("{", "*a", "&a b", "!!python/object:os.system x", "%s%n", "{0}", "$(x)", "é", "𝕏", "\ud83d", "a\0b", "\n", "\t"),
    *(
        "",
        " ",
        "a" * 300,
        "a/b",
        "../x",
        "~no_such_user/x",
        "~",
        "CON",
        "a;b,c",
        "🫁 effusion",
        "\u202eabc",
        "None",
        "<a&b>",
    ),
)
PATHS = (
    *("nowhere", "nowhere/at/all", "empty", "folder", "pipe", "loop", "binary", "text.txt", "\ud800.csv", "a" * 300),
    *("text.txt/below", "", ".", "..", "device", "~no_such_user/x", "a\0b", "nowhere.csv", "folder.csv", "folder.png"),
    *("pipe.csv", "pipe.txt", "pipe.jsonl", "pipe.parquet", "pipe.yaml", "loop.csv", "binary.csv", "binary.parquet"),
    *("binary.png", "binary.dcm", "binary.yaml", "empty.csv", "empty.png", "empty.dcm", "empty.parquet", "empty.yaml"),
    *("é ü.csv", "a" * 200 + ".png", "device.csv"),
)
INT = re.compile(r"[+-]?[0-9]+(_[0-9]+)*", re.ASCII)


@dataclass(frozen=True)
class Value:
    """Text of a setting; ``refused``: whether it has to be (None: it may be either)."""

    text: str
    refused: bool | None = None


def values_of(one: Setting, rng: Random) -> Value:
    """A value for a setting, more often bad than good."""
    base, extras = item_of(one.hint)
    nullable = arm(unwrap(one.hint)[0]) is not unwrap(one.hint)[0]
    ranges = [extra for extra in extras if isinstance(extra, Range)]
    if base in (int, float):
        return _number(base, ranges, rng, nullable=nullable, several=one.is_list)
    if base is bool:
        return Value(text := rng.choice([*WORDS, "maybe", "2", "yes", "off", "TRUE"]), _not_boolean(text, nullable))
    if typing.get_origin(base) is typing.Literal:
        text = rng.choice([*WORDS, *map(str, typing.get_args(base))])
        good = {str(choice) for choice in typing.get_args(base)} | ({"null", "~"} if nullable else set())
        return Value(text, True if text not in good and not one.is_list and not text.startswith("[") else None)
    if base is Path or rng.random() < 0.5:
        return Value(rng.choice(PATHS))
    return Value(rng.choice(WORDS))


def item_of(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of a setting, or of one item of its list, and everything that is said of it."""
    base, extras = unwrap(hint)
    inner, more = unwrap(arm(base))
    arguments = typing.get_args(inner)
    if typing.get_origin(inner) in (tuple, list, Sequence):
        inner, last = unwrap(arguments[0])
        more = (*more, *last)
    return inner, (*extras, *more)


def _number(kind: type, ranges: list[Range], rng: Random, *, nullable: bool, several: bool) -> Value:
    low, high = (ranges[0].low, ranges[0].high) if ranges else (-1, 10**6)
    edges = [low, low - 1, high, high + 1, (low + min(high, low + 10)) // 2, high * 10, -high]
    text = rng.choice([*WORDS, *(str(int(edge) if kind is int else edge) for edge in edges), *(["null"] * nullable)])
    if several:
        return Value(text)
    if nullable and text in ("null", "~", "Null"):
        return Value(text, None)
    try:
        value = kind(text) if kind is float or INT.fullmatch(text) else None
    except ValueError:
        return Value(text, True)
    if value is None or value != value or not ranges:
        return Value(text, True if value is None or value != value else None)
    return Value(text, bool(ranges[0].wrong(value)) or None)


def _not_boolean(text: str, nullable: bool) -> bool | None:
    good = text.lower() in ("true", "false", "yes", "no", "on", "off") or (nullable and text.lower() in ("null", "~"))
    return None if good else True


# ----------------------------------------------------------------------------------------------- words


def flags(settings: Sequence[Setting], rng: Random, *, most: int = 3) -> tuple[list[str], bool | None]:
    """Words of a command line with odd values, and whether it has to be refused."""
    words: list[str] = []
    refused = None
    named = [one for one in settings if not one.positional]
    for one in rng.sample(named, min(len(named), rng.randint(1, most))):
        value = values_of(one, rng)
        if "\0" in value.text or rng.random() < 0.75:
            words.append(f"{one.flag}={value.text}")
        else:  # a value apart may be read as something else
            words += [one.flag, value.text]
            value = Value(value.text)
        refused = refused or value.refused
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(["--", "-", "---", "--=", "--no-such", "-q", "stray"]))
        refused = refused if "--" not in words else None
    return words, None if "--" in words else refused  # what follows "--" is no flag


def yaml_text(settings: Sequence[Setting], rng: Random) -> str:
    """A YAML file of settings, odd in its values or in its form."""
    odd = rng.random()
    if odd < 0.3:
        return rng.choice(FORMS)
    lines = []
    for one in rng.sample(list(settings), min(len(settings), rng.randint(1, 4))):
        text = values_of(one, rng).text
        quoted = rng.random() < 0.3
        said = '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"' if quoted else text
        lines.append(f"{rng.choice([one.key, one.key.replace('_', '-'), one.key.partition('.')[0]])}: {said}")
    return "\n".join(lines) + rng.choice(["\n", "", "\n...\n", "\n---\n", "\n- x\n", "\n: \n"])


FORMS = (
    *(
        "",
        "\n",
        "~",
        "null",
        "true",
        "3",
        "text",
        "[]",
        "{}",
        "- a",
        "a",
        ":",
        "? a",
        "a: b: c",
        "a:\n\t- b",
        "%YAML 9",
    ),
    *(
        "\x00",
        "\ufeff",
        "\ufeffsteps: 1",
        "{{}: 1}",
        "[a]: 1",
        "a: &b [*b]",
        "&a {x: *a}",
        "steps: 1\nsteps: 2",
        "---\n---",
    ),
    "a: &a [x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]",
    "[" * 500,
    "{a: " * 300,
    "seed: " + "9" * 5000,
    "a" * 100_000 + ": 1",
    "steps: !!int '3'",
    "steps: !!python/name:os.system",
    "steps: 2001-01-01",
    "steps: 1e999",
    "steps: 0o17",
    "steps: 1:30",
    "seed: |\n  5",
    "seed: >-\n  5\n",
    "'': 1",
    "null: 1",
    "true: 1",
    "1: 1",
)
