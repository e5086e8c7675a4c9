"""The text of --help."""

from __future__ import annotations

import re
import shutil
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path

from roentgen.config.ranges import Range, Tilde
from roentgen.config.settings import Setting, paragraphs
from roentgen.config.values import arm, unwrap


def help_text(settings: Sequence[Setting], *, prog: str, about: str | None) -> str:
    """Usage, description, settings in their groups with defaults and ranges, and examples."""
    described = paragraphs(about or "")
    width = max(60, min(110, shutil.get_terminal_size().columns))
    places = [one for one in settings if one.positional]
    needed = [f"{one.flag} {_metavar(one)}" for one in settings if one.default is MISSING and not one.positional]
    words = [f"{one.flag} ..." if one.is_list else one.flag for one in places]
    words = [word if one.default is MISSING else f"[{word}]" for word, one in zip(words, places, strict=True)]
    lines = [" ".join(["usage:", prog, *words, *needed, "[--config FILE] [flags]"]), ""]
    lines += [*textwrap.wrap(described[0], width), ""] if described else []
    for group in dict.fromkeys(one.group for one in settings):
        lines += [f"{group}:"]
        for one in settings:
            if one.group == group:
                lines += _help_lines(one, width)
        lines += [""]
    lines += [
        "  --config FILE  YAML file with any of these settings; flags win over it",
        "  -h, --help     show this help",
    ]
    examples = re.findall(r"^ +((?:roentgen|python|accelerate|torchrun) (?:.*\\\n)*.*)$", about or "", flags=re.M)
    if examples:
        lines += ["", "examples:", *("  " + re.sub(r"\\\n *", "", line) for line in examples)]
    return "\n".join(lines)


def _help_lines(one: Setting, width: int) -> list[str]:
    head = ", ".join([*([one.short] if one.short else []), one.flag])
    if not one.positional and one.base is not bool:
        head += f" {_metavar(one)}"
    facts = []
    if one.default is MISSING:
        facts.append("required")
    elif one.default is not None and one.default is not False and one.default not in ((), [], ""):
        default = one.default
        text = " ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
        text = f"true; --no-{one.flag[2:]} for false" if default is True else text
        facts.append(f"default: {text}" if len(text) <= 60 and "default:" not in one.help else "")
    hint, (_, extras) = one.hint, unwrap(one.hint)
    extras = (*extras, *unwrap(arm(unwrap(hint)[0]))[1])
    facts += [str(extra) for extra in extras if isinstance(extra, Range)]
    note, text = "; ".join(filter(None, facts)), re.sub(r"(?<!\.)\.$", "", one.help)
    if note:  # joins a bracket that ends the help
        text = f"{text[:-1]}; {note})" if text.endswith(")") else f"{text} ({note})".strip()
    body = textwrap.wrap(text, width - 26) or [""]
    if len(head) <= 22:
        return [f"  {head:<22}  {body[0]}", *(f"{'':26}{line}" for line in body[1:])]
    return [f"  {head}", *(f"{'':26}{line}" for line in body)]


def _metavar(one: Setting) -> str:
    base = one.base
    item = unwrap(typing.get_args(base)[0])[0] if one.is_list else base
    if typing.get_origin(item) is typing.Literal:
        name = "{" + ",".join(map(str, typing.get_args(item))) + "}"
    elif any(isinstance(extra, Tilde) for extra in (*unwrap(one.hint)[1], *unwrap(arm(unwrap(one.hint)[0]))[1])):
        name = "PATH"
    else:
        name = {int: "N", float: "X", Path: "PATH", str: "TEXT"}.get(item, "YAML")
    return f"{name} ..." if one.is_list else name
