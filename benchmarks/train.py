"""Training speed and memory of train/finetune.py, beside diffusers' train_text_to_image.py in the same run.

    git clone --depth 1 https://github.com/huggingface/diffusers PEER
    python benchmarks/train.py --peer PEER/examples/text_to_image/train_text_to_image.py \\
        --out benchmarks/results/train-cpu.json --update docs/benchmarks.md
    python benchmarks/train.py --peer ... --model sd15-random --batch 16 --compiled true --out train-gpu.json
    python benchmarks/train.py --result benchmarks/results/train-cpu.json --update docs/benchmarks.md

Every measurement is the real script as a process of its own, at two lengths: what the longer takes more, over the
images it sees more, is the cost of an image in the loop, and imports, loading and saving cancel. Arms take turns,
after one short run each that fills file caches (and, for ours with caches, makes the caches: timed apart). Both sides
load the same pipeline folder and read the same JPEG files, train the U-Net alone with an EMA, and hold every image
once. Memory is the largest resident set of all processes of a run on a CPU, and what the device has more in use than
before on a GPU.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from made_models import MADE, make_model
from timing import cuda_or_cpu
from train_arms import ARMS, ROOT, Comparison, run_arms
from train_table import summarise, table

from roentgen import errors
from roentgen.config import BatchSize, Count, PathOrName, Pixels, Workers, parse_settings
from roentgen.errors import UserError
from roentgen.metrics.report.tables import Reported
from roentgen.provenance import Surroundings

SAMPLE = ROOT / "data" / "sample" / "manifest.csv"
HELD_OUT = 8  # images that ours wants for validation


@dataclass(frozen=True, kw_only=True)
class Settings(Reported):
    """Measure train/finetune.py and diffusers' text-to-image script on this machine, and print a table."""

    peer: Annotated[Path | None, "train_text_to_image.py of a diffusers checkout that fits the installed diffusers"] = (
        None
    )
    model: Annotated[
        PathOrName,
        "mini (its U-Net and text encoder; the autoencoder widened to the three channels that the peer wants), "
        "sd15-random (Stable Diffusion 1.x with random weights, for a GPU), or a three-channel pipeline folder",
    ] = "mini"
    batch: Annotated[BatchSize, "images a step"] = 8
    precision: Annotated[str, "bf16, fp16 or no"] = "bf16"
    short: Annotated[Count, "steps of the short run"] = 8
    long: Annotated[Count, "steps of the long run"] = 80
    repeats: Annotated[Count, "runs of each length and arm; the table shows medians"] = 2
    workers: Annotated[Workers, "threads that make batches for ours, processes that do for the peer"] = 2
    pixels: Annotated[
        Pixels | None,
        "short side of the stored images (default: the training resolution, so that nobody decodes more than needed; "
        "hospitals' files are larger)",
    ] = None
    compiled: Annotated[bool, "measure ours with --compile too"] = False
    device: Annotated[Literal["auto", "cpu", "cuda"], "where to train"] = "auto"
    scratch: Annotated[Path | None, "folder for model, data and runs (default: a temporary one)"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="benchmarks/train.py", about=__doc__)
    return s.report("train-speed", measure=measured, table=table, keep=False)


def measured(s: Settings, out: Path) -> None:
    """Run all arms, and write the result to ``out``."""
    if not s.short < s.long:
        raise UserError("--short must be below --long")
    script = checked_peer(s.peer)
    arms = [name for name in ARMS if s.compiled or not name.endswith("-compiled")]
    with tempfile.TemporaryDirectory() as temporary:
        job = prepare(s, script, s.scratch or Path(temporary), cuda_or_cpu(s.device))
        around = Surroundings()
        runs = run_arms(job, arms, short=s.short, long=s.long, repeats=s.repeats)
        summarise(job, runs, s, out, around.facts())


def checked_peer(peer: Path | None) -> Path:
    """The peer's script; UserError that says where to get it."""
    where = (
        "a checkout of https://github.com/huggingface/diffusers has it as "
        "examples/text_to_image/train_text_to_image.py; take the version that fits the installed diffusers"
    )
    if peer is None:
        raise UserError(f"--peer is missing: {where}")
    if not peer.is_file():
        raise UserError(f"--peer {peer}: no such file; {where}")
    return peer.resolve()


# ---------------------------------------------------------------------------------------- model and data


def prepare(s: Settings, peer: Path, folder: Path, device: str) -> Comparison:
    """Model folder and training images in ``folder``, for both sides."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "model" if s.model in MADE else Path(s.model).resolve()
    if not place.is_dir():
        if place.parent != folder:
            raise UserError(f"--model {s.model}: no such folder; use mini, sd15-random or a diffusers folder")
        make_model(s.model, place)
    resolution = pipeline_resolution(place)
    job = Comparison(folder, place, peer, resolution, s.batch, s.precision, s.workers, device)
    write_images(job, s.batch * s.long, s.pixels or resolution)
    return job


def pipeline_resolution(folder: Path) -> int:
    """Side of the images of a pipeline folder; UserError if the peer cannot train it."""
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    except OSError as error:
        raise UserError(f"--model {folder}: not a diffusers folder ({error.strerror}: {error.filename})") from None
    if vae["in_channels"] != 3:
        raise UserError(f"--model {folder}: its images have {vae['in_channels']} channel(s), and the peer trains three")
    side = int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    return side


def write_images(job: Comparison, count: int, pixels: int) -> None:
    """``count`` training images of short side ``pixels`` with their texts, as diffusers and as roentgen read them.

    The sample's images, again and again, in files of their own: both sides read as many files as in a large archive.
    """
    from PIL import Image

    from roentgen.data.manifest import read_manifest

    table = read_manifest(SAMPLE, splits=["train"])
    shutil.rmtree(job.images, ignore_errors=True)
    job.images.mkdir(parents=True)
    others = job.folder / "validation"
    others.mkdir(exist_ok=True)
    rows, lines = [], []
    for number in range(count + HELD_OUT):
        row = table.iloc[number % len(table)]
        held_out = number >= count
        path = (others if held_out else job.images) / f"{number:06d}.jpg"
        with Image.open(row["image"]) as image:
            scale = pixels / min(image.size)
            image.resize((round(image.width * scale), round(image.height * scale))).save(path, quality=90)
        rows.append((str(path), row["text"], str(number), "val" if held_out else "train"))
        if not held_out:
            lines.append(json.dumps({"file_name": path.name, "text": row["text"]}) + "\n")
    (job.images / "metadata.jsonl").write_text("".join(lines))
    with job.manifest.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "text", "patient_id", "split"))
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="benchmarks/train.py"))
