"""How long a set takes and how large it gets: from a rate that was measured before, or just now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("rates.json")
"""Rates that ship, by model, each with the measurement that it is ``from``."""


@dataclass(frozen=True)
class Rate:
    """Seconds and kilobytes an image, and the share that the usual filter keeps. ``where``: the processor."""

    seconds: float
    kilobytes: float
    kept: float
    n: int
    where: str = "this machine"


def stored_rate(model: str, *, device: str, dtype: str, steps: int | None, filtered: bool) -> Rate | None:
    """The rate of a named model on this kind of device ("cpu", "cuda") in ``dtype``; None where none is known.

    Time goes with the steps. ``filtered``: whether a filter rejects images.
    """
    known = json.loads(FILE.read_text(encoding="utf-8")).get(model, [])
    for one in known:
        if (one["device"], one["dtype"]) == (device.partition(":")[0], dtype):
            seconds = one["seconds"] * (1 if steps is None else steps / one["steps"])
            kept = one["kept"] if filtered else 1.0
            return Rate(seconds, one["kilobytes"], kept, one["n"], one["processor"])
    return None


def estimate(rate: Rate, *, images: int, max_tries: int, formats: Sequence[str], out: Path | None) -> list[str]:
    """Lines for the screen: time and disk of ``images`` at a rate."""
    # Draws go on until one is kept, at most max_tries: the mean of a geometric distribution that is cut off.
    tries = max_tries if rate.kept == 0 else (1 - (1 - rate.kept) ** max_tries) / rate.kept
    size = images * rate.kilobytes * 1e3
    disk = size * (len(formats) + 1)
    lines = [
        f"from {rate.n} images on {rate.where}: {rate.seconds:.2g} s and {rate.kilobytes:.0f} kB each, "
        f"{rate.kept:.0%} of them kept; so about {tries:.1f} draws an image",
        f"time: about {_duration(images * tries * rate.seconds)} in one process; disk: about {_size(disk)} while it is "
        f"made, {_size(size * len(formats))} afterwards",
    ]
    existing = next((p for p in [out, *out.parents] if p.exists()), None) if out is not None else None
    if existing is not None and (free := shutil.disk_usage(existing).free) < disk:
        lines.append(f"only {_size(free)} are free where --out {out} is: choose another place or fewer --format")
    return lines


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(count: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
