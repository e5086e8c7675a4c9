"""Arms of the augmentation-gain experiment: which images each trains on, and running all of them, resumably.

A run is one arm at one real subset with one seed. The seed fixes the subset, the initial weights and the order, and
all arms of a seed share them, so that every comparison is paired. All arms see the same number of images in training;
equal steps hold by design.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from roentgen.data.images import load_pixels
from roentgen.devices import keep_freed_memory
from roentgen.errors import UserError
from roentgen.experiments.augmentation.classifier import Labelled, Phase, Recipe, build_net, predict, train, val_auroc
from roentgen.files import sha256, write_atomic
from roentgen.metrics.result import Context, plain, write_result

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """What an arm trains on.

    real: the real subset. synthetic: as many times the real subset in synthetic images (infinity: all there are).
    Beside real images the amount sets how often each kind is seen: a set that is too small is repeated, and the count
    of distinct images is in the result. Alone, repeating would change nothing, so there are as many as there are.
    pretrain: half of the training on the synthetic images, then half on the real ones. rare: only synthetic images that
    show a rare finding, fewer where there are fewer. classic: classic augmentation of all images. share: of the
    images seen in training.
    """

    what: str
    real: bool = True
    synthetic: float = 0.0
    pretrain: bool = False
    rare: bool = False
    classic: bool = False
    share: float = 1.0


def _arms() -> dict[str, Arm]:
    plain_arms = {
        "real": Arm("the real images"),
        # With equal epochs instead of equal steps an arm with x1 is trained twice as long as real alone, and what
        # that alone is worth would be taken for a gain. This is real alone with the shorter of the two trainings.
        "real-half": Arm("the real images, half the training: what equal epochs would give beside real+x1", share=0.5),
        **{
            f"synthetic-x{k}": Arm(f"synthetic images alone, {k} times as many as real ones", real=False, synthetic=k)
            for k in (1, 5)
        },
        "synthetic-all": Arm("all synthetic images alone", real=False, synthetic=math.inf),
        **{
            f"real+x{k:g}": Arm(f"the real images and {k:g} times as many synthetic ones", synthetic=k)
            for k in (0.5, 1, 2, 5)
        },
        "real+all": Arm("the real images and all synthetic ones", synthetic=math.inf),
        "pretrain": Arm("all synthetic images first, then the real ones", synthetic=math.inf, pretrain=True),
        "rare": Arm("the real images and as many synthetic ones of rare findings", synthetic=1, rare=True),
    }
    found = dict(plain_arms)
    for name, arm in plain_arms.items():
        prefix = name.replace("real", "classic", 1) if name.startswith("real") else f"classic-{name}"
        found[prefix] = replace(arm, what=f"{arm.what}; classic augmentation", classic=True)
    return found


ARMS = _arms()
"""``classic`` is real under classic augmentation (no flips), ``classic+x1`` is real+x1 under it, and so on."""
BASELINE = "real"


@dataclass(frozen=True, eq=False)
class Source:
    """A set of images as the runs see it; row i of everything is one image.

    labels float32 (N, F): 1, 0, NaN; patients, splits (N,) str; hash: of pixels at ``size``, labels, patients, splits.
    """

    name: str
    images: tuple[str, ...]
    labels: NDArray[np.float32]
    patients: NDArray[np.str_]
    splits: NDArray[np.str_]
    size: int
    cache: Path
    hash: str

    def rows(self, split: str) -> Rows:
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True)
class Run:
    """One training: ``set`` is the synthetic set's name ("" without); ``cut``: positives left of each rare finding
    in the real subset, None for all; ``alone``: synthetic images of an arm without real ones, else 0."""

    arm: str
    set: str
    n: int
    cut: int | None
    seed: int
    alone: int = 0

    @property
    def subset(self) -> str:
        return f"n{self.n}" + ("" if self.cut is None else f"-cut{self.cut}")

    @property
    def label(self) -> str:
        return self.arm + (f"@{self.set}" if self.set else "")

    @property
    def key(self) -> str:
        """Runs of one key train on the same images in the same order: synthetic-x5 at n = 500 and -x1 at 2,500."""
        if self.alone:
            kind = "classic-synthetic" if ARMS[self.arm].classic else "synthetic"
            return f"{kind}@{self.set}_m{self.alone}_seed{self.seed}"
        return f"{self.label}_{self.subset}_seed{self.seed}"


def load_source(name: str, table: pd.DataFrame, findings: Sequence[str], *, size: int, cache: Path) -> Source:
    """Images of a manifest's rows, decoded once into ``cache``. A finding without a column is unknown throughout."""
    images = tuple(table["image"])
    nothing = pd.Series(np.nan, index=table.index)
    labels = np.column_stack([table.get(f, nothing).to_numpy(np.float32, na_value=np.nan) for f in findings])
    patients, splits = (table[column].to_numpy(dtype=str) for column in ("patient_id", "split"))
    pixels = np.ascontiguousarray(open_pixels(images, size, cache))
    digest = sha256(pixels.data, labels.tobytes(), "\n".join([*findings, *patients, *splits]))
    return Source(name, images, labels, patients, splits, size, cache, digest[:16])


@lru_cache(maxsize=8)
def open_pixels(images: tuple[str, ...], size: int, cache: Path) -> NDArray[np.uint8]:
    """uint8 (N, size, size) of the files, memory-mapped from ``cache`` once they are there."""
    return load_pixels(images, size=size, cache=cache).pixels


def check_real(real: Source, flag: str) -> None:
    """UserError where a picture of val or test is in another split too; the manifest's reader looks at patients."""
    parts = {split: _prints(real, real.rows(split)) for split in ("train", "val", "test")}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        copies = parts[one] & parts[other]
        if copies:
            raise UserError(f"{flag}: {len(copies)} images of {other} are in {one} too; remove them from one")


def check_synthetic(real: Source, synthetic: Source, flag: str) -> None:
    """UserError where a synthetic set holds rows, patients or pictures of the real val or test split."""
    outside = synthetic.splits != "train"
    if outside.any():
        raise UserError(f"{flag}: {outside.sum()} rows are of split {synthetic.splits[outside][0]}; all must be train")
    check_patients(real, synthetic.patients, flag)
    copies = _prints(real, np.flatnonzero(real.splits != "train")) & _prints(synthetic, synthetic.rows("train"))
    if copies:
        raise UserError(f"{flag}: {len(copies)} of its images are images of --real's val or test split; remove them")


def check_patients(real: Source, patients: NDArray[np.str_], flag: str) -> None:
    """UserError where one of ``patients``, seen in training, is in the real val or test split."""
    shared = np.intersect1d(real.patients[real.splits != "train"], patients)
    if len(shared):
        raise UserError(
            f"{flag}: patient {shared[0]} and {len(shared) - 1} more are in --real's val or test split; use data "
            "without them"
        )


def _prints(source: Source, rows: Rows) -> set[str]:
    """Hashes of the pixels of some rows."""
    pixels = open_pixels(source.images, source.size, source.cache)
    return {sha256(np.ascontiguousarray(pixels[row]).data) for row in rows}


# --------------------------------------------------------------------------------------------------------- subsets


def real_subset(real: Source, n: int, *, seed: int, rare: Sequence[int] = (), cut: int | None = None) -> Rows:
    """Rows (n,) of the train split, patient after patient in an order of ``seed``: nested over ``n``.

    ``cut``: of each finding (column) of ``rare`` only the first so many positives are taken.
    UserError where there are fewer than ``n``.
    """
    rows = real.rows("train")
    names, index = np.unique(real.patients[rows], return_inverse=True)
    place = np.random.default_rng([seed, 1]).permutation(len(names))
    ordered = rows[np.argsort(place[index], kind="stable")]
    if cut is not None:
        positive = real.labels[ordered][:, list(rare)] == 1
        counts, keep = np.zeros(len(rare), dtype=int), np.ones(len(ordered), dtype=bool)
        for i, has in enumerate(positive):
            keep[i] = not (has & (counts >= cut)).any()
            counts += has & keep[i]
        ordered = ordered[keep]
    if n > len(ordered):
        after = "" if cut is None else f" after cutting rare findings to {cut} positives"
        raise UserError(f"--sizes {n}: the train split of --real has {len(ordered)} images{after}; ask for fewer")
    return ordered[:n]


def synthetic_rows(source: Source, arm: Arm, n: int, *, seed: int, rare: Sequence[int]) -> Rows:
    """Rows of the synthetic set that ``arm`` takes beside ``n`` real images, nested over ``n`` and over amounts.

    A mixture that asks for more than there are takes them over again, all of them equally often to within one.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(source.images))
    if arm.rare:
        order = order[(source.labels[order][:, list(rare)] == 1).any(axis=1)]
    if math.isinf(arm.synthetic):
        return order
    asked = round(arm.synthetic * n)
    return np.resize(order, asked) if arm.real and not arm.rare else order[:asked]


def plan_runs(
    arms: Sequence[str],
    sets: Mapping[str, int],
    sizes: Sequence[int],
    *,
    seeds: int,
    cut: int | None = None,
    cut_sizes: Sequence[int] = (),
) -> list[Run]:
    """All runs, seed after seed. ``sets``: images of each synthetic set. The baseline is run wherever an arm is.

    An arm is ``NAME[@SET][:SIZE/SIZE...]``: on one synthetic set or every one, at some of the sizes or all of them;
    a size may be ``5000-cut20``. UserError where it names what is not there.
    """
    subsets = {f"n{n}": (n, None) for n in sizes} | {f"n{n}-cut{cut}": (n, cut) for n in cut_sizes}
    chosen: list[tuple[str, str, str]] = []  # arm, set, subset
    for word in arms:
        left, _, where = word.partition(":")
        name, _, wanted = left.partition("@")
        if name not in ARMS:
            raise UserError(f"--arms {word} does not exist; choose from {', '.join(ARMS)}, with @SET for one set")
        if wanted and (wanted not in sets or not ARMS[name].synthetic):
            raise UserError(f"--arms {word}: no synthetic set {wanted} for it; there is {', '.join(sets) or 'none'}")
        names = ([wanted] if wanted else list(sets)) if ARMS[name].synthetic else [""]
        if not names:
            raise UserError(f"--arms {word} needs a --synthetic set")
        places = [f"n{place}" for place in where.split("/")] if where else list(subsets)
        for place in places:
            if place not in subsets:
                there = ", ".join(subset[1:] for subset in subsets)
                raise UserError(f"--arms {word}: {place[1:]} is not among --sizes and --cut-sizes: {there}")
        chosen += [(name, each, place) for each in names for place in places]
    used = {place for _, _, place in chosen}
    base = [(BASELINE, "", place) for place in subsets if place in used or not chosen]
    runs = []
    for name, each, place in dict.fromkeys([*base, *chosen]):
        n, positives = subsets[place]
        arm = ARMS[name]
        asked = sets[each] if math.isinf(arm.synthetic) else round(arm.synthetic * n)
        alone = 0 if arm.real else min(asked, sets[each])
        runs += [Run(name, each, n, positives, seed, alone) for seed in range(seeds)]
    return sorted(runs, key=lambda run: run.seed)


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True, eq=False)
class Task:
    """A run with all that a worker needs. rare: columns of the rare findings. ``context`` goes into its result."""

    run: Run
    recipe: Recipe
    real: Source
    synthetic: Source | None
    findings: tuple[str, ...]
    rare: tuple[int, ...]
    device: str
    work: Path
    context: Context

    @property
    def result(self) -> Path:
        return self.work / "runs" / f"{self.run.key}.json"

    @property
    def predictions(self) -> Path:
        return self.result.with_suffix(".npz")

    @property
    def identity(self) -> dict[str, Any]:
        """All that the run's result depends on."""
        uses_rare = ARMS[self.run.arm].rare or self.run.cut is not None
        run = asdict(self.run)
        if self.run.alone:
            for key in ("arm", "n", "cut"):  # of no account: see Run.key
                del run[key]
        found = {
            **run,
            **asdict(self.recipe),
            "findings": list(self.findings),
            "rare": [self.findings[column] for column in self.rare] if uses_rare else [],
            "real": self.real.hash,
            "synthetic": self.synthetic.hash if self.synthetic else "",
        }
        return dict(plain(found))


def is_done(task: Task) -> bool:
    """Whether the run's result is there; UserError where one of other settings is."""
    try:
        saved = json.loads(task.result.read_text())["details"]["identity"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{task.result} is not a result of this experiment; remove it or choose a new --work") from None
    now = task.identity
    differ = [key for key in sorted(set(saved) | set(now)) if saved.get(key) != now.get(key)]
    if differ:
        listed = ", ".join(f"{key} ({saved.get(key)} there, {now.get(key)} now)" for key in differ)
        raise UserError(
            f"--work {task.work} holds {task.run.key} with other settings: {listed}; use the same or a new --work"
        )
    return task.predictions.is_file()


def run_all(tasks: Sequence[Task], *, jobs: int) -> None:
    """Do the runs that are not done, ``jobs`` at a time in processes of their own (1: here).

    A finished run stays, whatever becomes of the others.
    """
    from tqdm import tqdm

    different = {task.run.key: task for task in tasks}.values()
    todo = [task for task in different if not is_done(task)]
    bar = tqdm(total=len(different), initial=len(different) - len(todo), unit="run", file=sys.stderr)
    with bar:
        if jobs == 1:
            for task in todo:
                execute(task)
                bar.update()
            return
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        try:
            for future in as_completed([pool.submit(execute, task) for task in todo]):
                future.result()
                bar.update()
        except BrokenProcessPool:
            raise UserError(
                "a training process was killed, perhaps for memory; run the same command again, with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def execute(task: Task) -> None:
    """Train and test one run; the predictions first, its result last, so that a result stands for a whole run."""
    threads = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(1)  # several processes share the cores, and a result should not depend on how many
    try:
        _execute(task)
    finally:
        torch.set_num_threads(threads)


def _execute(task: Task) -> None:
    began = time.perf_counter()
    arm, run, recipe, real = ARMS[task.run.arm], task.run, task.recipe, task.real
    pixels = open_pixels(real.images, real.size, real.cache)
    chosen = real_subset(real, run.n, seed=run.seed, rare=task.rare, cut=run.cut)
    parts = [Labelled(np.asarray(pixels[chosen]), real.labels[chosen])] if arm.real else []
    count, distinct = 0, 0
    if task.synthetic is not None:
        made = task.synthetic
        rows = synthetic_rows(made, arm, run.n, seed=run.seed, rare=task.rare)
        count, distinct = len(rows), len(np.unique(rows))
        parts.append(Labelled(np.asarray(open_pixels(made.images, made.size, made.cache)[rows]), made.labels[rows]))
    data = Labelled(*(np.concatenate(part) for part in zip(*((p.pixels, p.labels) for p in parts), strict=True)))
    phases = [Phase(rows, steps * recipe.batch_size) for rows, steps in schedule(arm, run.n, len(data.pixels), recipe)]
    judged, tested = real.rows("val"), real.rows("test")
    done = train(
        build_net(recipe, len(task.findings), seed=run.seed), data, phases,
        val=Labelled(np.asarray(pixels[judged]), real.labels[judged]), findings=task.findings, recipe=recipe,
        seed=run.seed, augment=arm.classic, device=task.device,
    )  # fmt: skip
    probabilities = predict(done.net, np.asarray(pixels[tested]), device=task.device)
    task.predictions.parent.mkdir(parents=True, exist_ok=True)
    _save_npz(task.predictions, probabilities)
    write_result(
        task.result, metric="macro AUROC on test of one run", ci=(math.nan, math.nan),
        value=val_auroc(probabilities, real.labels[tested], task.findings), ci_method="none for one run",
        n=len(tested), context=task.context,
        details={
            "identity": task.identity, "real": run.n if arm.real else 0, "synthetic": count,
            "synthetic_distinct": distinct, "images_seen": done.images, "chosen_at": done.chosen, "val": done.history,
            "seconds": round(time.perf_counter() - began, 1),
        },
    )  # fmt: skip


def schedule(arm: Arm, n: int, total: int, recipe: Recipe) -> list[tuple[Rows, int]]:
    """Rows and steps of each phase of an arm whose first ``n`` of ``total`` images are real (if it has any).

    Their steps add up to the same for all arms of the same share.
    """
    steps = -(-round(arm.share * recipe.images) // recipe.batch_size)
    everything = np.arange(total)
    if not arm.pretrain:
        return [(everything, steps)]
    return [(everything[n:], steps // 2), (everything[:n], steps - steps // 2)]


def _save_npz(path: Path, probabilities: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, test=probabilities)
    write_atomic(path, buffer.getvalue())
