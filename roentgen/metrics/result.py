"""Results: every number is a JSON file that says what it is, of how many, from what, and how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roentgen.config import as_dict
from roentgen.errors import UserError
from roentgen.files import read_json, reason, sha256, write_atomic
from roentgen.provenance import ROOT, command_line, git_state, portable, versions

KEYS = (
    *("metric", "value", "ci", "n", "extractor", "resize"),
    *("seed", "settings", "git_commit", "versions", "command"),
)

BOUNDS = ("floor", "ceiling", "reconstructed")
"""What stands beside a value, as entries of ``details`` or of a row."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the results of one run share.

    extractor: what made scores or features, with its hash. resize: every step from file to extractor.
    inputs: name and SHA-256 of the files that went in. model: name, hash, and sampling settings.
    """

    command: str
    settings: Mapping[str, Any]
    extractor: str = "none"
    resize: str = "none"
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=lambda: git_state(ROOT))

    @classmethod
    def of(cls, script: str, settings: Any, /, **about: Any) -> Context:
        """Of ``script``, whose flags are the dataclass ``settings``; ``about`` are the other fields."""
        told: dict[str, Any] = {
            "settings": {key: portable(value) for key, value in as_dict(settings).items()},
            "seed": getattr(settings, "seed", 0),
            "command": command_line(script, settings),
        }
        return cls(**told | about)


def write_result(
    path: Path,
    *,
    metric: str,
    value: float,
    ci_method: str,
    n: int,
    context: Context,
    ci: tuple[float, float] = (math.nan, math.nan),
    goal: str | None = None,
    warnings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one result atomically and return it; NaN becomes null."""
    result = plain(
        {
            "metric": metric,
            "value": value,
            "ci": ci,
            "ci_method": ci_method,
            "n": n,
            "goal": goal,
            "warnings": list(warnings),
            "details": details or {},
            "model": context.model,
            "extractor": context.extractor,
            "resize": context.resize,
            "seed": context.seed,
            "settings": context.settings,
            "inputs": context.inputs,
            "git_commit": context.git["commit"],
            "git_modified": context.git["modified"],
            "versions": versions(),
            "command": context.command,
        }
    )
    result["sha256"] = _sum(result)
    write_json(path, result)
    return dict(result)


def _sum(result: Mapping[str, Any]) -> str:
    """Of all that a result says beside it."""
    return sha256(json.dumps({key: value for key, value in result.items() if key != "sha256"}, sort_keys=True))


def is_unchanged(result: Mapping[str, Any]) -> bool:
    """Whether a result is as it was written; one of an older version, without a sum, counts as such."""
    return "sha256" not in result or result["sha256"] == _sum(result)


def write_json(path: Path, value: Any) -> None:
    """``value`` as ``plain`` has it, atomically."""
    write_atomic(path, (json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_result(path: Path) -> dict[str, Any]:
    """A result written by ``write_result``; UserError if it is missing, damaged or lacks a key."""
    if not path.exists():
        raise UserError(f"{path}: no such result; make it first")
    result = read_json(path, advice="make it again")
    if missing := [key for key in KEYS if key not in result]:
        raise UserError(f"{path}: not a result (no {missing[0]}); make it again")
    return result


def read_measure(path: Path) -> dict[str, Any]:
    """A result of the suite, whole as far as pages and tables show it; UserError with the place that is not."""
    result = read_result(path)
    if place := _damaged(result):
        raise UserError(f"{path}: damaged at {place}; delete it and run the evaluation again")
    return result


def rows_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of a measure's result one by one, with what stands beside them: its rows, or itself."""
    whole = {key: result[key] for key in ("value", "ci", "n")} | {key: result["details"].get(key) for key in BOUNDS}
    return result["details"].get("rows") or [whole]


@contextmanager
def shown(path: Path) -> Iterator[None]:
    """For what makes a table or a plot of the result ``path``: what it lacks, or has of another type, is a sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: cannot be shown ({type(error).__name__}: {reason(error)}); make it again") from error


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _pair(value: Any) -> bool:
    return value is None or (_fits(value, [_number]) and len(value) == 2)


def _count(value: Any) -> bool:
    return value is not None and _number(value) and value > 0


def _bound(value: Any) -> bool:
    return value is None or _fits(value, ENTRY)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _histogram(value: Any) -> bool:
    known = _fits(value, {"edges": [_number], "shares": {"*": [_number]}, "unit": _text})
    return known and all(len(share) == len(value["edges"]) - 1 for share in value["shares"].values())


ENTRY: dict[str, Any] = {"value": _number, "ci?": _pair, "n?": _number, "positives?": _number, "what?": _text}
"""A value with what stands beside it, each an entry itself; "?" ends the name of what may be missing."""
ENTRY |= {"name?": _text, "group?": _text, **{f"{bound}?": _bound for bound in BOUNDS}}
MEASURE = {"metric": _text, "extractor": _text, "value": _number, "ci": _pair, "n": _number, "warnings": [_text]}
MEASURE |= {"ci_method": _text, "resize": _text, "command": _text}
MEASURE |= dict.fromkeys(("details", "settings", "inputs", "versions", "model"), _object)
SET: dict[str, Any] = {
    "source": lambda value: value is None or _text(value),
    "n": _count,
    "patients": _count,
    "hash": _text,
}
SET["left_out"] = [_text]
DETAILS = {
    **{f"{bound}?": _bound for bound in BOUNDS},
    "better?": _text,
    "rows?": [ENTRY | {"name": _text}],
    "findings?": [ENTRY | {"finding": _text}],
    "by_n?": {"*": lambda points: bool(points) and _fits(points, [ENTRY | {"n": _count}])},
    "by_frequency?": [ENTRY | {"seen": _text, "n": _number}],
    "reliability?": {"*": [{"score": _number, "frequency": _number, "ci": _pair, "n": _number}]},
    "histogram?": _histogram,
}
"""What pages and tables read of the details of a measure."""


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is as ``kind`` says: a check, a list of one kind, or kinds by key, where "*" is any."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(item, kind[0]) for item in value)
    if not isinstance(kind, dict):
        return bool(kind(value))
    if isinstance(value, dict) and "*" in kind:
        return all(_fits(item, kind["*"]) for item in value.values())
    return isinstance(value, dict) and not _misfit(value, kind)


def _misfit(value: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """The first key of ``kinds`` that ``value`` lacks or has of another kind, "" where there is none."""
    for key, kind in kinds.items():
        name = key.rstrip("?")
        if not (_fits(value[name], kind) if name in value else key.endswith("?")):
            return name
    return ""


def _damaged(result: Mapping[str, Any]) -> str:
    """The first place of a measure's result that pages and tables cannot read, "" where there is none."""
    if place := _misfit(result, MEASURE):
        return place
    if place := _misfit(result["details"], DETAILS):
        return f"details.{place}"
    return next((f"inputs.{name}" for name, said in result["inputs"].items() if not _fits(said, SET)), "")


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity become None, arrays lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str) else str(value)
