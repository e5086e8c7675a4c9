"""What a plan may not ask for: each check raises a UserError of one sentence that begins with ``where``, the flag, file
or entry that is wrong, and ends with the mend."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from roentgen.errors import UserError
from roentgen.prompts import FINDINGS, NO_FINDING, Labels, parse
from roentgen.prompts.vocabulary import NARROWER, OLDEST
from roentgen.synthesis.plan import DEMOGRAPHICS, SEXES, VIEWS, name_of

SIDES = ("left", "right", "bilateral")


def check_labels(labels: Labels, where: str) -> None:
    """UserError on labels that no image can have."""
    if labels.findings:
        finding_names(labels.findings, where)
    if NO_FINDING in labels.findings and len(labels.findings) > 1:
        other = next(name for name in labels.findings if name != NO_FINDING)
        raise UserError(f"{where}: {NO_FINDING!r} and {other!r} contradict each other; drop one of them")
    for name, side in labels.sides.items():
        if name not in labels.findings:
            raise UserError(f"{where}: a side is given for {name!r}, which is not asked for; add it to the findings")
        if side not in SIDES:
            raise UserError(f"{where}: unknown side {side!r} of {name}; write one of {', '.join(SIDES)}")
        if not FINDINGS[name].can_have_side:
            raise UserError(f"{where}: {name} can have no side; drop {side!r}")
    for attribute, value, allowed in (("view", labels.view, VIEWS), ("sex", labels.sex, SEXES)):
        if value is not None and value not in allowed:
            raise UserError(f"{where}: unknown {attribute} {value!r}; write {' or '.join(allowed)}, or leave it out")
    if labels.age is not None and not 0 <= labels.age <= OLDEST:
        raise UserError(f"{where}: age {labels.age:g}: write years from 0 to {OLDEST}, or leave it out")


def agreed(prompt: str, given: Labels, where: str) -> Labels:
    """The given labels, and what the prompt says beside them; UserError where the two contradict each other."""
    read = parse(prompt)
    if not given.findings:
        given = replace(given, findings=read.findings)
    known = set(given.findings) | {name for wide in given.findings for name in NARROWER.get(wide, ())}
    if extra := [name for name in read.findings if name not in known]:
        raise UserError(
            f"{where}: the prompt says {extra[0]!r}, but the labels are {name_of(given.findings)}; change one of them"
        )
    for name in given.findings:
        # Words that are not in the vocabulary are the user's to know; a finding that is named and not read is denied.
        if not read.findings and re.search(rf"\b(?:{FINDINGS[name].pattern})\b", prompt.lower()):
            raise UserError(f"{where}: the prompt denies {name!r}, but the labels have it; change one of them")
    for name in read.findings:
        said, labelled = read.sides.get(name), given.sides.get(name)
        if labelled is not None and said != labelled:
            raise UserError(
                f"{where}: {name} is {labelled} by its label and {said or 'without a side'} in the prompt; change one"
            )
    pairs: dict[str, tuple[object, object]] = {
        "view": (given.view, read.view),
        "sex": (given.sex, read.sex),
        "age": (_years(given.age), _years(read.age)),
    }
    for attribute, (by_label, by_text) in pairs.items():
        if None not in (by_label, by_text) and by_label != by_text:
            raise UserError(f"{where}: {attribute} is {by_label} by its label and {by_text} in the prompt; change one")
    sides = {name: side for name, side in read.sides.items() if name in given.findings} | given.sides
    return Labels(
        given.findings,
        sides,
        given.view or read.view,
        given.sex or read.sex,
        read.age if given.age is None else given.age,
    )


def _years(age: float | None) -> int | None:
    return None if age is None else int(age)


def age_or_range(value: Any, where: str) -> tuple[float | None, tuple[int, int] | None]:
    """One age, or the first and the last year of a range."""
    if not isinstance(value, list):
        if value is not None and not (math.isfinite(value) and 0 <= value <= OLDEST):
            raise UserError(f"{where}: age {value}: write years from 0 to {OLDEST}, or leave it out")
        return (None if value is None else float(int(value))), None
    whole = all(isinstance(year, int) and not isinstance(year, bool) for year in value)
    if len(value) != 2 or not whole or not 0 <= value[0] <= value[1] <= OLDEST:
        raise UserError(
            f"{where}: age {value}: write [first, last] in whole years from 0 to {OLDEST}, the lower one first"
        )
    return None, (value[0], value[1])


def finding_names(value: str | Sequence[Any], where: str) -> list[str]:
    """A list of findings, or text with commas: at least one, all known, none twice."""
    return _distinct(
        value, where, FINDINGS, "no finding is named; name at least one, or leave the setting out",
        lambda name: f"{where}: unknown finding {name!r}; {_meant_finding(str(name))}",
    )  # fmt: skip


def _meant_finding(name: str) -> str:
    read = parse(name).findings  # "pleural effusion", "oedema"
    return f"did you mean {read[0]!r}?" if len(read) == 1 else meant(name, FINDINGS)


def attributes_named(value: str | Sequence[Any], flag: str) -> tuple[str, ...]:
    """Some of ``DEMOGRAPHICS``, in their order, from a list or text with commas."""
    choice = f"choose from {', '.join(DEMOGRAPHICS)}"
    names = _distinct(
        value, flag, DEMOGRAPHICS, f"nothing is named; {choice}, or leave it out",
        lambda name: f"{flag} {name}: unknown; {choice}",
    )  # fmt: skip
    return tuple(name for name in DEMOGRAPHICS if name in names)


def demographics_named(value: str | Sequence[Any] | None) -> tuple[str, ...]:
    """The attributes to balance: all by default and for "balanced", none for "none", or those that are listed."""
    if value is None or value == "balanced":
        return DEMOGRAPHICS
    return () if value == "none" else attributes_named(value, "--demographics")


def _distinct(
    value: str | Sequence[Any], where: str, known: Collection[str], none: str, unknown: Callable[[Any], str]
) -> list[Any]:
    """A list, or text with commas, of names: at least one, all known, none twice."""
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    if not names:
        raise UserError(f"{where}: {none}")
    for place, name in enumerate(names):
        if not isinstance(name, str) or name not in known:
            raise UserError(unknown(name))
        if name in names[:place]:
            raise UserError(f"{where}: {name!r} is named twice; drop one")
    return names


def at_least_one(value: Any, where: str) -> int:
    """The value, if it is a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where} {value!r}: write a whole number of at least 1")
    if value < 1:
        raise UserError(f"{where} {value}: must be at least 1")
    return value


def meant(name: str, known: Collection[str]) -> str:
    """ "did you mean 'x'?", or all names where none is close."""
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), lowered, n=1)
    return f"did you mean {lowered[close[0]]!r}?" if close else f"known are {', '.join(known)}"


def flag_of(key: str) -> str:
    """How a message names a setting: as its flag, or as the key that has none."""
    return "'groups'" if key == "groups" else f"--{key.replace('_', '-')}"
