"""Memory and time of `roentgen export` around the model: the engine with a stand-in that makes noise.

    python benchmarks/export.py --out benchmarks/results/export-memory.json --update docs/export.md
    python benchmarks/export.py --result benchmarks/results/export-memory.json --update docs/export.md

Plan, draws, filter of black images, writing of WebDataset shards, card and sums are the real ones; a set of each size
is made by a process of its own, whose largest resident set is compared. The search for repeats among all pairs takes
time that grows with the square of the rows, so the largest sets leave it out.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from roentgen import errors
from roentgen.config import Count, CountFromZero, parse_settings
from roentgen.metrics.report.tables import Reported, rising
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result

SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Make sets of a stand-in's images and compare the memory that they take."""

    rows: Annotated[tuple[Count, ...], "sizes of the sets, rising, with commas"] = (10_000, 100_000, 1_000_000)
    compared: Annotated[CountFromZero, "largest set whose images are compared with one another"] = 100_000


def measured(s: Settings, out: Path) -> None:
    """A process a size; the value is the largest size's memory over the smallest one's."""
    sets = []
    for size in s.rows:
        print(f"{size:,} rows", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(size), str(int(size <= s.compared))],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        sets.append(json.loads(done.stdout))
    growth = sets[-1]["memory"] / sets[0]["memory"]
    context = s.context(
        "benchmarks/export.py", settings={"side": SIDE, "format": "webdataset"},
        model={"name": "stand-in that makes noise", "hash": "none"},
    )  # fmt: skip
    write_result(
        out, metric="largest resident set of roentgen export, largest set over smallest", value=growth,
        ci=(growth, growth), ci_method="none: one run each", n=s.rows[-1], context=context, details={"sets": sets},
    )  # fmt: skip


def make_one(rows: int, compare: bool) -> dict[str, Any]:
    """Make a set of so many rows in a folder that is thrown away: seconds, and GB of the largest resident set."""
    import numpy as np

    from roentgen.generators.base import Sample
    from roentgen.synthesis.engine import make_set
    from roentgen.synthesis.filters import Filter
    from roentgen.synthesis.filters.repeats import Repeats
    from roentgen.synthesis.sources import resolve_plan
    from roentgen.synthesis.writers.parts import SetInfo

    marks = {"model": "stand-in", "model_hash": "0" * 16, "sampler": "none", "steps": "1", "guidance": "1"}
    marks |= {"version": "0", "software": "roentgen", "synthetic": "true"}

    def make(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[Sample]:
        for prompt, seed in zip(prompts, seeds, strict=True):
            image = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            yield Sample(image, prompt, seed, 0, {"prompt": prompt, "seed": str(seed), **marks})

    plan = resolve_plan(per_finding=rows // len(FINDINGS.split(",")), findings=FINDINGS, shard_size=1000)
    info = SetInfo("stand-in", len(plan), plan.findings, {"name": "stand-in"}, plan.as_dict(), None, "benchmark")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = make_set(
            plan, info, Path(folder) / "set", formats=("webdataset",), make=make, judge=Filter(("broken",)),
            find_repeats=Repeats(4, len(plan)) if compare else None,
        )  # fmt: skip
        assert counts is not None and counts["images"] == rows
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return {"rows": rows, "compared": compare, "seconds": time.perf_counter() - began, "memory": memory}


FINDINGS = "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema,Fibrosis,Infiltration,Mass,Nodule"


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result."""
    rows = [
        [f"{one['rows']:,}", "yes" if one["compared"] else "no", f"{one['memory']:.2f}",
         f"{1000 * one['seconds'] / one['rows']:.2f}"]
        for one in result["details"]["sets"]
    ]  # fmt: skip
    return markdown(
        ["rows", "compared with one another", "largest resident set (GB)", "ms a row"], rows,
        f"Noise of {SIDE} x {SIDE} pixels in place of a model. Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--one"]:
        print(json.dumps(make_one(int(words[1]), words[2] == "1")))
        return 0
    s = parse_settings(Settings, words, prog="benchmarks/export.py", about=__doc__)
    rising(s.rows, "--rows")
    return s.report("export-memory", measure=measured, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/export.py"))
