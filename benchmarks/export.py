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
from pathlib import Path
from typing import Any

from roentgen import errors
from roentgen.config import parse_call
from roentgen.errors import UserError
from roentgen.metrics.report.tables import report
from roentgen.metrics.result import Context, write_result
from roentgen.provenance import git_state

ROOT = Path(__file__).resolve().parent.parent
SIDE = 16


def measure(
    *,
    out: str | None = None,
    result: str | None = None,
    update: str | None = None,
    rows: str = "10000,100000,1000000",
    compared: int = 100_000,
) -> int:
    """Make sets of a stand-in's images and compare the memory that they take.

    Args:
        out: JSON file for the result.
        result: Measure nothing, take this JSON file of an earlier run.
        update: Document in which the region results:export-memory is replaced by the table.
        rows: Sizes of the sets, rising, with commas.
        compared: Largest set whose images are compared with one another.
    """
    return report(
        "export-memory", out=out, result=result, update=update, table=table,
        measure=lambda path: measured(_sizes(rows), compared, path),
    )  # fmt: skip


def _sizes(rows: str) -> list[int]:
    try:
        sizes = [int(part) for part in rows.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or sizes[0] < 1 or sizes != sorted(set(sizes)):
        raise UserError(f"--rows {rows}: give at least two whole numbers, rising, with commas")
    return sizes


def measured(sizes: Sequence[int], compared: int, out: Path) -> None:
    """A process a size; the value is the largest size's memory over the smallest one's."""
    sets = []
    for size in sizes:
        print(f"{size:,} rows", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(size), str(int(size <= compared))],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        sets.append(json.loads(done.stdout))
    growth = sets[-1]["memory"] / sets[0]["memory"]
    context = Context(
        extractor="none", resize="none", seed=0,
        settings={"rows": list(sizes), "compared": compared, "side": SIDE, "format": "webdataset"},
        model={"name": "stand-in that makes noise", "hash": "none"}, inputs={},
        command=f"python benchmarks/export.py --rows={','.join(map(str, sizes))} --compared={compared}",
        git=git_state(ROOT),
    )  # fmt: skip
    write_result(
        out, metric="largest resident set of roentgen export, largest set over smallest", value=growth,
        ci=(growth, growth), ci_method="none: one run each", n=sizes[-1], context=context, details={"sets": sets},
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
        outcome = make_set(
            plan, info, Path(folder) / "set", formats=("webdataset",), make=make, judge=Filter(("broken",)),
            find_repeats=Repeats(4, len(plan)) if compare else None,
        )  # fmt: skip
        assert outcome is not None and outcome.images == rows
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return {"rows": rows, "compared": compare, "seconds": time.perf_counter() - began, "memory": memory}


FINDINGS = "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema,Fibrosis,Infiltration,Mass,Nodule"


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result."""
    lines = ["| rows | compared with one another | largest resident set (GB) | ms a row |", "|---:|---|---:|---:|"]
    for one in result["details"]["sets"]:
        each = 1000 * one["seconds"] / one["rows"]
        lines.append(f"| {one['rows']:,} | {'yes' if one['compared'] else 'no'} | {one['memory']:.2f} | {each:.2f} |")
    return "\n".join(
        [*lines, "", f"Noise of {SIDE} x {SIDE} pixels in place of a model. Made by `{result['command']}`."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--one"]:
        print(json.dumps(make_one(int(words[1]), words[2] == "1")))
        return 0
    return measure(**parse_call(measure, words, prog="benchmarks/export.py"))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/export.py"))
