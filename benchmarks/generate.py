"""Time and memory of `roentgen generate`, beside stock diffusers with the same weights in the same run.

    python benchmarks/generate.py --out benchmarks/results/generate-cpu.json --update README.md docs/benchmarks.md
    python benchmarks/generate.py --result benchmarks/results/generate-cpu.json --update README.md docs/benchmarks.md
    python benchmarks/generate.py --device cuda --model sd15-random --out generate-gpu.json

Every measurement is a process of its own, so that imports, loading and writing the file count; ours and
theirs take turns, after one warm-up each that fills the file cache. A further image costs a quarter of what
the same command with five images takes longer than with one. Memory is the process's largest resident set.

A data set is `roentgen export` without a filter beside loops over stock diffusers, the same prompts and seeds: what a
longer run takes more than a shorter one, over the images it makes more. How far the images are apart says whether the
speed was bought with quality; for RoentGen's published sampling, eval/steps.py measures that.

On a GPU both sides compute in float16 where they are not asked for something else, memory is what the GPU has more in
use than before, and the share of its peak that the U-Net's and the decoder's operations take (MFU) stands below.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from generate_table import EXPORT, MEASURES, REFERENCE, ROENTGEN, share_of_peak, summary_table, table
from made_models import MADE, make_model
from numpy.typing import NDArray
from PIL import Image
from timing import ask_torch, conditions, cuda_or_cpu, summarised, timed, timed_images
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Count, Guidance, PathOrName, Steps, parse_settings
from roentgen.errors import UserError
from roentgen.files import read_json
from roentgen.generators.diffusion.sampling import SAMPLERS, Sampling
from roentgen.metrics.report.tables import Reported
from roentgen.metrics.result import write_json
from roentgen.models import hub, loading
from roentgen.provenance import Surroundings

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).with_name("stock_diffusers.py")
PROMPT = "left pleural effusion"
FURTHER = 4  # images between the short and the long command
BATCH = {"roentgen": "its default", "diffusers": "all images of a call"}
SET_BATCH = 16  # images at once when a data set is made
PUBLISHED = {"steps": 75, "guidance": 4.0, "sampler": "pndm"}
"""RoentGen's sampling (Bluethgen et al. 2024, doi 10.1038/s41551-024-01246-y)."""
ARMS: dict[str, dict[str, Any]] = {
    EXPORT: {"dtype": "auto"},
    "roentgen export, float32": {"dtype": "float32"},
    "diffusers, a call a prompt": {"dtype": "float32", "batch": 1},
    REFERENCE: {"dtype": "float32", "batch": SET_BATCH},
    "diffusers, batches, bfloat16": {"dtype": "bfloat16", "batch": SET_BATCH},
    ROENTGEN: {"dtype": "float32", "batch": SET_BATCH, **PUBLISHED},
}


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Measure `roentgen generate` and stock diffusers on this machine, and print a table."""

    model: Annotated[
        PathOrName,
        "mini, a diffusers folder, or sd15-random (Stable Diffusion 1.x with random weights, for a GPU); both sides "
        "load the same files",
    ] = "mini"
    update: Annotated[
        tuple[Path, ...], "documents in which the regions results:speed and results:speed-summary are replaced"
    ] = ()  # type: ignore[assignment]
    steps: Annotated[Steps | None, "denoising steps (default: the model's)"] = None
    guidance: Annotated[Guidance | None, "guidance scale (default: the model's)"] = None
    sampler: Annotated[str | None, "dpm++, unipc (both also NAME-karras), ddim or pndm (default: the model's)"] = None
    repeats: Annotated[Count, "runs of each command; the table shows medians"] = 3
    helps: Annotated[Count, "runs of `roentgen --help`; the table shows the fastest"] = 5
    short: Annotated[Count, "images of the shorter data set"] = 16
    long: Annotated[Count, "images of the longer data set, at most the lines of prompts/evaluation.csv"] = 64
    device: Annotated[Literal["auto", "cpu", "cuda"], "where to generate"] = "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/generate.py", about=__doc__)
    check_lengths(s.short, s.long)
    return s.report(
        ("speed", "speed-summary"), measure=run, keep=False, read=partial(read_json, advice="fetch the model again"),
        table=lambda found: {"speed": table(found), "speed-summary": summary_table(found)},
    )  # fmt: skip


def run(s: Settings, out: Path) -> None:
    """Measure everything, to ``out``."""
    device = cuda_or_cpu(s.device)
    with tempfile.TemporaryDirectory() as scratch:
        write_json(out, measured(s, place(s.model, Path(scratch)), device))


def place(model: str, scratch: Path) -> Path:
    """The folder of ``model``; what the benchmark makes itself lies in ``scratch``."""
    if model in MADE and model not in hub.NAMED:
        make_model(model, scratch / model)
        return scratch / model
    return on_disk(model)


def on_disk(model: str) -> Path:
    """The folder of a model that need not be made."""
    folder = hub.resolve(model).folder
    if folder is None:
        raise UserError(f"--model {model}: name a model that is on this disk, mini or a diffusers folder")
    return folder


def measured(s: Settings, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Run everything and return the result: values, summary, ratios, settings and machine."""
    loading.check_folder(folder)
    marks = folder / "roentgen.json"
    own = read_json(marks, advice="fetch the model again").get("defaults", {}) if marks.is_file() else {}
    given, repeats = {key: getattr(s, key) for key in ("steps", "guidance", "sampler")}, s.repeats
    settings: dict[str, Any] = {**dataclasses.asdict(Sampling()), **own}
    settings = {key: settings[key] if value is None else value for key, value in given.items()}
    if settings["sampler"] not in SAMPLERS:
        raise UserError(f"--sampler {settings['sampler']}: unknown; choose one of {', '.join(SAMPLERS)}")

    dtype = "float16" if device == "cuda" else "float32"

    def ours(images: int, target: Path) -> list[str]:
        flags = {"--model": folder, "--num-images": images, "--out": target, "--device": device, "--dtype": dtype}
        flags |= {f"--{key}": value for key, value in settings.items()}
        pairs = [str(part) for pair in flags.items() for part in pair]
        return [sys.executable, "-m", "roentgen", "generate", PROMPT, *pairs]

    def stock(images: int, target: Path) -> list[str]:
        job = {**settings, "dtype": dtype, "device": device}
        return peer(folder, [PROMPT] * images, list(range(images)), target, job, images)

    around = Surroundings()
    runs = 4 * (repeats + 1) + s.helps + 2 * repeats * len(arms_of(device))
    bar = tqdm(total=runs, desc="runs", file=sys.stderr)
    sides: dict[str, Callable[[int, Path], list[str]]] = {"roentgen": ours, "diffusers": stock}
    values: dict[str, dict[str, list[float]]] = {side: {name: [] for name in MEASURES} for side in sides}
    for repeat in range(-1, repeats):
        for side, command in sides.items():
            one, memory_one = timed_images(command, 1, device)
            bar.update(1 if repeat >= 0 else 2)
            if repeat < 0:
                continue  # the warm-up
            many, memory_many = timed_images(command, 1 + FURTHER, device)
            bar.update()
            values[side]["cold"].append(one)
            values[side]["further"].append((many - one) / FURTHER)
            values[side]["memory"].append(max(memory_one, memory_many))
    help_times = [timed([sys.executable, "-m", "roentgen", "--help"])[0] for _ in range(s.helps)]
    bar.update(s.helps)

    sets = data_sets(s, folder, settings, device, bar.update)
    bar.close()
    gpu = ask_torch("torch.cuda.get_device_name()") if device == "cuda" else None
    where = conditions(around)
    summary = {side: {name: summarised(each) for name, each in of_side.items()} for side, of_side in values.items()}
    median = {side: {name: summary[side][name]["median"] for name in MEASURES} for side in sides}
    return {
        "metric": "generate-speed",
        "prompt": PROMPT,
        "model": s.model if s.model in hub.NAMED else folder.name,
        "model_hash": hub.model_hash(folder),
        "settings": settings | {"repeats": repeats, "dtype": dtype, "batch": BATCH},
        **summary,
        "ratio": {name: median["diffusers"][name] / median["roentgen"][name] for name in MEASURES},
        "help": summarised(help_times),
        "sets": sets,
        "mfu": share_of_peak(folder, settings, sets["arms"], gpu),
        **where,
        "machine": where["machine"] | ({} if gpu is None else {"device": gpu}),
    }


def peer(
    folder: Path, texts: Sequence[str], seeds: Sequence[int], target: Path, settings: dict[str, Any], batch: int
) -> list[str]:
    """The command of stock diffusers for these prompts and seeds."""
    job = {"model": str(folder), "prompts": list(texts), "seeds": list(seeds), "batch": batch, "out": str(target)}
    job |= {key: settings[key] for key in ("steps", "guidance", "dtype", "device")}
    return [sys.executable, str(PEER), json.dumps({**job, "scheduler": SAMPLERS[settings["sampler"]]})]


# ------------------------------------------------------------------------------------------ data sets


def arms_of(device: str) -> dict[str, dict[str, Any]]:
    """The arms on ``cpu`` or ``cuda``: what people take there instead of bfloat16 is float16."""
    if device == "cpu":
        return ARMS
    half = {"dtype": "float16", "batch": SET_BATCH}
    swapped = {name.replace("bfloat16", "float16"): half if "bfloat16" in name else arm for name, arm in ARMS.items()}
    return swapped | {ROENTGEN: {**ARMS[ROENTGEN], "dtype": "float16"}}


def check_lengths(short: int, long: int) -> None:
    """UserError unless there are prompts for a set of ``long`` images, which is longer than one of ``short``."""
    most = len(prompts(None))
    if not short < long <= most:
        raise UserError(f"--short {short} --long {long}: must rise, to {most} at most")


def prompts(count: int | None) -> list[str]:
    """The first ``count`` prompts of the evaluation set, all with None; no two alike."""
    with (ROOT / "prompts" / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        texts = list(dict.fromkeys(row["prompt"] for row in csv.DictReader(file)))
    return texts[:count]


def data_sets(
    s: Settings, folder: Path, settings: dict[str, Any], device: str = "cpu", on_run: Callable[[], object] = bool
) -> dict[str, Any]:
    """Seconds an image of every arm, ratios to ours, and how far the images of an arm are from stock diffusers'."""
    arms, short, long = arms_of(device), s.short, s.long
    values: dict[str, list[float]] = {name: [] for name in arms}
    memory: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as scratch:
        images: dict[str, Path] = {}
        listed: list[dict[str, str]] = []
        for repeat in range(s.repeats):
            for number, (name, own) in enumerate(arms.items()):
                # A slow arm's set need not be longer than the fast ones' difference to be measured as well.
                most = min(long, 2 * short) if name == ROENTGEN else long
                seconds = []
                for count in (short, most):
                    out = Path(scratch) / f"{number}-{repeat}-{count}"
                    command = set_command(name, folder, {**settings, **own, "device": device}, out, count, listed)
                    took, peak = timed(command, device)
                    on_run()
                    seconds.append(took)
                    if name == EXPORT:
                        listed = listed if count < most else read_rows(out)
                values[name].append((seconds[1] - seconds[0]) / (most - short))
                memory[name].append(peak)
                images[name] = out
        apart = {name: difference(images[name], images[REFERENCE], long) for name in arms if name != ROENTGEN}
    summary = {name: summarised(each) for name, each in values.items()}
    return {
        "short": short,
        "long": long,
        "batch": SET_BATCH,
        "published": PUBLISHED,
        "arms": {
            name: {
                "dtype": own["dtype"],
                "seconds_per_image": summary[name],
                "memory": summarised(memory[name]),
                "ratio": summary[name]["median"] / summary[EXPORT]["median"],
                **({"difference": apart[name]} if name in apart else {}),
            }
            for name, own in arms.items()
        },
    }


def set_command(
    name: str, folder: Path, settings: dict[str, Any], out: Path, count: int, listed: Sequence[dict[str, str]]
) -> list[str]:
    """The command of an arm; stock diffusers gets the prompts and seeds of ours, which is ``listed``."""
    if name.startswith("diffusers"):
        out.mkdir()
        rows = listed[:count]
        seeds = [int(row["seed"]) for row in rows]
        return peer(folder, [row["text"] for row in rows], seeds, out, settings, settings["batch"])
    given = {key: settings[key] for key in ("dtype", "steps", "guidance", "sampler", "device")}
    return [sys.executable, *export_words(folder, out, count, **given)]


def export_words(folder: Path, out: Path, count: int, **settings: Any) -> list[str]:
    """`roentgen export` of the first ``count`` prompts, in one shard of PNGs, as words for Python."""
    wanted = out.with_suffix(".txt")
    wanted.write_text("\n".join(prompts(count)) + "\n", encoding="utf-8")
    flags = {"--model": folder, "--prompts": wanted, "--out": out, "--format": "folder", "--filter": "none"}
    flags |= {"--batch-size": SET_BATCH, "--shard-size": count, **{f"--{key}": settings[key] for key in settings}}
    return ["-m", "roentgen", "export", *(str(part) for pair in flags.items() for part in pair)]


def read_rows(out: Path) -> list[dict[str, str]]:
    """Rows of a set's manifest, in the order of the prompts."""
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def difference(ours: Path, theirs: Path, count: int) -> float:
    """Mean absolute difference in grey levels (0 to 255) between ``count`` images of two arms."""
    return float(np.mean([np.abs(_grey(ours, n) - _grey(theirs, n)).mean() for n in range(count)]))


def _grey(folder: Path, number: int) -> NDArray[np.float64]:
    file = folder / f"{number}.png"
    if not file.exists():
        file = folder / read_rows(folder)[number]["image"]
    return np.asarray(Image.open(file).convert("L"), dtype=np.float64)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/generate.py"))
