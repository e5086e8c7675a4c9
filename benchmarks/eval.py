"""Time and memory of FID, beside torch-fidelity and clean-fid on the same images in the same run.

    python benchmarks/eval.py --out benchmarks/results/eval-cpu.json --update docs/benchmarks.md
    python benchmarks/eval.py --result benchmarks/results/eval-cpu.json --update docs/benchmarks.md

The images are those of data/sample, cropped, darkened and made noisy at random but always the same, as PNG files in
two folders of half the number each. The network is torch-fidelity's Inception-v3 with random weights, which costs what
the real ones cost. Every measurement is a process of its own, so that imports, loading, reading, resizing and the
matrix root count; the tools take turns, ours first, when only the making of the images has filled the file cache. Each
peer is held against ours with the peer's own resize, and the distances must agree. Memory is the largest resident set
of a tool's main process; the processes that decode for the peers come on top.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from timing import conditions, require_packages, summarised, timed
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Count, Range, Workers, parse_settings
from roentgen.files import read_json
from roentgen.images import read_image
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import write_json
from roentgen.provenance import Surroundings, in_words

ROOT = Path(__file__).resolve().parent.parent
SIDES = Path(__file__).with_name("fid_sides.py")
SAMPLE = ROOT / "data" / "sample" / "images"
PEERS = {"torch-fidelity": "roentgen", "clean-fid": "roentgen-clean"}  # peer -> ours with the peer's resize
GOALS = {"fid": 2.0, "root": 10.0}
AGREE = {"fid": 1e-3, "root": 1e-6}  # relative


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Measure the FID of two folders by roentgen, torch-fidelity and clean-fid on this machine's CPU."""

    images: Annotated[int, Range(4, 10**12), "images in both folders together"] = 5000
    side: Annotated[Count, "pixels a side of each"] = 256
    repeats: Annotated[Count, "runs of each tool; the table shows medians"] = 1
    workers: Annotated[
        Workers, "threads that decode for ours, processes that do for clean-fid; torch-fidelity uses its own number"
    ] = 2
    dim: Annotated[int, Range(2, 65_536), "dimensions for the matrix root"] = 2048
    scratch: Annotated[Path | None, "folder for images and weights (default: a temporary one)"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/eval.py", about=__doc__)
    return s.report("eval-speed", measure=run, table=table, keep=False, read=read_json)


def run(s: Settings, out: Path) -> None:
    """Measure everything, to ``out``."""
    require_packages(("torch-fidelity", "clean-fid", "scipy"))
    with tempfile.TemporaryDirectory(dir=s.scratch) as folder:
        write_json(out, measured(s, Path(folder)))


def measured(s: Settings, folder: Path) -> dict[str, Any]:
    """Run everything and return the result: values, summary, ratios, settings and machine."""
    make_images(folder, s.images, side=s.side)
    call(folder, {"side": "weights"})
    tools = [tool for peer, own in PEERS.items() for tool in (own, peer)]
    values: dict[str, dict[str, list[float]]] = {tool: {} for tool in tools}
    around = Surroundings()
    bar = tqdm(total=s.repeats * len(tools), desc="runs", file=sys.stderr)
    for _ in range(s.repeats):
        for tool in tools:
            bar.set_postfix_str(tool)
            job = {"side": tool, "a": str(folder / "a"), "b": str(folder / "b"), "workers": s.workers}
            answer, seconds, memory = call(folder, job)
            for name, value in (("seconds", seconds), ("memory", memory), ("fid", answer["fid"])):
                values[tool].setdefault(name, []).append(value)
            values[tool].setdefault("without_start", []).append(answer["seconds"])
            bar.update()
    bar.close()
    root, _, _ = call(folder, {"side": "roots", "dim": s.dim})

    summary = {tool: {name: summarised(each) for name, each in of.items()} for tool, of in values.items()}
    compared: dict[str, dict[str, float]] = {}
    for peer, own in PEERS.items():
        a, b = summary[own], summary[peer]
        compared[peer] = {
            "ratio": b["seconds"]["median"] / a["seconds"]["median"],
            "ratio_without_start": b["without_start"]["median"] / a["without_start"]["median"],
            "difference": abs(a["fid"]["median"] - b["fid"]["median"]) / abs(b["fid"]["median"]),
        }
    where = conditions(around)
    return {
        "metric": "eval-speed",
        "settings": {key: getattr(s, key) for key in ("images", "side", "repeats", "workers", "dim")},
        "tools": summary,
        "compared": compared,
        "root": root | {"ratio": root["scipy"] / root["roentgen"]},
        "goals": GOALS,
        "agreement": AGREE,
        **where,
        "versions": where["versions"] | {name: importlib.metadata.version(name) for name in (*PEERS, "scipy")},
    }


def make_images(folder: Path, count: int, *, side: int) -> None:
    """Two folders, a and b, of ``count`` PNG files together: the sample's images, jittered by their number."""
    sources = sorted(path for path in SAMPLE.iterdir() if path.suffix == ".jpg")
    for number in range(count):
        name = "ab"[number % 2]
        rng = np.random.default_rng(number)
        picture = Image.fromarray(read_image(sources[number // 2 % len(sources)]))
        width, height = picture.size
        left, top, right, low = rng.uniform(0, 0.15, 4) * (width, height, width, height)
        cut = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, width - right, height - low))
        grey = (np.asarray(cut) / 255) ** rng.uniform(0.8, 1.2 if name == "a" else 1.8)  # b is darker: a real distance
        pixels = np.clip(255 * grey + rng.normal(0, 4, grey.shape), 0, 255).astype(np.uint8)
        place = folder / name / f"{number:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place, compress_level=1)


def call(folder: Path, job: dict[str, Any]) -> tuple[dict[str, float], float, float]:
    """Run one side: what it wrote, its seconds and its GB."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    whole = {**job, "weights": str(folder / "inception.pth"), "out": str(answer)}
    seconds, memory = timed([sys.executable, str(SIDES), json.dumps(whole)])
    return json.loads(answer.read_text()), seconds, memory


def table(result: dict[str, Any]) -> str:
    """The Markdown table of a result, with its conditions below."""
    rows = []
    for peer, own in PEERS.items():
        resize = "TensorFlow-1 resize" if own == "roentgen" else "clean resize"
        for tool, words in ((own, f"roentgen, {resize}"), (peer, peer)):
            of, compared = result["tools"][tool], result["compared"][peer]
            last = [f"{compared['ratio']:.2f}", f"{compared['difference']:.1e}"] if tool == peer else ["", ""]
            rows.append([words, f"{of['seconds']['median']:.0f}", f"{of['memory']['median']:.2f}", *last])
    root, settings, facts = result["root"], result["settings"], result["machine"]
    packages = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", *PEERS, "scipy"))
    return markdown(
        ["FID", "seconds", "GB", "peer : ours", "relative difference"], rows,
        f"Trace of the root of a product of two covariances in {settings['dim']} dimensions: {root['roentgen']:.2f} s, "
        f"`scipy.linalg.sqrtm` {root['scipy']:.2f} s, {root['ratio']:.1f} times as long, relative difference "
        f"{root['difference']:.0e}.",
        f"{settings['images']} images of {settings['side']} px in two folders, Inception-v3 with random weights, "
        f"{facts['cores']} cores of {facts['cpu']}; {packages}; median of "
        f"{settings['repeats']} run(s), whole processes.{in_words(result.get('conditions'))}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/eval.py"))
