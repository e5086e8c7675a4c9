"""Results: every number is a JSON file that says what it is, of how many, from what, and how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from roentgen.errors import UserError
from roentgen.files import read_json, write_atomic
from roentgen.provenance import ROOT, git_state, versions

KEYS = (
    *("metric", "value", "ci", "n", "extractor", "resize"),
    *("seed", "settings", "git_commit", "versions", "command"),
)


@dataclass(frozen=True)
class Context:
    """What the results of one run share.

    extractor: what made scores or features, with its hash. resize: every step from file to extractor.
    inputs: name and SHA-256 of the files that went in. model: name, hash, and sampling settings.
    """

    extractor: str
    resize: str
    seed: int
    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    inputs: Mapping[str, Any]
    command: str
    git: Mapping[str, Any] = field(default_factory=lambda: git_state(ROOT))


def write_result(
    path: Path,
    *,
    metric: str,
    value: float,
    ci: tuple[float, float],
    ci_method: str,
    n: int,
    context: Context,
    goal: str | None = None,
    warnings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    extractor: str | None = None,
) -> dict[str, Any]:
    """Write one result atomically and return it; NaN becomes null. ``extractor`` overrides the context's."""
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
            "extractor": context.extractor if extractor is None else extractor,
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
    write_json(path, result)
    return dict(result)


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
