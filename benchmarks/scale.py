"""One set made three times: alone, by two workers of a local Ray cluster, and by two of which one is killed on the way.

    python benchmarks/scale.py --out benchmarks/results/scale.json --update docs/scale.md

The three must be equal byte for byte. Each worker is a Ray node with one CPU, so that the machine needs two cores. With
``--update`` the document gets this run, and what a million images take by the rates that ``roentgen export`` ships.
Needs the extra ``ray``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from roentgen import errors
from roentgen.config import Count, PathOrName, Steps, parse_settings
from roentgen.errors import UserError
from roentgen.files import read_json
from roentgen.metrics.report.tables import replace_between_markers, table
from roentgen.metrics.result import write_json
from roentgen.provenance import command_line, git_state, processor, versions
from roentgen.threads import cores

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "prompts" / "combinations.csv"
MILLION, NODES = 1_000_000, 8


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    out: Annotated[Path, "JSON file of the result"] = Path("benchmarks/results/scale.json")
    update: Annotated[Path | None, "document with the markers results:scale and results:million"] = None
    model: Annotated[PathOrName, "model of the set"] = "mini"
    images: Annotated[Count, "images of each prompt"] = 4
    shard_size: Annotated[Count, "images a shard"] = 8
    steps: Annotated[Steps | None, "denoising steps (default: the model's)"] = None
    only_update: Annotated[bool, "make the document's tables from the result that is there"] = False


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/scale.py", about=__doc__)
    if not s.only_update:
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(s, Path(folder))
        write_json(
            s.out,
            {
                "rows": rows,
                "equal": len({row["sums"] for row in rows}) == 1,
                "processor": processor(),
                "cores": cores(),
                "command": command_line("benchmarks/scale.py", s),
                "git_commit": git_state(ROOT)["commit"],
                "versions": versions(),
            },
        )
    result = read_json(s.out, advice="make it first")
    if not result["equal"]:
        raise UserError(f"{s.out}: the sets differ")
    replace_between_markers(s.update, "scale", said(result))
    replace_between_markers(s.update, "million", million())
    return 0


def compare(s: Settings, folder: Path) -> list[dict[str, Any]]:
    """Seconds and sums of the set alone, by two workers, and with one of them killed."""
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        raise UserError(f"Ray is not installed; {errors.install('ray')}") from None
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_DISABLE_IMPORT_WARNING": "1", "OMP_NUM_THREADS": "1"}
    rows = [{"set": "alone, one thread", **run(s, folder / "alone" / "set")}]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    try:
        ray = ("--ray", cluster.address)
        rows.append({"set": "two workers", **run(s, folder / "two" / "set", *ray)})

        def kill() -> None:
            cluster.remove_node(other, allow_graceful=False)

        killed = run(s, folder / "killed" / "set", *ray, midway=kill)
        rows.append({"set": "two workers, one killed on the way", **killed})
    finally:
        cluster.shutdown()
    return rows


def run(s: Settings, out: Path, *more: str, midway: Callable[[], None] | None = None) -> dict[str, Any]:
    """One export in a process of its own; ``midway`` is called once the first shards are there."""
    words = ["export", "--prompts", str(PROMPTS), "--num-images", str(s.images), "--model", s.model, "--out", str(out)]
    words += ["--shard-size", str(s.shard_size), "--filter", "none", "--format", "folder", "--device", "cpu"]
    words += ["--dtype", "float32", *(() if s.steps is None else ("--steps", str(s.steps))), *more]
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "roentgen", *words], cwd=ROOT) as process:
        while process.poll() is None:
            if midway is not None and len(list(out.rglob("round-0/*.json"))) >= 2:
                midway()
                midway = None
            time.sleep(0.05)
    if process.returncode:
        raise UserError(f"roentgen export ended with {process.returncode}; its message is above")
    if midway is not None:
        raise UserError("the set was complete before a worker could be killed; raise --images")
    images = len(list(out.rglob("*.png")))
    return {"seconds": time.perf_counter() - began, "images": images, "sums": (out / "SHA256SUMS").read_text()}


def said(result: Mapping[str, Any]) -> str:
    """This run as a table."""
    rows = [[row["set"], str(row["images"]), f"{row['seconds']:.0f}"] for row in result["rows"]]
    text = f"All three sets are equal, byte for byte. {result['processor']}, {result['cores']} cores, one thread each; "
    return f"{table(['set', 'images', 'seconds'], rows)}\n\n{text}seconds include the start. `{result['command']}`"


def million() -> str:
    """What a million images take, by the stored rates."""
    stored = read_json(ROOT / "roentgen" / "synthesis" / "rates.json")
    rows = []
    for model, rates in stored.items():
        for rate in rates:
            hours = MILLION * rate["seconds"] / rate["kept"] / 3600
            disk = f"{MILLION * rate['kilobytes'] / 1e6:.1f}"
            name = f"{model}, {rate['dtype']}, {rate['processor']}"
            rows.append([name, f"{rate['seconds']:.2f}", f"{hours:.0f}", f"{hours / NODES:.1f}", disk])
    header = ["worker", "seconds an image", "hours, one worker", f"hours, {NODES} workers", "GB of PNG"]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/scale.py"))
