"""Every value of every JSON file that commands read from folders, replaced by every odd one: no chance in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import checks
from .case import Case
from .world import TEXTS, World, eval_words, export_flags

LOST = "(lost)"
"""Stands for a key or an item that is not there."""
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**30, float("nan"), "", "x", "\ud800", [], {}, [[]], {"a": None}, LOST),
)


class Change(NamedTuple):
    """What is changed: a folder of the world, a JSON file in it, the keys that lead to a value, and the new value."""

    folder: str
    file: str
    place: tuple[str | int, ...]
    value: Any


def changes(world: World, *, items: int = 3) -> Iterator[Change]:
    """All changes, in a fixed order; of lists and of vocabularies the first ``items`` values only."""
    for folder in folders(world):
        root = world.root / folder
        for path in sorted(root.rglob("*.json")):
            if {"cache", "checkpoints"} & set(path.relative_to(root).parts):
                continue
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # behind a seal
                continue
            for place in places(value, items):
                for odd in ODD:
                    if odd != LOST or place:
                        yield Change(folder, str(path.relative_to(root)), place, odd)


def places(value: Any, items: int) -> Iterator[tuple[str | int, ...]]:
    """The ways to all values inside, the whole one first."""
    yield ()
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in inside[: 200 if isinstance(value, dict) and len(inside) < 200 else items]:
        for place in places(item, items):
            yield (key, *place)


def folders(world: World) -> list[str]:
    """What is read: models of both families, reporters, exported sets, evaluations."""
    reporters = sorted(f"reporters/{path.name}" for path in (world.root / "reporters").iterdir())
    return ["tiny", "masked", *reporters, "exported", "shards", "evaluated", "trained/pipeline"]


def case(world: World, folder: Path, change: Change) -> Case:
    """The command that reads the changed folder."""
    root = world.copy(change.folder, folder)
    path = root / change.file
    value = json.loads(path.read_text(encoding="utf-8"))
    if change.place:
        inner = value
        for key in change.place[:-1]:
            inner = inner[key]
        if change.value == LOST:
            del inner[change.place[-1]]
        else:
            inner[change.place[-1]] = change.value
    else:
        value = change.value
    path.write_text(json.dumps(value), encoding="utf-8")
    what = f"{change.folder}/{change.file} {'.'.join(map(str, change.place))} = {str(change.value)[:60]!r}"
    command, words, check = _reader(world, change.folder, root)
    return Case(command, "every value", words, what, None, check)


def _reader(world: World, name: str, root: Path) -> tuple[str, list[str], Any]:
    if name in ("tiny", "masked"):
        return "generate", ["generate", TEXTS[0], "--model", str(root), "--steps", "1", "-o", "out"], checks.generated
    if name.startswith("reporters/"):
        return "report", ["report", str(world.set / "i0.png"), "--model", str(root), "-o", "out"], lambda outcome: ""
    if name == "exported":
        return "export", ["export", *export_flags(world), "-o", str(root)], checks.same_files(root, world.exported)
    if name == "shards":
        words = ["data", "shard", str(world.set / "manifest.csv"), "-o", str(root)]
        return "data shard", words, checks.same_files(root, world.shards)
    if name == "evaluated":
        return "eval", [*eval_words(world), "-o", str(root)], checks.same_results(root, world.evaluated)
    return "push", ["push", str(root), "OWNER/NAME", "--dry-run"], lambda outcome: ""
