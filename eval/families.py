"""The families of generators side by side: quality and images a second of the shipped models by number of steps.

    python eval/families.py --manifest MANIFEST --out eval/results/families
    python eval/families.py --measure speed --timed 4 --out eval/results/families
    python eval/families.py --measure none --out eval/results/families --update docs/families.md \\
        --plot docs/families.svg

Quality: prompts composed from the labels of the split's images, the same prompts and as many seeds for every setting;
macro AUROC of what was asked for under the shipped classifier, and Frechet distance in its features to the split's real
images. Speed: images a second on this machine's CPU, and processor seconds an image, which depend less on what runs
beside it; the settings take turns, so that all meet the same load. Memory: the most that `roentgen generate` held.
Writes ``OUT/quality.json`` and ``OUT/speed.json``; images are kept in ``--work``, so that a run that was stopped goes
on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from roentgen import errors, threads
from roentgen.config import BatchSize, Count, Filled, Range, Seed, parse_settings, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.experiments.sampling import yardstick
from roentgen.files import file_hash, require_writable, write_atomic
from roentgen.generators.generate import generate, load_model
from roentgen.metrics.pairing import draw_prompts
from roentgen.metrics.report.tables import figure, replace_between_markers
from roentgen.metrics.report.tables import table as markdown
from roentgen.metrics.result import Context, read_result, shown, write_result
from roentgen.models.classifier import SHIPPED, load_classifier
from roentgen.models.hub import MINI
from roentgen.provenance import portable
from roentgen.synthesis.folder import Job, generated_images

NAME = "families"
"""Of the region in a document."""


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison."""

    out: Annotated[Path, "folder for quality.json and speed.json"]
    measure: Annotated[
        Literal["quality", "speed", "none"], "what to measure; none: take the results that OUT holds"
    ] = "quality"
    manifest: Annotated[Path | None, "manifest with the split's images (for quality)"] = None
    split: Annotated[Literal["val", "test"], "split whose labels are asked for"] = "test"
    models: Annotated[tuple[str, ...], Filled(), "models with their steps, as MODEL:STEPS"] = (
        "mini:5", "mini:10", "mini:20", "mini-masked:3", "mini-masked:8", "mini-masked:12", "mini-masked:32",
    )  # fmt: skip
    images: Annotated[int, Range(10, 10**12), "prompts a setting, two thirds of them with findings"] = 400
    timed: Annotated[Count, "images a timing"] = 8
    repeats: Annotated[Count, "timings of each setting, of which the median counts"] = 3
    seed: Annotated[Seed, "seed of the first image, and of texts"] = 40_000
    batch_size: Annotated[BatchSize, "images generated at a time"] = 8
    work: Annotated[Path, "folder for generated images and caches"] = Path("out/families")
    plot: Annotated[Path | None, "SVG file for quality against time (None: no plot)"] = None
    update: Annotated[Path | None, "document in which the region results:families is replaced by the table"] = None


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    s = parse_settings(Settings, argv, prog="eval/families.py", about=__doc__)
    replace_between_markers(s.update, NAME, "", write=False)
    if s.measure != "none":
        require_writable(s.out, "--out")
    if s.measure == "quality":
        require(s.manifest is not None, "--manifest is missing; name a manifest with test images")
        quality(s)
    if s.measure == "speed":
        speed(s)
    if s.update is not None or s.plot is not None:
        results = read_result(s.out / "quality.json"), read_result(s.out / "speed.json")
        with shown(s.out):
            drawn, lines = plot(*results), table(*results)
        if s.plot is not None:
            write_atomic(s.plot, drawn.encode())
        replace_between_markers(s.update, NAME, lines)
    return 0


def settings_of(words: Sequence[str]) -> list[tuple[str, int]]:
    """Model and steps of each of ``words``."""
    found = []
    for word in words:
        name, _, steps = word.rpartition(":")
        if not name or not steps.isdigit():
            raise UserError(f"--models {word}: write MODEL:STEPS, such as mini:10")
        found.append((name, int(steps)))
    return found


def quality(s: Settings) -> None:
    """Every setting on the same prompts and seeds, to ``OUT/quality.json``."""
    assert s.manifest is not None
    judge = load_classifier()
    real = read_manifest(s.manifest, splits=[s.split], allow_empty_text=True)
    rows, texts = draw_prompts(real, s.images, s.seed)
    labels, patients = rows[judge.findings].to_numpy(dtype=float), rows["patient_id"].tolist()
    pixels = load_pixels(real["image"].tolist(), size=256, cache=s.work / "cache").pixels
    features = judge.features(np.asarray(pixels)).astype(np.float64)
    judged = yardstick(labels, judge.findings, patients, features, real["patient_id"].tolist(), seed=s.seed)
    jobs = [Job(text, s.seed + i) for i, text in enumerate(texts)]
    curve, models = [], {}
    for name, steps in settings_of(s.models):
        model = models[name] = models.get(name) or load_model(name, device="cpu")
        sampling = model.sampling(steps=steps)
        folder = s.work / f"{Path(name).name}-{steps}-{model.info.hash}"
        made = np.stack(generated_images(model, jobs, folder, sampling=sampling, batch_size=s.batch_size))
        scored, apart = judged(judge.predict(made).astype(float), judge.features(made).astype(np.float64))
        curve.append({
            "model": portable(name), "hash": model.info.hash, "steps": steps, "sampling": sampling.provenance(),
            "auroc": scored.entry, "findings": scored.names, "fid": apart.entry,
        })  # fmt: skip
        print(f"{name} {steps}: AUROC {figure(curve[-1]['auroc'])}, FID {figure(apart.entry, digits=1)}", flush=True)
    context = Context.of(
        "eval/families.py", s, inputs={"manifest": s.manifest.name},
        extractor=f"roentgen classifier {SHIPPED.name}, sha256 {file_hash(SHIPPED)}",
        resize="shorter side to 256 px, centre crop; then the classifier's own size",
    )  # fmt: skip
    write_result(
        s.out / "quality.json", metric="families: quality by steps", value=float(len(curve)),
        ci_method="none: a count of settings", n=len(rows), context=context,
        warnings=["Frechet distances at this n are biased upwards and only comparable in this file"],
        details={"real_n": len(real), "curve": curve},
    )  # fmt: skip


def speed(s: Settings) -> None:
    """Images a second of every setting, and the memory of every model, to ``OUT/speed.json``."""
    import torch

    chosen = settings_of(s.models)
    models = {name: load_model(name, device="cpu") for name, _ in chosen}
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {setting: [] for setting in chosen}
    for repeat in range(-1, s.repeats):  # the first is to get warm
        for name, steps in chosen:
            before = time.perf_counter(), time.process_time()
            count = 1 if repeat < 0 else s.timed
            made = generate(
                models[name], "left pleural effusion", num_images=count, seed=max(0, repeat) * s.timed, steps=steps,
                batch_size=s.batch_size,
            )  # fmt: skip
            assert sum(1 for _ in made) == count
            if repeat >= 0:
                spent = time.perf_counter() - before[0], time.process_time() - before[1]
                measured[name, steps].append((spent[0] / count, spent[1] / count))
    curve = []
    for (name, steps), values in measured.items():
        wall, own = (float(np.median(column)) for column in zip(*values, strict=True))
        curve.append({
            "model": portable(name), "hash": models[name].info.hash, "steps": steps, "values": values,
            "images_per_second": 1 / wall, "processor_seconds": own,
        })  # fmt: skip
        print(f"{name} {steps}: {1 / wall:.2f} images/s, {own:.2f} processor seconds an image", flush=True)
    memory = {portable(name): peak_memory(name, s.timed) for name in models}
    print(", ".join(f"{name}: {size:.0f} MB" for name, size in memory.items()))
    context = Context.of("eval/families.py", s, seed=0)
    context = replace(context, settings={**context.settings, "threads": torch.get_num_threads()})
    write_result(
        s.out / "speed.json", metric="families: images a second by steps", value=float(len(curve)),
        ci_method="none: a count of settings", n=s.timed * s.repeats, context=context,
        details={"curve": curve, "memory_mb": memory, "busy_cores": os.getloadavg()[0]},
    )  # fmt: skip


def peak_memory(model: str, images: int) -> float:
    """The most memory in MB that a process of ``roentgen generate`` held for ``images`` images of ``model``."""
    # A process inherits the peak of the one that starts it: a small one stands between.
    between = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        words = ["generate", "left pleural effusion", "--model", model, "--num-images", str(images), "--device", "cpu"]
        command = [sys.executable, "-m", "roentgen", *words, "--out", str(Path(folder) / "out")]
        done = subprocess.run([sys.executable, "-c", between, *command], capture_output=True, text=True)
    require(done.returncode == 0, f"--models {model}: roentgen generate failed with it; try it by itself")
    return int(done.stdout) / (1e6 if sys.platform == "darwin" else 1e3)


def table(good: Mapping[str, Any], fast: Mapping[str, Any]) -> str:
    """Markdown of both results."""
    judged = {(p["model"], p["steps"]): p for p in good["details"]["curve"]}
    head = ["model", "steps", "images/s", "processor seconds an image", "AUROC", "FID"]
    rows = []
    for p in fast["details"]["curve"]:
        scored = judged.get((p["model"], p["steps"]))
        shown = ["not measured"] * 2
        if scored is not None:
            shown = [figure(scored["auroc"], digits=3), figure(scored["fid"], digits=1)]
        took = [f"{p['images_per_second']:.2f}", f"{p['processor_seconds']:.2f}"]
        rows.append([f"`{p['model']}`", str(p["steps"]), *took, *shown])
    memory = ", ".join(f"`{name}` {size:.0f} MB" for name, size in fast["details"]["memory_mb"].items())
    names = ", ".join(good["details"]["curve"][0]["findings"]) or "no finding: too few cases of each"
    return markdown(
        head, rows,
        f"{good['n']} prompts of `{good['settings']['split']}`, the same in every row; macro AUROC "
        f"over {names}; Frechet distance in the shipped classifier's features to {good['details']['real_n']} real "
        f"images, to be compared within this table only. Images a second: median of {fast['settings']['repeats']} "
        f"timings of {fast['settings']['timed']} images on {fast['settings']['threads']} CPU threads, a mean of "
        f"{fast['details']['busy_cores']:.1f} processes running. Memory of `roentgen generate` at most: {memory}.",
        trained(),
        f"Made by `{good['command']}` and `{fast['command']}`.",
    )  # fmt: skip


def trained() -> str:
    """Markdown: training of the shipped models, from their ``training.json``."""
    rows = []
    for name in ("mini", "mini-masked"):
        folder = MINI.parent / name
        stages = json.loads((folder / "training.json").read_text())["stages"]
        for stage in stages:
            seconds = stage.get("seconds")
            took = "not recorded" if seconds is None else f"{seconds / 60:,.0f} min"
            rows.append([f"`{name}`", str(stage["stage"]), f"{stage['images']:,}", took])
    return markdown(["model", "stage of training", "images seen", "time"], rows)


def plot(good: Mapping[str, Any], fast: Mapping[str, Any]) -> str:
    """SVG: AUROC and Frechet distance against seconds an image, a line a model."""
    from roentgen.metrics.report.plots import COLOURS, LINES, MARKERS, drawing

    spent = {(p["model"], p["steps"]): p["processor_seconds"] for p in fast["details"]["curve"]}
    with drawing(7.2, 3.2) as (page, buffer):
        panels = page.subplots(1, 2)
        for axes, key, words in zip(panels, ("auroc", "fid"), ("macro AUROC", "Fréchet distance"), strict=True):
            for number, name in enumerate(dict.fromkeys(p["model"] for p in good["details"]["curve"])):
                points = [p for p in good["details"]["curve"] if p["model"] == name and (name, p["steps"]) in spent]
                x = [spent[name, p["steps"]] for p in points]
                y = [p[key]["value"] for p in points]
                style: Any = {"marker": MARKERS[number], "linestyle": LINES[number], "color": COLOURS[number]}
                axes.plot(x, y, label=name if key == "auroc" else None, markersize=4, **style)
                for where, height, p in zip(x, y, points, strict=True):
                    if height is not None:
                        axes.annotate(str(p["steps"]), (where, height), fontsize=7)
            axes.set_xlabel("processor seconds an image (figures: steps)")
            axes.set_ylabel(words)
        page.legend(loc="outside upper center", ncols=4, fontsize=8)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/families.py"))
