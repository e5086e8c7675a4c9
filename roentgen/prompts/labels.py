"""Labels: what is known of an image or asked of one, in a manifest row and in a prompt list's cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roentgen.errors import UserError
from roentgen.prompts.vocabulary import FINDINGS

NO_FINDING = "No Finding"


@dataclass(frozen=True)
class Labels:
    """What is known of an image, or asked of one.

    ``findings`` are names in ``FINDINGS``; ``sides`` gives left, right or bilateral for some of them
    (patient's side); ``view`` is PA or AP, ``sex`` M or F, ``age`` in years; None is unknown. ``severities`` gives
    for some findings one of the words that suit it (``Finding.qualifiers``), where something measured says so.
    """

    findings: tuple[str, ...] = ()
    sides: dict[str, str] = field(default_factory=dict)
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    severities: dict[str, str] = field(default_factory=dict)


def labels_from_row(row: Mapping[Any, Any]) -> Labels:
    """The labels of one manifest row; absent and blank columns are unknown.

    Raises UserError on a value that the column cannot hold.
    """

    def value(column: str) -> str:
        # Through text, because blanks come as "", None, NaN and pandas.NA, and ones as 1, 1.0, "1" and True.
        text = str(row.get(column, "")).strip()
        return "" if text.lower() in {"", "nan", "none", "<na>", "nat"} else text

    def choice(column: str, allowed: tuple[str, ...]) -> str | None:
        text = value(column)
        if text and text not in allowed:
            raise UserError(f"manifest column {column!r} holds {text!r}; write {', '.join(allowed)} or leave it blank")
        return text or None

    flags = {name: choice(name, ("1", "0", "1.0", "0.0", "True", "False")) for name in FINDINGS}
    present = [name for name, flag in flags.items() if flag in {"1", "1.0", "True"}]
    # Other findings refute "No Finding"; the text must not say both.
    findings = tuple(name for name in present if name != NO_FINDING) or tuple(present)
    sides = {
        name: side for name in findings if (side := choice(f"{name}_side", ("left", "right", "bilateral"))) is not None
    }
    severities = {
        name: word for name in findings if (word := choice(f"{name}_severity", FINDINGS[name].qualifiers)) is not None
    }
    try:
        age = float(value("age")) if value("age") else None
    except ValueError:
        raise UserError(
            f"manifest column 'age' holds {value('age')!r}; write years as a number or leave it blank"
        ) from None
    return Labels(findings, sides, choice("view", ("PA", "AP")), choice("sex", ("M", "F")), age, severities)


def labels_text(labels: Labels) -> str:
    """ "Effusion:left;Cardiomegaly" """
    sides = labels.sides
    return ";".join(f"{name}:{sides[name]}" if name in sides else name for name in labels.findings)


def read_labels_text(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """The findings and sides of a ``labels`` cell; the inverse of ``labels_text``."""
    pairs = [part.partition(":")[::2] for part in text.split(";") if part]
    return tuple(name for name, _ in pairs), {name: side for name, side in pairs if side}
