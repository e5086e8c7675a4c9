"""Does synthetic data help a classifier? Real images, synthetic ones, and both, tested on unseen real patients.

    python eval/augmentation_gain.py --real MANIFEST --synthetic NAME=MANIFEST ... --out eval/results/augmentation \\
        --update docs/augmentation.md

Every arm (``--list-arms``) trains the same network on its images, for the same number of images seen, at each size of
the real subset and with each seed; the arms of a seed share subset, initial weights and test images. Training uses
`train`, the choice of the best weights `val`, the result `test` of the real manifest. Writes
``OUT/augmentation_gain.json``, ``.md`` and ``.png``; each run as it is finished goes to WORK, and the same command
continues from there.

The training settings are one for all arms. ``eval/augmentation_tuning.py`` compares some on real training patients
alone; where its ``OUT/tuning.json`` exists, the result says what was tried.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from roentgen import errors
from roentgen.config import (
    Count,
    CountFromZero,
    Rate,
    Resamples,
    parse_settings,
    require,
)
from roentgen.experiments.augmentation import gain as augmentation
from roentgen.experiments.augmentation import report as augmentation_report
from roentgen.experiments.augmentation.arms import ARMS, BASELINE, Run, plan_runs, real_subset
from roentgen.experiments.augmentation.classifier import Recipe, build_net, check_recipe
from roentgen.experiments.augmentation.runs import Task, run_all
from roentgen.experiments.augmentation.sources import RARE_SHARE, Inputs, open_inputs, origin
from roentgen.files import file_hash, require_writable, write_atomic
from roentgen.metrics.report import tables
from roentgen.metrics.result import Context, read_result, shown, write_result
from roentgen.metrics.statistics import RESAMPLES, Bootstrap
from roentgen.provenance import portable

NAME = "augmentation_gain"
REGION = "augmentation"
DEFAULT_ARMS = (
    *("real", "real-half", "classic", "synthetic-x1", "synthetic-x5"),
    *("real+x0.5", "real+x1", "real+x2", "real+x5", "pretrain", "rare"),
)
KEPT = ("real", "synthetic", "images_seen", "synthetic_distinct", "val", "chosen_at")
"""What the table has of each run."""


@dataclass(frozen=True, kw_only=True)
class Settings(Recipe):
    """Settings of the experiment."""

    out: Annotated[Path | None, "folder for the results"] = None
    real: Annotated[Path | None, "manifest of real images with train, val and test"] = None
    synthetic: Annotated[tuple[str, ...], "synthetic sets, such as exports, as MANIFEST or NAME=MANIFEST"] = ()
    generator: Annotated[
        tuple[Path, ...],
        "manifests that the generator was trained on: no patient of their train rows may be in val or test of --real",
    ] = ()
    work: Annotated[Path, "folder for images and finished runs"] = Path("runs/augmentation-gain")
    update: Annotated[Path | None, "Markdown file with the markers, to put the tables into"] = None
    table_only: Annotated[bool, "take the result that OUT holds; train nothing"] = False
    arms: Annotated[
        tuple[str, ...],
        "NAME[@SET][:SIZE/SIZE] with commas, for one synthetic set and some of --sizes; a cut subset is 5000-cut20 "
        "(default: see --list-arms)",
    ] = ()
    list_arms: Annotated[bool, "print the arms and stop"] = False
    sizes: Annotated[tuple[Count, ...], "real training images, with commas"] = (500, 1000, 2500, 5000)
    seeds: Annotated[Count, "subsets and initial weights"] = 3
    rare: Annotated[tuple[str, ...], f"rare findings (default: those below {RARE_SHARE:.1%})"] = ()
    cut: Annotated[Count | None, "also real subsets with only so many positives of each rare finding ..."] = None
    cut_sizes: Annotated[tuple[Count, ...], "... at these sizes (default: the largest of --sizes)"] = ()
    primary: Annotated[str | None, "arm whose gain is the headline, chosen before the run (default: real+x1)"] = None
    min_positive: Annotated[Count, "positive train images that a finding must have"] = 30
    net: Annotated[  # type: ignore[assignment]
        Literal["small", "densenet121"] | None, "network (default: densenet121 on a GPU, else small)"
    ] = None
    size: Annotated[Count | None, "side in pixels (default: 64 for small, 224 for densenet121)"] = None  # type: ignore[assignment]
    rate: Annotated[Rate | None, "peak learning rate (default: 1e-3 for small, 1e-4 for densenet121)"] = None  # type: ignore[assignment]
    resamples: Annotated[Resamples, "of the bootstrap over test patients"] = RESAMPLES
    device: Annotated[Literal["cpu", "cuda"] | None, "default: cuda where there is a GPU"] = None
    jobs: Annotated[CountFromZero, "runs at a time (0: the CPU's cores, or 1 on a GPU)"] = 0
    dry_run: Annotated[bool, "print what would be run and stop"] = False


def main(argv: Sequence[str] | None = None) -> int:
    words = [word.replace("--generators", "--generator") for word in (sys.argv[1:] if argv is None else argv)]
    s = parse_settings(Settings, words, prog=f"eval/{NAME}.py", about=__doc__)
    if s.list_arms:
        for name, arm in ARMS.items():
            print(f"{'*' if name in DEFAULT_ARMS else ' '} {name:22} {arm.what}")
        print("* by default")
        return 0
    require(s.out is not None, "--out is missing: name the folder for the results")
    assert s.out is not None
    tables.replace_between_markers(s.update, REGION, "", write=False)  # before the hours of work, not after
    if not s.table_only:
        require(s.real is not None, "--real is missing: name a manifest with train, val and test images")
        if not measure(s):
            return 0  # a dry run
    path = s.out / f"{NAME}.json"
    require(path.is_file(), f"--table-only: {path} does not exist; run the experiment into this --out first")
    return tables.report(REGION, out=None, result=path, update=s.update, measure=print, table=partial(drawn, s.out))


def drawn(out: Path, result: dict[str, Any]) -> str:
    """The tables, which are written beside the result as well, with the plot."""
    text = augmentation_report.markdown(result)
    write_atomic(out / f"{NAME}.png", augmentation_report.plot(result))
    write_atomic(out / f"{NAME}.md", (text + "\n").encode())
    return text


def measure(s: Settings) -> bool:
    """Run everything and write the result; False after a dry run."""
    assert s.real is not None and s.out is not None
    device = s.device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(s, device)
    check_recipe(recipe)
    require(min(s.sizes, default=0) > 1, "--sizes must name numbers of images, such as 500,1000")
    options = {"size": recipe.size, "work": s.work, "min_positive": s.min_positive, "rare": s.rare}
    given = open_inputs(s.real, s.synthetic, s.generator, **options)
    runs, left_out = planned(s, given)
    labels = {run: run.label if len(given.sets) > 1 else run.arm for run in runs}
    primary = primary_arm(s.primary, list(labels.values()))
    check_subsets(s, given, runs)
    keys = list(dict.fromkeys(run.key for run in runs))
    print(f"{len(keys)} trainings for {len(runs)} runs, {recipe.images} images each: {recipe}", file=sys.stderr)
    print(f"findings: {', '.join(given.findings)}; rare: {', '.join(given.rare) or 'none'}", file=sys.stderr)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if s.dry_run:
        print("\n".join(keys))
        return False
    require_writable(s.out, "--out")
    build_net(recipe, len(given.findings), seed=0)  # missing weights are told here, not by a worker
    context = context_of(s, given, recipe)
    tasks = [
        Task(run, recipe, given.real, given.sets.get(run.set), given.findings, given.columns, device, s.work, context)
        for run in runs
    ]
    run_all(tasks, jobs=s.jobs or (1 if device == "cuda" else os.cpu_count() or 1))

    # The analysis: paired by seed, bootstrap over test patients.
    test = given.test
    sample = augmentation.HeldOut(
        labels=given.real.labels[given.real.rows("test")].astype(np.float64),
        findings=given.findings,
        weights=Bootstrap(s.resamples).weights(test["patient_id"].tolist()),
        groups=augmentation.groups_of(test),
    )
    predictions: dict[tuple[str, str], Any] = {}
    details: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in tasks:
        place = (labels[task.run], task.run.subset)
        with np.load(task.predictions) as stored:
            predictions.setdefault(place, []).append(stored["test"].astype(np.float64))
        with shown(task.result):
            found = read_result(task.result)["details"]
            details.setdefault(place, []).append({key: found[key] for key in KEPT})
    stacked = {place: np.stack(each) for place, each in predictions.items()}
    entries = augmentation.analyse(stacked, sample, baseline=BASELINE, rare=given.columns)
    for entry in entries:
        each = details[entry["arm"], entry["subset"]]
        entry |= {key: each[0][key] for key in ("real", "synthetic", "images_seen")}
        entry["synthetic_distinct"] = min(run["synthetic_distinct"] for run in each)
        entry |= {"val": [max_of(run["val"]) for run in each], "chosen_at": [run["chosen_at"] for run in each]}
    write(s, given, entries, sample, context=context, recipe=recipe, primary=primary, left_out=left_out)
    return True


def planned(s: Settings, given: Inputs) -> tuple[list[Run], list[str]]:
    """All runs, and why an arm of the default ones is none of them."""
    asked = [word.strip() for text in s.arms for word in text.split(",") if word.strip()]
    cut_sizes = (s.cut_sizes or s.sizes[-1:]) if s.cut is not None else ()
    arms = asked or [arm for arm in DEFAULT_ARMS if given.sets or not ARMS[arm].synthetic]
    left_out = []
    if not asked and not all((each.labels[:, given.columns] == 1).any() for each in given.sets.values()):
        arms.remove("rare")
        left_out.append("rare: a synthetic set shows no rare finding")
    counts = {name: len(source.images) for name, source in given.sets.items()}
    sizes = sorted(set(s.sizes))
    return plan_runs(arms, counts, sizes, seeds=s.seeds, cut=s.cut, cut_sizes=sorted(set(cut_sizes))), left_out


def context_of(s: Settings, given: Inputs, recipe: Recipe) -> Context:
    told = replace(
        s, synthetic=tuple(map(without_folders, s.synthetic)), generator=tuple(map(portable, s.generator)), jobs=0,
        dry_run=False, update=None,
    )  # fmt: skip
    return Context.of(
        f"eval/{NAME}.py", told, seed=0,
        extractor=f"{recipe.net} classifier of this experiment, weights {recipe.weights}",
        resize=f"file: shorter side to {recipe.size} px by antialiased bicubic, centre crop",
        model={"name": ", ".join(given.sets) or "none"},
        inputs={
            f"--real {portable(s.real)}": file_hash(Path(str(s.real))),
            **{f"--synthetic {name}": file_hash(path) for name, path in given.manifests.items()},
            **{f"--generator {portable(path)}": file_hash(path) for path in s.generator},
        },
    )  # fmt: skip


def without_folders(text: str) -> str:
    """``NAME=MANIFEST`` as a result may tell it."""
    name, equals, path = text.rpartition("=")
    return f"{name}{equals}{portable(path)}"


def write(
    s: Settings,
    given: Inputs,
    entries: list[dict[str, Any]],
    sample: augmentation.HeldOut,
    *,
    context: Context,
    recipe: Recipe,
    primary: str,
    left_out: Sequence[str],
) -> None:
    """``OUT/augmentation_gain.json``: the headline is the gain of the primary arm at the largest real n it ran at."""
    assert s.out is not None
    headline = [entry for entry in entries if entry["arm"] == primary and "-cut" not in entry["subset"]][-1]
    value = headline.get("gain", headline["auroc"])
    positives = (sample.labels == 1).sum(axis=0)
    choice = "the last" if recipe.validations == 1 else f"the best of {recipe.validations} validations on val"
    warnings = []
    if s.synthetic and not s.generator:
        warnings.append(
            "what the generator was trained on was not given (--generator), so that it saw none of the test "
            "patients is not checked here"
        )
    if s.seeds < 3:
        warnings.append(f"{s.seeds} seed(s): at least 3 are needed for a spread worth reading")
    write_result(
        s.out / f"{NAME}.json",
        metric=f"macro AUROC on test of {primary} minus {BASELINE}, {headline['subset']}",
        value=value["value"],
        ci=tuple(value["ci"]),
        ci_method=f"95 % normal, spread of {s.resamples} paired bootstrap resamples of test patients and, "
        f"independently, of the {s.seeds} seeds ({max(1, s.seeds - 1)} drawn)",
        n=len(given.test),
        context=context,
        warnings=warnings,
        details={
            "baseline": BASELINE,
            "primary": {"arm": primary, "subset": headline["subset"]},
            "recipe": vars(recipe),
            "tuning": tuning(s.out / "tuning.json"),
            "selection": f"Weights are averaged over time; {choice}.",
            "seeds": s.seeds,
            "sets": {
                name: {"images": len(each.images), "pixels": each.hash, **origin(given.manifests[name])}
                for name, each in given.sets.items()
            },
            "findings": [sample.findings[column] for column in sample.scored],
            "rare": [name for name in given.rare if sample.findings.index(name) in sample.scored],
            "trained_findings": list(sample.findings),
            "test": {
                "images": len(given.test),
                "patients": int(given.test["patient_id"].nunique()),
                "positives": dict(zip(sample.findings, positives.tolist(), strict=True)),
            },
            "arms": {name: ARMS[name].what for name in dict.fromkeys(e["arm"].partition("@")[0] for e in entries)},
            "left_out": list(left_out),
            "entries": entries,
        },
    )


def tuning(path: Path) -> dict[str, Any] | None:
    """What eval/augmentation_tuning.py found beside this result; None where it was not run."""
    if not path.is_file():
        return None
    found = read_result(path)
    with shown(path):
        runs = [{key: run[key] for key in ("setting", "value", "ci", "held_out")} for run in found["details"]["runs"]]
        return {"metric": found["metric"], "test": found["details"]["test"], "command": found["command"], "runs": runs}


def recipe_of(s: Settings, device: str) -> Recipe:
    """The recipe of the network, with what was given in its place."""
    net = s.net or ("densenet121" if device == "cuda" else "small")
    start = Recipe(net=net) if net == "small" else Recipe(net=net, size=224, rate=1e-4)
    given = {field.name: getattr(s, field.name) for field in fields(Recipe)}
    return replace(start, **{name: value for name, value in given.items() if value is not None})


def check_subsets(s: Settings, given: Inputs, runs: Sequence[Run]) -> None:
    """UserError where the real set is smaller than a subset, or a set has nothing for the arm of rare findings."""
    rare = given.columns
    for run in runs:
        if run.arm == BASELINE:
            real_subset(given.real, run.n, seed=run.seed, rare=rare, cut=run.cut)
        if ARMS[run.arm].rare and not (given.sets[run.set].labels[:, rare] == 1).any():
            raise errors.UserError(f"--arms {run.arm}: the set {run.set} shows no rare finding; name some with --rare")
    require(s.cut is None or bool(rare), "--cut: no finding is rare; name some with --rare")


def primary_arm(asked: str | None, labels: Sequence[str]) -> str:
    """The arm of the headline: --primary, else the first real+x1, else the first beside the baseline."""
    others = list(dict.fromkeys(label for label in labels if label != BASELINE))
    require(bool(others), "--arms: there is none to compare with real; name more")
    wanted = asked or "real+x1"
    found = [label for label in others if wanted in (label, label.partition("@")[0])]
    require(bool(found) or asked is None, f"--primary {asked} is not among the arms: {', '.join(others)}")
    return (found or others)[0]


def max_of(history: dict[str, float | None]) -> float | None:
    values = [value for value in history.values() if value is not None]
    return max(values) if values else None


if __name__ == "__main__":
    sys.exit(errors.run(main, prog=f"eval/{NAME}.py"))
