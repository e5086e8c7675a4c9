"""Time of `roentgen report`: one image from a cold start, and each further one, as processes of their own.

    python benchmarks/report.py --out benchmarks/results/report-cpu.json --update docs/reports.md
    python benchmarks/report.py --result benchmarks/results/report-cpu.json --update docs/reports.md

Imports, loading and writing JSON, text and picture count. A further image costs what the same command with more images
takes longer than with one, over the images that it reads more. One call before the first fills the file cache.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from timing import machine, summarised, timed

from roentgen import errors
from roentgen.config import Count, parse_settings
from roentgen.errors import UserError
from roentgen.files import file_sha256
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_result
from roentgen.reports.load import MINI_REPORT, SHIPPED

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "data" / "sample" / "images"
GOALS = {"cold": 6.0, "further": 1.0}
"""Seconds that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Time `roentgen report` of the sample images by mini-report."""

    repeats: Annotated[Count, "times that each command runs"] = 5
    further: Annotated[Count, "images of the longer command beyond the first"] = 4


def run(s: Settings, out: Path) -> None:
    """Time both commands in turn, and write the result."""
    repeats, further = s.repeats, s.further
    images = sorted(IMAGES.glob("*.jpg"))[: 1 + further]
    if len(images) <= further:
        raise UserError(f"--further {further}: {IMAGES} has {len(images)} images; use less")
    seconds(images[:1])
    cold, more = [], []
    for _ in range(repeats):
        cold.append(seconds(images[:1]))
        more.append((seconds(images) - cold[-1]) / further)
    found = {"cold": summarised(cold), "further": summarised(more)}
    context = s.context(
        "benchmarks/report.py", resize="the reporter's own",
        extractor="wall time of a process, imports, loading and writing included",
        settings={"images": "data/sample/images", "device": "cpu", **machine()},
        model={"name": MINI_REPORT, "hash": file_sha256(SHIPPED[MINI_REPORT] / "model.safetensors")[:16]},
    )  # fmt: skip
    write_result(
        out, metric="seconds of `roentgen report` on one image, cold", value=statistics.median(cold),
        ci=(min(cold), max(cold)), ci_method="smallest and largest of the repeats", n=repeats, context=context,
        goal="cold under 6 s, each further image under 1 s", details={"seconds": found, "goals": GOALS},
    )  # fmt: skip


def seconds(images: Sequence[Path]) -> float:
    """Wall time of `roentgen report` on ``images``, on the CPU, its three files an image written."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "roentgen", "report", *map(str, images), "--device", "cpu", "--out", folder]
        return timed(words)[0]


def table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result."""
    found, settings = result["details"]["seconds"], result["settings"]
    names = {"cold": "one image, cold start", "further": "each further image"}
    rows = [
        [name, f"{found[key]['median']:.2f}", f"{found[key]['min']:.2f} to {found[key]['max']:.2f}",
         f"under {result['details']['goals'][key]:.0f}"]
        for key, name in names.items()
    ]  # fmt: skip
    return markdown(
        ["`roentgen report`, mini-report", "median (s)", "smallest to largest", "goal (s)"], rows,
        f"{settings['repeats']} runs on {settings['cores']} cores of {settings['cpu']}, nothing beside them.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/report.py", about=__doc__)
    return s.report("reports-speed", measure=run, table=table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/report.py"))
