"""The one parser: dataclasses in, YAML files and flags out of the same fields, and a help that says so.

A setting is a field of a frozen dataclass, with its type, its range and its help in one place::

    @dataclass(frozen=True)
    class Run:
        '''What may change from call to call.'''

        manifest: Annotated[Path, "manifest with train and val images"]
        batch_size: Annotated[BatchSize, "images a step", Short("-b")] = 16
        precision: Annotated[Literal["bf16", "no"], "number format of the forward pass"] = "bf16"

It is the key ``batch_size`` of a YAML file and the flag ``--batch-size``; both take hyphens and underscores. A field
that is a dataclass itself is a section in YAML and a prefix of flags (``--loss.noise-offset 0.1``). Several dataclasses
may share one command line: each is a group of its help. ``--config FILE`` may be repeated, later files win, and flags
win over files wherever they stand. Whatever is wrong is one sentence (``UserError``) before anything else happens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from roentgen.config import yaml_text
from roentgen.config.parser import from_json, parse_call, parse_groups, parse_settings
from roentgen.config.ranges import (
    BatchSize,
    Count,
    CountFromZero,
    Filled,
    Guidance,
    HalfLife,
    InnerShare,
    PathOrName,
    Pixels,
    Positional,
    Range,
    Rate,
    Resamples,
    Seed,
    Share,
    ShareBelowOne,
    Short,
    Steps,
    Text,
    Weight,
    Workers,
    seed_of_32_bits,
)
from roentgen.config.values import did_you_mean
from roentgen.errors import UserError

__all__ = [
    "BatchSize",
    "Count",
    "CountFromZero",
    "Filled",
    "Guidance",
    "HalfLife",
    "InnerShare",
    "PathOrName",
    "Pixels",
    "Positional",
    "Range",
    "Rate",
    "Resamples",
    "Seed",
    "Share",
    "ShareBelowOne",
    "Short",
    "Steps",
    "Text",
    "Weight",
    "Workers",
    "as_dict",
    "did_you_mean",
    "flat",
    "from_json",
    "parse_call",
    "parse_groups",
    "parse_settings",
    "require",
    "seed_of_32_bits",
    "yaml_text",
]


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as plain JSON values."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
