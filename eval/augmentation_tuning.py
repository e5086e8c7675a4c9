"""Settings for the classifier of eval/augmentation_gain.py, compared on real training patients not trained on.

    python eval/augmentation_tuning.py --real MANIFEST --out eval/results/augmentation/tuning.json \\
        --try n=5000,images=24000 n=5000,images=24000,weight_decay=0.5

Each setting trains on a real subset of ``train`` exactly as the experiment's baseline arm does, the choice of the best
weights on ``val`` included, and is judged on the patients of ``train`` beyond the largest subset. Rows of ``test`` are
dropped before anything is read. A finished setting stays in the JSON, and the same command goes on from there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from tqdm import tqdm

from roentgen import errors
from roentgen.config import Count, Filled, Seed, from_json, parse_settings, require
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.devices import keep_freed_memory
from roentgen.experiments.augmentation.arms import real_subset
from roentgen.experiments.augmentation.classifier import (
    NO_FINDING,
    Labelled,
    Phase,
    Recipe,
    build_net,
    check_recipe,
    predict,
    train,
)
from roentgen.experiments.augmentation.sources import Source, load_source, open_pixels
from roentgen.files import file_hash, require_writable
from roentgen.metrics.adherence.auroc import macro_auroc
from roentgen.metrics.result import Context, plain, read_result, shown, write_result
from roentgen.metrics.statistics import RESAMPLES, Bootstrap
from roentgen.provenance import portable


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    real: Annotated[Path, "manifest with train and val images"]
    out: Annotated[Path, "result JSON"]
    tried: Annotated[tuple[str, ...], Filled(), "n=N and settings of the recipe, with commas (also --try)"]
    work: Annotated[Path, "folder for decoded images"] = Path("runs/augmentation-gain")
    seed: Annotated[Seed, "apart from the experiment's own, which count from 0"] = 100
    min_positive: Annotated[Count, "positive train images that a finding must have"] = 30


def main(argv: Sequence[str] | None = None) -> int:
    words = ["--tried" if word == "--try" else word for word in (sys.argv[1:] if argv is None else argv)]
    args = parse_settings(Settings, words, prog="eval/augmentation_tuning.py", about=__doc__)
    settings = [parse(text) for text in args.tried]
    require_writable(args.out.parent, "--out")
    torch.set_num_threads(1)
    keep_freed_memory()

    table = read_manifest(args.real, splits=("train", "val"), allow_empty_text=True)
    learned = table[table["split"] == "train"]
    names = [name for name in finding_columns(table) if (learned[name] == 1).sum() >= args.min_positive]
    sizes = sorted({recipe.size for _, recipe in settings})
    sources = {size: load_source("real", table, names, size=size, cache=args.work / "cache") for size in sizes}
    largest = max(n for n, _ in settings)
    finished: list[dict[str, Any]] = []
    if args.out.is_file():
        with shown(args.out):
            finished = [{**run, "setting": run["setting"]} for run in read_result(args.out)["details"]["runs"]]
    for n, recipe in tqdm(settings, unit="setting"):
        asked = plain({"n": n, "seed": args.seed, **asdict(recipe)})
        if any(run["setting"] == asked for run in finished):
            continue
        finished.append({"setting": asked, **one(sources[recipe.size], n, largest, names, recipe, args.seed)})
        save(args, finished, names)
    print(args.out)
    return 0


def parse(text: str) -> tuple[int, Recipe]:
    """``n=500,rate=1e-3`` as 500 and a recipe; UserError for what is no setting."""
    words = dict(word.partition("=")[::2] for word in text.split(","))
    n = words.pop("n", "")
    require(n.isdecimal() and int(n) > 1, f"--try {text}: say how many real images with n=5000")
    recipe = from_json(Recipe, words, f"--try {text}")
    check_recipe(recipe)
    return int(n), recipe


def one(real: Source, n: int, largest: int, findings: Sequence[str], recipe: Recipe, seed: int) -> dict[str, Any]:
    """One training on ``n`` images; its macro AUROC on the training patients beyond the first ``largest`` images."""
    began = time.perf_counter()
    pixels = open_pixels(real.images, real.size, real.cache)
    rows = real_subset(real, largest, seed=seed)
    val = real.rows("val")
    seen = np.isin(real.patients, np.unique(real.patients[rows]))
    held = np.flatnonzero((real.splits == "train") & ~seen)
    require(len(held) > 0, f"--try n={largest}: no training patient is left to judge by; take fewer")
    done = train(
        build_net(recipe, len(findings), seed=seed),
        Labelled(np.asarray(pixels[rows[:n]]), real.labels[rows[:n]]),
        [Phase(np.arange(n), recipe.images)],
        val=Labelled(np.asarray(pixels[val]), real.labels[val]), findings=findings, recipe=recipe, seed=seed,
    )  # fmt: skip
    scores = predict(done.net, np.asarray(pixels[held])).astype(np.float64)
    weights = Bootstrap().weights(real.patients[held].tolist())
    judged = macro_auroc(scores, real.labels[held].astype(np.float64), findings, weights, leave_out=(NO_FINDING,))
    return {
        **judged.entry, "held_out": len(held), "val": done.history,
        "chosen_at": done.chosen, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def save(args: Settings, runs: list[dict[str, Any]], findings: Sequence[str]) -> None:
    best = max(runs, key=lambda run: float(run["value"]))
    write_result(
        args.out,
        metric="macro AUROC on real training patients outside the subset, best setting tried",
        value=best["value"], ci=tuple(best["ci"]), n=best["held_out"],
        ci_method=f"95 % percentile, bootstrap over patients, {RESAMPLES} resamples, of the best of all tried",
        context=Context.of(
            "eval/augmentation_tuning.py", args, extractor="classifier of eval/augmentation_gain.py",
            resize="file: shorter side to the given pixels by antialiased bicubic, centre crop", model={"name": "none"},
            inputs={str(portable(args.real.absolute())): file_hash(args.real)},
        ),
        details={"test": "not read", "findings": list(findings), "runs": runs},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/augmentation_tuning.py"))
