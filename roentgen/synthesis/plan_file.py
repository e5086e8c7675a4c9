"""A plan in a YAML file: keys and values are those of flags, with "_" for "-"; groups have labels of their own."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.config import yaml_text
from roentgen.config.values import guess
from roentgen.errors import UserError
from roentgen.synthesis.checks import meant
from roentgen.synthesis.plan import Drawing


@dataclass(frozen=True, kw_only=True)
class Asked(Drawing):
    """What a plan is asked for: keys of a plan file and flags. Lists may be given as text with commas.

    per_finding: images of each finding, each asked for alone; a mapping gives each finding its own count. prompts: file
    of prompts (.txt, .csv, .jsonl); a CSV may have the columns labels, view, sex and age, else the labels are what the
    text says. like: manifest whose labels, sides, views, sexes and ages are taken, row by row. balance: manifest to
    fill up, until each finding is as frequent as the commonest one other than No Finding. groups: mappings with the
    keys of ``GROUP_TYPES``. findings: with per_finding or balance, only these (default: ``DEFAULT_FINDINGS``; those
    that the manifest has). num_images: with prompts, images of each. split: with like or balance, the manifest's rows
    to look at (default: train). count: with like, number of images (default: as many as rows). target: with balance,
    images that each finding (or cell) is to have in all. by: with balance, level each finding within the cells of
    these: sex, view, age. demographics: of rows that leave them open: balanced (default), none, or those that are to
    be balanced.
    """

    per_finding: int | dict[str, int] | None = None
    prompts: str | None = None
    like: str | None = None
    balance: str | None = None
    groups: list[dict[str, Any]] | None = None
    findings: list[str] | str | None = None
    num_images: int = 1
    split: str | None = None
    count: int | None = None
    target: int | None = None
    by: list[str] | str | None = None
    demographics: list[str] | str | None = None


def _kinds(hint: Any) -> tuple[type, ...]:
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(arm) or arm for arm in arms if arm is not type(None))


TYPES = {name: _kinds(hint) for name, hint in typing.get_type_hints(Asked).items()}
"""Key of a plan file -> its types."""
GROUP_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "count": (int,),
    "findings": (list, str),
    "sides": (dict,),
    "view": (str,),
    "sex": (str,),
    "age": (float, list),
    "prompt": (str,),
}
_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


def read_plan(path: str | Path) -> dict[str, Any]:
    """The settings of a plan file, for ``resolve_plan``; empty keys are left out.

    UserError on a file that is no YAML mapping, an unknown or repeated key, or a value of the wrong type.
    """
    where = f"--plan {path}"
    content = guess(yaml_text.read(Path(path)))
    if not content:
        raise UserError(f"{where} must hold keys and values, such as 'per_finding: 100'")
    return typed(content, TYPES, where)


def typed(content: Mapping[Any, Any], known: Mapping[str, tuple[type, ...]], where: str) -> dict[str, Any]:
    """The keys and values that are not empty, where each key is known and each value of one of its types."""
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {meant(str(key), known)}")
        # YAML's true and false are ints to Python, and its 4 is a number as well as 4.0.
        allowed = (*known[key], int) if float in known[key] else known[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            expected = " or ".join(_TYPE_WORDS[kind] for kind in known[key])
            raise UserError(f"{where}, key {key!r}: expected {expected}, got {value!r}; correct it")
    return {key: value for key, value in content.items() if value is not None}
