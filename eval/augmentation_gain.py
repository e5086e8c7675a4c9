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

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from roentgen import errors
from roentgen.config import require
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.experiments.augmentation import gain as augmentation
from roentgen.experiments.augmentation import report as augmentation_report
from roentgen.experiments.augmentation.arms import (
    ARMS,
    BASELINE,
    Run,
    Source,
    Task,
    check_patients,
    check_real,
    check_synthetic,
    load_source,
    plan_runs,
    real_subset,
    run_all,
)
from roentgen.experiments.augmentation.classifier import NETS, Recipe, build_net, check_recipe
from roentgen.files import file_hash, require_writable, write_atomic
from roentgen.metrics.adherence.scored import MIN_CASES
from roentgen.metrics.report.tables import replace_between_markers
from roentgen.metrics.result import Context, read_result, write_result
from roentgen.metrics.statistics import RESAMPLES, cluster_weights
from roentgen.provenance import portable

NAME = "augmentation_gain"
REGION = "augmentation"
DEFAULT_ARMS = (
    *("real", "real-half", "classic", "synthetic-x1", "synthetic-x5"),
    *("real+x0.5", "real+x1", "real+x2", "real+x5", "pretrain", "rare"),
)
RARE_SHARE = 0.025
"""Findings positive in less than this share of the train images are rare, unless --rare names others."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.list_arms:
        for name, arm in ARMS.items():
            print(f"{'*' if name in DEFAULT_ARMS else ' '} {name:22} {arm.what}")
        print("* by default")
        return 0
    require(args.out is not None, "--out is missing: name the folder for the results")
    if not args.table_only:
        require(args.real is not None, "--real is missing: name a manifest with train, val and test images")
        if not measure(args):
            return 0  # a dry run
    path = args.out / f"{NAME}.json"
    require(path.is_file(), f"--table-only: {path} does not exist; run the experiment into this --out first")
    result = read_result(path)
    text = augmentation_report.markdown(result)
    write_atomic(args.out / f"{NAME}.md", (text + "\n").encode())
    write_atomic(args.out / f"{NAME}.png", augmentation_report.plot(result))
    if args.update is None:
        print(text)
    else:
        replace_between_markers(args.update, REGION, text)
    print(path)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="eval/augmentation_gain.py", description=(__doc__ or "").splitlines()[0])
    flag = found.add_argument
    flag("--real", type=Path, metavar="MANIFEST", help="real images with train, val and test")
    flag("--synthetic", nargs="+", default=[], metavar="[NAME=]MANIFEST", help="synthetic sets, such as exports")
    flag(
        *("--generator", "--generators"), type=Path, nargs="+", default=[], metavar="MANIFEST",
        help="what the generator was trained on: no patient of its train rows may be in val or test of --real",
    )  # fmt: skip
    flag("--out", type=Path, help="folder for the results")
    flag("--work", type=Path, default=Path("runs/augmentation-gain"), help="folder for images and finished runs")
    flag("--update", type=Path, metavar="FILE", help="Markdown file with the markers, to put the tables into")
    flag("--table-only", action="store_true", help="take the result that OUT holds; train nothing")
    flag(
        "--arms",
        type=words,
        help="comma-separated NAME[@SET][:SIZE/SIZE], for one synthetic set and some of --sizes; a cut subset is "
        "5000-cut20 (default: see --list-arms)",
    )
    flag("--list-arms", action="store_true", help="print the arms and stop")
    flag("--sizes", type=numbers, default=(500, 1000, 2500, 5000), help="real training images, comma-separated")
    flag("--seeds", type=int, default=3, help="subsets and initial weights")
    flag("--rare", nargs="+", default=[], metavar="FINDING", help=f"rare findings (default: below {RARE_SHARE:.1%}%)")
    flag("--cut", type=int, metavar="K", help="also real subsets with only K positives of each rare finding ...")
    flag("--cut-sizes", type=numbers, default=(), help="... at these sizes (default: the largest of --sizes)")
    flag("--primary", help="arm whose gain is the headline, chosen before the run (default: real+x1)")
    flag("--min-positive", type=int, default=30, help="positive train images that a finding must have")
    flag("--net", choices=tuple(NETS), help="default: densenet121 on a GPU, else small")
    flag("--weights", default=Recipe.weights, help="none, or for densenet121 imagenet or xrv")
    flag("--size", type=int, help="side of the images in pixels (default: 64 for small, 224 for densenet121)")
    flag("--images", type=int, default=Recipe.images, help="images seen in training by every arm")
    flag("--batch-size", type=int, default=Recipe.batch_size)
    flag("--rate", type=float, help="peak learning rate (default: 1e-3 for small, 1e-4 for densenet121)")
    flag("--weight-decay", type=float, default=Recipe.weight_decay)
    flag("--label-smoothing", type=float, default=Recipe.label_smoothing)
    flag("--validations", type=int, default=Recipe.validations, help="times that val may choose; 1: the last weights")
    flag("--resamples", type=int, default=RESAMPLES, help="of the bootstrap over test patients")
    flag("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    flag("--jobs", type=int, help="runs at a time (default: the CPU's cores, or 1 on a GPU)")
    flag("--dry-run", action="store_true", help="print what would be run and stop")
    return found


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[int, ...]:
    found = words(text)
    require(all(word.isdigit() for word in found), f"{text!r} is not a list of numbers; write it as 500,1000")
    return tuple(sorted({int(word) for word in found}))


def measure(args: argparse.Namespace) -> bool:
    """Run everything and write the result; False after a dry run."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    recipe = recipe_of(args, device)
    check_recipe(recipe)
    jobs = args.jobs or (1 if device == "cuda" else os.cpu_count() or 1)
    require(jobs > 0 and args.seeds > 0 and args.resamples > 0, "--jobs, --seeds and --resamples must be positive")
    require(min(args.sizes, default=0) > 1, "--sizes must name numbers of images, such as 500,1000")
    require(args.cut is None or args.cut > 0, f"--cut {args.cut} must be positive")

    # Data: what is labelled, what is rare, and that nobody in val or test is trained on.
    table = read_manifest(args.real, allow_empty_text=True)
    findings = chosen_findings(table, args)
    rare = rare_findings(table, findings, args.rare)
    manifests = named_manifests(args.synthetic)
    require_writable(args.work, "--work")
    cache = args.work / "cache"
    real = load_source("real", table, findings, size=recipe.size, cache=cache)
    sets = {name: load_set(name, path, findings, recipe.size, cache) for name, path in manifests.items()}
    check_real(real, f"--real {args.real}")
    for name, source in sets.items():
        check_synthetic(real, source, f"--synthetic {manifests[name]}")
    for path in args.generator:
        trained_on = read_manifest(path, splits=("train",), allow_empty_text=True, check_files=False)
        check_patients(real, trained_on["patient_id"].to_numpy(dtype=str), f"--generator {path}")
    columns = tuple(findings.index(name) for name in rare)

    # The plan, resolved and printed before any work.
    cut_sizes = (args.cut_sizes or args.sizes[-1:]) if args.cut is not None else ()
    arms = args.arms or [arm for arm in DEFAULT_ARMS if sets or not ARMS[arm].synthetic]
    counts = {name: len(source.images) for name, source in sets.items()}
    shown = all((source.labels[:, columns] == 1).any() for source in sets.values())
    if args.arms is None and not shown:
        arms.remove("rare")
    runs = plan_runs(arms, counts, args.sizes, seeds=args.seeds, cut=args.cut, cut_sizes=cut_sizes)
    left_out = ["rare: a synthetic set shows no rare finding"] if args.arms is None and not shown else []
    labels = {run: run.label if len(sets) > 1 else run.arm for run in runs}
    primary = primary_arm(args.primary, list(labels.values()))
    check_subsets(args, real, sets, runs, columns)
    keys = list(dict.fromkeys(run.key for run in runs))
    print(f"{len(keys)} trainings for {len(runs)} runs, {recipe.images} images each: {recipe}", file=sys.stderr)
    print(f"findings: {', '.join(findings)}; rare: {', '.join(rare) or 'none'}", file=sys.stderr)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if args.dry_run:
        print("\n".join(keys))
        return False
    require_writable(args.out, "--out")
    build_net(recipe, len(findings), seed=0)  # missing weights are told here, not by a worker

    # The runs.
    context = Context(
        extractor=f"{recipe.net} classifier of this experiment, weights {recipe.weights}",
        resize=f"file: shorter side to {recipe.size} px by antialiased bicubic, centre crop",
        seed=0,
        settings={key: setting(value) for key, value in vars(args).items() if key not in ("update", "jobs")},
        model={"name": ", ".join(sets) or "none"},
        inputs={
            f"--real {portable(args.real)}": file_hash(args.real),
            **{f"--synthetic {name}": file_hash(path) for name, path in manifests.items()},
            **{f"--generator {portable(path)}": file_hash(path) for path in args.generator},
        },
        command=command(args),
    )
    tasks = [
        Task(run, recipe, real, sets.get(run.set), tuple(findings), columns, device, args.work, context) for run in runs
    ]
    run_all(tasks, jobs=jobs)

    # The analysis: paired by seed, bootstrap over test patients.
    test = table[table["split"] == "test"]
    sample = augmentation.HeldOut(
        labels=real.labels[real.rows("test")].astype(np.float64),
        findings=tuple(findings),
        weights=cluster_weights(test["patient_id"].tolist(), args.resamples, 0),
        groups=augmentation.groups_of(test),
    )
    predictions: dict[tuple[str, str], Any] = {}
    details: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in tasks:
        place = (labels[task.run], task.run.subset)
        with np.load(task.predictions) as stored:
            predictions.setdefault(place, []).append(stored["test"].astype(np.float64))
        details.setdefault(place, []).append(read_result(task.result)["details"])
    entries = augmentation.analyse(
        {place: np.stack(each) for place, each in predictions.items()}, sample, baseline=BASELINE, rare=columns
    )
    for entry in entries:
        each = details[entry["arm"], entry["subset"]]
        entry |= {key: each[0][key] for key in ("real", "synthetic", "images_seen")}
        entry["synthetic_distinct"] = min(run["synthetic_distinct"] for run in each)
        entry |= {"val": [max_of(run["val"]) for run in each], "chosen_at": [run["chosen_at"] for run in each]}
    made = {
        name: {"images": counts[name], "pixels": sets[name].hash, **origin(path)} for name, path in manifests.items()
    }
    write(args, entries, sample, context, recipe, primary, rare, left_out, test, made)
    return True


def write(
    args: argparse.Namespace,
    entries: list[dict[str, Any]],
    sample: augmentation.HeldOut,
    context: Context,
    recipe: Recipe,
    primary: str,
    rare: Sequence[str],
    left_out: Sequence[str],
    test: pd.DataFrame,
    made: dict[str, Any],
) -> None:
    """``OUT/augmentation_gain.json``: the headline is the gain of the primary arm at the largest real n it ran at."""
    headline = [entry for entry in entries if entry["arm"] == primary and "-cut" not in entry["subset"]][-1]
    value = headline.get("gain", headline["auroc"])
    positives = (sample.labels == 1).sum(axis=0)
    choice = "the last" if recipe.validations == 1 else f"the best of {recipe.validations} validations on val"
    warnings = []
    if args.synthetic and not args.generator:
        warnings.append(
            "what the generator was trained on was not given (--generator), so that it saw none of the test "
            "patients is not checked here"
        )
    if args.seeds < 3:
        warnings.append(f"{args.seeds} seed(s): at least 3 are needed for a spread worth reading")
    write_result(
        args.out / f"{NAME}.json",
        metric=f"macro AUROC on test of {primary} minus {BASELINE}, {headline['subset']}",
        value=value["value"],
        ci=tuple(value["ci"]),
        ci_method=f"95 % normal, spread of {args.resamples} paired bootstrap resamples of test patients and, "
        f"independently, of the {args.seeds} seeds ({max(1, args.seeds - 1)} drawn)",
        n=len(test),
        context=context,
        warnings=warnings,
        details={
            "baseline": BASELINE,
            "primary": {"arm": primary, "subset": headline["subset"]},
            "recipe": vars(recipe),
            "tuning": tuning(args.out / "tuning.json"),
            "selection": f"Weights are averaged over time; {choice}.",
            "seeds": args.seeds,
            "sets": made,
            "findings": [sample.findings[column] for column in sample.scored],
            "rare": [name for name in rare if sample.findings.index(name) in sample.scored],
            "trained_findings": list(sample.findings),
            "test": {
                "images": len(test),
                "patients": int(test["patient_id"].nunique()),
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
    runs = [{key: run[key] for key in ("setting", "value", "ci", "held_out")} for run in found["details"]["runs"]]
    return {"metric": found["metric"], "test": found["details"]["test"], "command": found["command"], "runs": runs}


def recipe_of(args: argparse.Namespace, device: str) -> Recipe:
    net = args.net or ("densenet121" if device == "cuda" else "small")
    small = net == "small"
    return Recipe(
        net=net,
        weights=args.weights,
        size=args.size or (64 if small else 224),
        images=args.images,
        batch_size=args.batch_size,
        rate=args.rate or (Recipe.rate if small else 1e-4),
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        validations=args.validations,
    )


def chosen_findings(table: pd.DataFrame, args: argparse.Namespace) -> list[str]:
    """Findings to learn; UserError where there are no labels to learn or to test."""
    split = {name: table[table["split"] == name] for name in ("train", "val", "test")}
    for name, rows in split.items():
        require(len(rows) > 0, f"--real {args.real} has no {name} images; fill its split column")
    found = [name for name in finding_columns(table) if (split["train"][name] == 1).sum() >= args.min_positive]
    require(
        bool(found), f"--real {args.real}: no finding has {args.min_positive} positive train images; add labels or "
        "lower --min-positive",
    )  # fmt: skip
    scored = augmentation.enough_cases(split["test"][found].to_numpy(np.float64), found)
    require(bool(scored), f"--real {args.real}: no finding has {MIN_CASES} positive and negative test images; add some")
    return found


def rare_findings(table: pd.DataFrame, findings: Sequence[str], asked: Sequence[str]) -> list[str]:
    unknown = [name for name in asked if name not in findings]
    require(not unknown, f"--rare {', '.join(unknown)}: not among the findings that are learned: {', '.join(findings)}")
    share = table.loc[table["split"] == "train", list(findings)].mean()
    return list(asked) or [name for name in findings if share[name] < RARE_SHARE and name != augmentation.NO_FINDING]


def named_manifests(given: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH``, or a path that names itself: by its folder where the file is a mere manifest.csv."""
    found: dict[str, Path] = {}
    for word in given:
        name, equals, rest = word.partition("=")
        path = Path(rest if equals else word)
        if not equals:
            name = path.absolute().parent.name if path.stem == "manifest" else path.stem
        require(bool(name) and "@" not in name and "/" not in name, f"--synthetic {word}: the name may hold no / or @")
        require(name not in found, f"--synthetic: two sets are called {name}; tell them apart with NAME=MANIFEST")
        found[name] = path
    return found


def load_set(name: str, path: Path, findings: Sequence[str], size: int, cache: Path) -> Source:
    source = load_source(name, read_manifest(path, allow_empty_text=True), findings, size=size, cache=cache)
    known = np.isfinite(source.labels).any()
    require(bool(known), f"--synthetic {path} has no label of {', '.join(findings)}; export it with labels")
    return source


def origin(path: Path) -> dict[str, Any]:
    """How a synthetic set was made, where its manifest tells it as `roentgen export` does."""
    table = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    told = [name for name in ("model", "model_hash", "sampler", "steps", "guidance") if name in table]
    return {name: ", ".join(sorted({str(value) for value in table[name]})) for name in told}


def check_subsets(
    args: argparse.Namespace, real: Source, sets: dict[str, Source], runs: Sequence[Run], rare: Sequence[int]
) -> None:
    """UserError where the real set is smaller than a subset, or a set has nothing for the arm of rare findings."""
    for run in runs:
        if run.arm == BASELINE:
            real_subset(real, run.n, seed=run.seed, rare=rare, cut=run.cut)
        if ARMS[run.arm].rare and not (sets[run.set].labels[:, rare] == 1).any():
            raise errors.UserError(f"--arms {run.arm}: the set {run.set} shows no rare finding; name some with --rare")
    require(args.cut is None or bool(rare), "--cut: no finding is rare; name some with --rare")


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


def setting(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [setting(item) for item in value]
    if isinstance(value, str) and "=" in value:
        name, _, path = value.partition("=")
        return f"{name}={portable(path)}"
    return portable(value)


def command(args: argparse.Namespace) -> str:
    """The command line that makes ``args`` again, without anybody's folders."""
    found = ["python", "eval/augmentation_gain.py"]
    defaults = vars(parser().parse_args([]))
    for key, default in defaults.items():
        value = getattr(args, key)
        if value == default or key in ("jobs", "dry_run"):
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, tuple):
            found += [flag, ",".join(map(str, value))]
        elif isinstance(value, list):
            found += [flag, *map(str, setting(value))]
        else:
            found += [flag] if value is True else [flag, str(setting(value))]
    return shlex.join(found)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/augmentation_gain.py"))
