"""From how many images on `roentgen export --compile` pays on a CPU, with torch's cache empty and filled.

    python benchmarks/compiled.py --out benchmarks/results/compiled-cpu.json --update docs/benchmarks.md
    python benchmarks/compiled.py --result benchmarks/results/compiled-cpu.json --update docs/benchmarks.md

Every run is a process of its own, on a short set and on a longer one: what the longer takes more, over the images it
makes more, is the cost of an image. Compiling begins with an empty cache (TORCHINDUCTOR_CACHE_DIR); the runs after it
find that cache filled. A set pays from the number of images on at which what each saves makes up for the later start.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from generate import SET_BATCH, check_lengths, difference, export_words, on_disk
from timing import machine, timed
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Count, PathOrName, parse_settings
from roentgen.metrics.report.tables import Reported, table
from roentgen.metrics.result import write_result
from roentgen.models import hub
from roentgen.provenance import Surroundings, in_words

DTYPES = ("float32", "bfloat16")
CACHES = {"empty": "cold", "filled": "filled"}


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Run `roentgen export` with and without --compile on this machine's CPU, and print a table."""

    model: Annotated[PathOrName, "mini, or a diffusers folder"] = "mini"
    short: Annotated[Count, "images of the shorter set"] = 16
    long: Annotated[Count, "images of the longer set; multiples of 16 leave no smaller batch to compile again"] = 96


def measured(s: Settings, out: Path) -> None:
    """Time plain, compiling and compiled runs of both types of numbers, and write the result."""
    folder, short, long = on_disk(s.model), s.short, s.long
    around = Surroundings()
    found = {}
    bar = tqdm(total=5 * len(DTYPES), desc="runs", file=sys.stderr)
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            runs = {}
            for name, count, compiled in (
                ("plain short", short, False), ("plain long", long, False), ("cold short", short, True),
                ("filled short", short, True), ("filled long", long, True),
            ):  # fmt: skip
                bar.set_postfix_str(f"{dtype}, {name}")
                runs[name] = timed(command(folder, place, name, count, dtype, compiled=compiled))[0]
                bar.update()
            apart = difference(place / "filled long", place / "plain long", long)
        found[dtype] = figures(runs, short=short, long=long) | {"runs": runs, "difference": apart}
    bar.close()
    context = s.context(
        "benchmarks/compiled.py", extractor="wall clock", settings={"batch": SET_BATCH},
        model={"name": s.model if s.model in hub.NAMED else folder.name, "hash": hub.model_hash(folder)},
    )  # fmt: skip
    value = found[DTYPES[0]]["pays_from"]["filled"]
    write_result(
        out, metric="images from which compiling pays, float32, cache filled",
        value=math.nan if value is None else value, ci_method="none: one run each", n=1,
        context=context, details={"dtypes": found, "machine": machine(), "conditions": around.facts()},
    )  # fmt: skip


def command(folder: Path, scratch: Path, name: str, count: int, dtype: str, *, compiled: bool) -> list[str]:
    """One export of ``count`` images, whose compiler keeps what it makes below ``scratch``."""
    words = export_words(folder, scratch / name, count, dtype=dtype, device="cpu")
    words += ["--compile"] if compiled else []
    line = f"import os, sys; os.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(scratch / 'cache')!r}; "
    return [sys.executable, "-c", f"{line}os.execv(sys.executable, {[sys.executable, *words]!r})"]


def figures(runs: Mapping[str, float], *, short: int, long: int) -> dict[str, Any]:
    """Seconds an image, seconds until the first one, and the smallest set that pays; None where none does."""
    each = {way: (runs[f"{way} long"] - runs[f"{way} short"]) / (long - short) for way in ("plain", "filled")}
    start = {way: runs[f"{way} short"] - short * each["plain" if way == "plain" else "filled"]
             for way in ("plain", "cold", "filled")}  # fmt: skip
    saved = each["plain"] - each["filled"]
    pays = {way: math.ceil((start[way] - start["plain"]) / saved) if saved > 0 else None for way in ("cold", "filled")}
    return {"seconds_per_image": each, "start": start, "pays_from": pays}


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details, settings = result["details"], result["settings"]
    rows = []
    for dtype, found in details["dtypes"].items():
        each, start = found["seconds_per_image"], found["start"]
        rows.append([dtype, "no", f"{start['plain']:.1f}", f"{each['plain']:.3f}", ""])
        for words, way in CACHES.items():
            pays = found["pays_from"][way]
            shown = "no number" if pays is None else f"{max(pays, 1):,}"
            rows.append([dtype, f"yes, cache {words}", f"{start[way]:.1f}", f"{each['filled']:.3f}", shown])
    apart = " and ".join(f"{found['difference']:.2f}" for found in details["dtypes"].values())
    facts = details["machine"]
    return table(
        ["numbers", "compiled", "start (s)", "s an image", "pays from (images)"], rows,
        f"`{result['model']['name']}` ({result['model']['hash']}), sets of {settings['short']} and "
        f"{settings['long']} images in batches of {settings['batch']}, on {facts['cores']} cores of "
        f"{facts['cpu']}; torch {result['versions']['torch']}; one run each. Compiled and plain images are {apart} "
        f"grey levels of 255 apart on average.{in_words(details['conditions'])} Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/compiled.py", about=__doc__)
    check_lengths(s.short, s.long)
    return s.report("compiled", measure=measured, table=as_table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/compiled.py"))
