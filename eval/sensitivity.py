"""What each metric notices: known damage to real images, in doses, against each metric's own noise.

    python eval/sensitivity.py --manifest MANIFEST --out eval/results/sensitivity --update docs/metrics.md

Real test images play the part of generated ones, others of other patients the real ones. A metric notices a damage
from the first dose on at which it leaves, to the worse side, the range in which undamaged images lie. One JSON a
metric goes to OUT, and the tables between ``<!-- results:sensitivity -->`` and its end in the document. Features are
kept under WORK by content, so the same command again continues a run that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from roentgen import errors
from roentgen.config import BatchSize, Count, Range, Seed, parse_settings, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.experiments.sensitivity import tables
from roentgen.experiments.sensitivity.damages import DAMAGES, damaged_sample, doses_of
from roentgen.experiments.sensitivity.noise import noise_of_all, range_about
from roentgen.experiments.sensitivity.results import write_metric, write_planted
from roentgen.experiments.sensitivity.samples import SIDE, Reader, World, pairs_of
from roentgen.experiments.sensitivity.scores import BOUNDS, METRICS
from roentgen.files import file_hash, require_writable
from roentgen.metrics import neighbours
from roentgen.metrics.extractors import load_extractor
from roentgen.metrics.report.tables import report
from roentgen.metrics.result import Context
from roentgen.provenance import portable

NAME = "sensitivity"
LEAST = 40
RESIZE = f"file: shorter side to {SIDE} px by antialiased bicubic, centre crop; damage; then the extractor's own chain"


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    out: Annotated[Path, "folder for the results"]
    manifest: Annotated[
        Path | None,
        "manifest with `train` and `test` images (not needed with `--measure false`)",
    ] = None
    update: Annotated[
        Path | None,
        "Markdown file with the markers, to put the tables into (None: they are printed)",
    ] = None
    measure: Annotated[bool, "false: take the results that OUT holds"] = True
    images: Annotated[
        int,
        Range(LEAST, 10**12),
        "damaged images, and as many to compare with; half of the test images where there are fewer",
    ] = 400
    train: Annotated[int, Range(LEAST, 10**12), "training images that copies are taken from and searched in"] = 1600
    extractor: Annotated[str, "makes the features; scores are always those of the classifier that ships"] = "classifier"
    draws: Annotated[int, Range(20, 1_000_000), "of undamaged images for the noise of each metric"] = 100
    pairs: Annotated[
        int,
        Range(2, 10**12),
        "image pairs for MS-SSIM, of one kind and of different kinds",
    ] = 100
    planted: Annotated[Count, "training images whose copies are searched"] = 200
    work: Annotated[Path, "folder for features"] = Path("runs/eval-sensitivity")
    seed: Annotated[Seed, "of every random choice"] = 0
    batch_size: Annotated[BatchSize, "images through the network at a time"] = 32
    device: Annotated[str, "for the network, such as cpu or cuda"] = "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/sensitivity.py", about=__doc__)
    require(
        not s.measure or s.manifest is not None, "--manifest is missing; name a manifest with train and test images"
    )
    path = s.out / "fid.json"
    return report(
        NAME, out=path, result=None if s.measure else path, update=s.update, measure=lambda _: measure(s),
        table=lambda _: tables.report(s.out),
    )  # fmt: skip


def measure(s: Settings) -> None:
    """Everything, to one JSON a metric and one for the planted copies."""
    assert s.manifest is not None
    require_writable(s.out, "--out")
    require_writable(s.work, "--work")
    damaged, real, train = choose_rows(s)
    classifier = load_extractor("classifier", device=s.device)
    chosen = classifier if s.extractor == "classifier" else load_extractor(s.extractor, device=s.device)
    reader = Reader(classifier, chosen, s.work, s.batch_size)
    samples = {}
    for name, rows in (("damaged", damaged), ("real", real), ("train", train)):
        paths = rows["image"].tolist()
        pixels = np.array(load_pixels(paths, size=SIDE, cache=s.work / "cache").pixels)
        samples[name] = reader.sample(pixels, rows, name)
    start = samples["damaged"]
    world = World(
        real=samples["real"],
        train=samples["train"],
        views=neighbours.train_views(samples["train"].pixels),
        findings=classifier.findings,
        same_kind=pairs_of(start, s.pairs, same=True, seed=s.seed),
        other_kind=pairs_of(start, s.pairs, same=False, seed=s.seed),
        seed=s.seed,
    )
    values: dict[str, list[dict[str, Any]]] = {metric.key: [] for metric in METRICS}
    bar = tqdm(total=sum(len(kind.doses) for kind in DAMAGES), desc="damage", file=sys.stderr)
    for kind in DAMAGES:
        for dose in doses_of(kind, len(start)):
            hurt = damaged_sample(kind.name, dose, start, world, reader, s.seed)
            for metric in METRICS:
                values[metric.key].append(
                    {"damage": kind.name, "dose": dose, "label": kind.dose(dose), "value": metric.value(hurt, world)}
                )
            bar.update()
    bar.close()

    context = Context.of(
        "eval/sensitivity.py",
        s,
        extractor=f"{chosen.name}, {chosen.dim} features, weights {chosen.hash}"
        + (f"; scores: {classifier.name}, weights {classifier.hash}" if chosen is not classifier else ""),
        resize=f"{RESIZE}: {chosen.chain}",
        model={"name": "none: real images, damaged"},
        inputs={str(portable(s.manifest.resolve())): file_hash(s.manifest)},
    )
    noises = noise_of_all(start, world, draws=s.draws, seed=s.seed)
    for metric in METRICS:
        undamaged = metric.value(start, world)
        noise = range_about(undamaged, noises[metric.key], BOUNDS.get(metric.key, (0.0, 1.0)))
        write_metric(s.out, metric, values[metric.key], undamaged, noise, start, world, context)
    write_planted(s.out, world, reader, context, count=s.planted, seed=s.seed)


def choose_rows(s: Settings) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows to damage, to compare with (no patient in both), and of train."""
    assert s.manifest is not None
    whole = read_manifest(s.manifest, allow_empty_text=True)
    rng = np.random.default_rng(s.seed)
    splits = {split: whole[whole["split"] == split].reset_index(drop=True) for split in ("train", "test")}
    for split, rows in splits.items():
        require(
            len(rows) >= 2 * LEAST, f"--manifest {s.manifest} has {len(rows)} {split} images; {2 * LEAST} are needed"
        )
    test = splits["test"]
    patients = rng.permutation(test["patient_id"].unique())
    halves: list[list[int]] = [[], []]
    rows_of = test.groupby("patient_id").indices
    for patient in patients:  # the emptier half first: a patient is in one of them, whole
        half = halves[0] if len(halves[0]) <= len(halves[1]) else halves[1]
        half += [int(row) for row in rows_of[patient]]
    n = min(s.images, len(halves[0]), len(halves[1]))
    if n < s.images:
        print(f"eval/sensitivity.py: the test images allow {n} of --images {s.images}", file=sys.stderr)
    count = min(s.train, len(splits["train"]))
    if count < s.train:
        print(f"eval/sensitivity.py: the manifest has {count} of --train {s.train} images", file=sys.stderr)
    train = splits["train"].iloc[np.sort(rng.choice(len(splits["train"]), count, replace=False))]
    first, second = (test.iloc[np.sort(half[:n])].reset_index(drop=True) for half in halves)
    return first, second, train.reset_index(drop=True)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/sensitivity.py"))
