"""How time and memory grow with the number of images: data prepare, data check, an export, and moments for FID.

    python benchmarks/growth.py --out benchmarks/results/growth-cpu.json --update docs/benchmarks.md
    python benchmarks/growth.py --result benchmarks/results/growth-cpu.json --update docs/benchmarks.md

The images are noise of 64 x 64 pixels, the smallest that data check accepts, each a file of its own, so that what is
measured is the work around an image, not its decoding; the network behind the moments is a stand-in that gives every
fourth pixel of every fourth row. A process of its own does each task. Near-duplicates are looked for among random
hashes, which is all that the search reads; the export is that of benchmarks/export.py, with its search for repeats.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from timing import timed
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Range, parse_settings
from roentgen.data.near import search_of
from roentgen.metrics.report.tables import Reported, rising, table
from roentgen.metrics.result import write_result
from roentgen.provenance import Surroundings, in_words, processor

NAME = "growth"
SIDE = 64
PREPARE = ("data", "prepare", "csv", "--root", "images", "--csv", "table.csv", "--text-column", "text")
WAYS = {"pairs": "all pairs are compared", "index": "above 50,000 an index (faiss)", "none": "not looked for"}
TASKS: dict[str, list[str]] = {
    "data prepare": ["-m", "roentgen", *PREPARE, "--patient-column", "patient", "--out", "manifest.csv"],
    "data check": ["-m", "roentgen", "data", "check", "manifest.csv", "--out", "check"],
    "near-duplicates of data check": [str(Path(__file__).resolve()), "--near", "ROWS"],
    "export, repeats looked for": [str(Path(__file__).resolve().with_name("export.py")), "--one", "ROWS", "1"],
    "moments for FID": [str(Path(__file__).resolve()), "--moments", "images"],
}


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Run each task on sets of rising size, and print a table."""

    rows: Annotated[tuple[Annotated[int, Range(10, 10**12)], ...], "sizes, rising, with commas"] = (
        1000,
        10_000,
        100_000,
    )


def measured(s: Settings, out: Path) -> None:
    """A process a task and size; the value is the largest memory at the largest size over that at the smallest."""
    found: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
    sizes, around = s.rows, Surroundings()
    bar = tqdm(total=sum(sizes) * len(TASKS), desc="rows", file=sys.stderr)
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder), size)
            for task, given in TASKS.items():
                words = [str(size) if word == "ROWS" else word for word in given]
                line = f"import os, sys; os.chdir({folder!r}); os.execv(sys.executable, {[sys.executable, *words]!r})"
                seconds, memory = timed([sys.executable, "-c", line])
                found[task].append({"rows": size, "seconds": seconds, "memory": memory})
                bar.update(size)
    bar.close()
    growth = max(each[-1]["memory"] / each[0]["memory"] for each in found.values())
    about = {"extractor": "a stand-in that gives some pixels", "model": {"name": "none"}}
    context = s.context("benchmarks/growth.py", settings={"side": SIDE}, **about)
    write_result(
        out, metric="largest growth of memory from the smallest set to the largest", value=growth, ci=(growth, growth),
        ci_method="none: one run each", n=sizes[-1], context=context,
        details={"tasks": found, "cpu": processor(), "conditions": around.facts(),
                 "near_search": [search_of(size) for size in sizes]},
    )  # fmt: skip


def make_images(folder: Path, count: int) -> None:
    """``images/`` with ``count`` different PNG files, and ``table.csv`` that lists them, four of a patient."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "patient"))
        for number in range(count):
            name = f"{number:07d}.png"
            pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name, compress_level=0)
            writer.writerow((name, "Left pleural effusion.", number // 4))


def moments(folder: Path) -> None:
    """What FID keeps of the images in ``folder``: reading, batching and summing, with some pixels as features."""
    import numpy as np

    from roentgen.metrics.extractor import Extractor
    from roentgen.metrics.features import stream_moments
    from roentgen.metrics.image_set import open_set

    extractor = Extractor(
        "pixels", "none", (SIDE // 4) ** 2, "none", ("features",), (), "cpu",
        lambda image: image[None, ::4, ::4].astype(np.float32), lambda batch: {"features": batch.flatten(1)},
    )  # fmt: skip
    found, _ = stream_moments(open_set(folder, name="real"), extractor)
    print(json.dumps({"n": found.n}))


def near(rows: int) -> None:
    """The search for near-duplicates among ``rows`` images with random hashes."""
    import numpy as np

    from roentgen.data.check import HASH_SIDE, ImageFacts, near_duplicates

    bits = np.random.default_rng(0).integers(0, 256, (rows, HASH_SIDE**2 // 8), dtype=np.uint8)
    facts = [ImageFacts(digest=str(number), bits=each.tobytes()) for number, each in enumerate(bits)]
    print(json.dumps({"found": len(near_duplicates(facts))}))


def as_table(result: Mapping[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    details = result["details"]
    rows = []
    for task, runs in details["tasks"].items():
        for run, before in zip(runs, [None, *runs], strict=False):
            each = "–"
            if before is not None:
                each = f"{1000 * (run['seconds'] - before['seconds']) / (run['rows'] - before['rows']):.2f}"
            rows.append([task, f"{run['rows']:,}", f"{run['seconds']:.1f}", each, f"{run['memory']:.2f}"])
    return table(
        ["task", "images", "seconds", "ms for each image more", "largest resident set (GB)"], rows,
        f"Near-duplicates: {', '.join(WAYS[way] for way in dict.fromkeys(details['near_search']))}. "
        f"Noise of {SIDE} x {SIDE} pixels, on {details['cpu']}; one run each."
        f"{in_words(details['conditions'])} Made by `{result['command']}`.",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--moments"], ["--near"]):
        moments(Path(words[1])) if words[0] == "--moments" else near(int(words[1]))
        return 0
    s = parse_settings(Settings, words, prog="benchmarks/growth.py", about=__doc__)
    rising(s.rows, "--rows")
    return s.report(NAME, measure=measured, table=as_table)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/growth.py"))
