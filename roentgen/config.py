"""Typed settings from flags and YAML: one signature is the command's flags, its YAML keys and its help.

Every command and recipe is a function whose parameters are its settings. ``parse`` builds the flags from
the signature (``num_images: int = 1`` becomes ``--num-images``), reads ``--config FILE`` first, so that
flags win wherever they stand, refuses unknown keys and wrong types with one sentence, and returns the keyword
arguments. jsonargparse is imported inside, so that `roentgen --help` does not pay for it.
"""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

from roentgen.errors import UserError


def parse(
    function: Callable[..., Any],
    argv: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
) -> dict[str, Any]:
    """Keyword arguments for ``function`` from ``argv``.

    ``positional`` names the parameters that are given without a flag; a ``list`` one takes zero or more.
    ``--help`` prints and exits 0. UserError on an unknown key or flag, or a value of the wrong type.
    """
    import jsonargparse

    summary, helps = _docstring(function)
    parser = jsonargparse.ArgumentParser(prog=prog, description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        _add(parser, name, hints.get(name, str), parameter.default, helps.get(name, ""), name in positional)
    try:
        settings = parser.parse_args(_config_first(argv))
    except SystemExit:  # --help and --print_config
        raise
    except Exception as error:  # jsonargparse lets YAML, OS and argparse errors through
        raise UserError(f"{_sentence(str(error))}; see {prog} --help") from error
    values = settings.as_dict()
    values.pop("config", None)
    return {name: values.get(name, []) for name in inspect.signature(function).parameters}


def _config_first(argv: Sequence[str]) -> list[str]:
    """Move ``--config FILE`` to the front: jsonargparse lets a later file override an earlier flag."""
    configs: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            others += [word, *words]
        elif word == "--config":
            configs += [word, *([file] if (file := next(words, None)) is not None else [])]
        else:
            (configs if word.startswith("--config=") else others).append(word)
    return configs + others


def _add(parser: Any, name: str, hint: Any, default: Any, help: str, positional: bool) -> None:
    required = default is inspect.Parameter.empty
    is_list = typing.get_origin(hint) is list
    options: dict[str, Any] = {"help": help or None}
    if positional:
        if is_list:
            # Suppressed, because argparse's own default for "*" would override the list of a YAML file.
            options |= {"nargs": "*", "type": typing.get_args(hint)[0], "default": argparse.SUPPRESS}
        else:
            options |= {"type": hint} if required else {"type": hint, "nargs": "?", "default": default}
        parser.add_argument(name, **options)
        return
    flag = f"--{name.replace('_', '-')}"
    if hint is bool and default is False:
        parser.add_argument(flag, action="store_true", **options)
        return
    options |= {"required": True} if required else {"default": default}
    parser.add_argument(flag, type=hint, **options)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what the ``Args:`` section (or ``name: text`` lines) says of each setting."""
    text = inspect.getdoc(function) or ""
    summary = " ".join(text.split("\n\n")[0].split())
    names = "|".join(map(re.escape, inspect.signature(function).parameters)) or "$^"
    helps: dict[str, str] = {}
    current = ""
    for line in text.splitlines()[1:]:
        found = re.match(rf"\s*(?:``)?({names})(?:``)?(?:\s*\([^)]*\))?:\s+(.*)", line)
        if found:
            current, words = found[1], found[2]
            helps[current] = words.strip()
        elif current and line.startswith((" ", "\t")) and line.strip():
            helps[current] += " " + line.strip()
        else:
            current = ""
    return summary, helps


def _sentence(message: str) -> str:
    """jsonargparse's several lines as one sentence that names the flag and not Python's types."""
    text = " ".join(message.split())
    union = re.match(r'Parser key "([\w.]+)": Does not validate against any of the Union.*Given value: (.*)', text)
    plain = re.match(r'Parser key "([\w.]+)": (.*)', text)
    wanted = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    choices = re.findall(r"Expected a typing\.Literal\[([^\]]*)\]", text)
    if union and choices:
        text = f"{_flag(union[1])}: {union[2]!r} is none of {choices[0].replace(chr(39), '')}"
    elif union:
        types = [wanted.get(name, name) for name in re.findall(r"Expected a <class '(\w+)'>", text)]
        types = [name for name in types if name != "NoneType"]
        text = f"{_flag(union[1])}: expected {' or '.join(types) or 'another value'}, got {union[2]!r}"
    elif plain:
        text = f"{_flag(plain[1])}: {plain[2]}"
        text = re.sub(
            r"Expected a <class '(\w+)'>\. Got value: (.*)",
            lambda found: f"expected {wanted.get(found[1], found[1])}, got {found[2]!r}",
            text,
        )
    text = re.sub(r"Option '([^']+)' is not accepted", r"unknown key or flag '\1'", text)
    text = re.sub(r"^argument (--[\w-]+): ", r"\1: ", text)
    return text.rstrip(". ")


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
