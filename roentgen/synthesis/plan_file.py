"""A plan in a YAML file: keys and values are those of flags, with "_" for "-"; groups have labels of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roentgen.config import yaml_text
from roentgen.config.values import guess
from roentgen.errors import UserError
from roentgen.synthesis.checks import meant

TYPES: dict[str, tuple[type, ...]] = {
    "per_finding": (int, dict),
    "findings": (list, str),
    "prompts": (str,),
    "num_images": (int,),
    "like": (str,),
    "balance": (str,),
    "split": (str,),
    "count": (int,),
    "target": (int,),
    "by": (list, str),
    "demographics": (list, str),
    "groups": (list,),
    "model": (str,),
    "seed": (int,),
    "steps": (int,),
    "guidance": (float,),
    "sampler": (str,),
    "guided_share": (float,),
    "max_tries": (int,),
    "shard_size": (int,),
    "name": (str,),
}
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


def typed(content: Mapping[Any, Any], types: Mapping[str, tuple[type, ...]], where: str) -> dict[str, Any]:
    """The keys and values that are not empty, where each key is known and each value of one of its types."""
    for key, value in content.items():
        if key not in types:
            raise UserError(f"{where}: unknown key {key!r}; {meant(str(key), types)}")
        # YAML's true and false are ints to Python, and its 4 is a number as well as 4.0.
        allowed = (*types[key], int) if float in types[key] else types[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, allowed)):
            expected = " or ".join(_TYPE_WORDS[kind] for kind in types[key])
            raise UserError(f"{where}, key {key!r}: expected {expected}, got {value!r}; correct it")
    return {key: value for key, value in content.items() if value is not None}
