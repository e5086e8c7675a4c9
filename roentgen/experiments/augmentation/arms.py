"""Arms of the augmentation-gain experiment: which images each trains on, and the plan of all runs.

A run is one arm at one real subset with one seed. The seed fixes the subset, the initial weights and the order, and
all arms of a seed share them, so that every comparison is paired. All arms see the same number of images in training;
equal steps hold by design.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roentgen.errors import UserError
from roentgen.experiments.augmentation.classifier import Recipe
from roentgen.experiments.augmentation.sources import Rows, Source


@dataclass(frozen=True)
class Arm:
    """What an arm trains on: ``what`` in words, ``short`` in few, for plots.

    real: the real subset. synthetic: as many times the real subset in synthetic images (infinity: all there are).
    Beside real images the amount sets how often each kind is seen: a set that is too small is repeated, and the count
    of distinct images is in the result. Alone, repeating would change nothing, so there are as many as there are.
    pretrain: half of the training on the synthetic images, then half on the real ones. rare: only synthetic images that
    show a rare finding, fewer where there are fewer. classic: classic augmentation of all images. share: of the
    images seen in training.
    """

    what: str
    short: str
    real: bool = True
    synthetic: float = 0.0
    pretrain: bool = False
    rare: bool = False
    classic: bool = False
    share: float = 1.0


def _arms() -> dict[str, Arm]:
    plain_arms = {
        "real": Arm("the real images", "real"),
        # With equal epochs instead of equal steps an arm with x1 is trained twice as long as real alone, and what
        # that alone is worth would be taken for a gain. This is real alone with the shorter of the two trainings.
        "real-half": Arm(
            "the real images, half the training: what equal epochs would give beside real+x1",
            "real, half the training",
            share=0.5,
        ),
        **{
            f"synthetic-x{k}": Arm(
                f"synthetic images alone, {k} times as many as real ones",
                f"{k} × synthetic alone",
                real=False,
                synthetic=k,
            )
            for k in (1, 5)
        },
        "synthetic-all": Arm("all synthetic images alone", "all synthetic alone", real=False, synthetic=math.inf),
        **{
            f"real+x{k:g}": Arm(
                f"the real images and {k:g} times as many synthetic ones", f"real + {k:g} × synthetic", synthetic=k
            )
            for k in (0.5, 1, 2, 5)
        },
        "real+all": Arm("the real images and all synthetic ones", "real + all synthetic", synthetic=math.inf),
        "pretrain": Arm(
            "all synthetic images first, then the real ones",
            "synthetic first, then real",
            synthetic=math.inf,
            pretrain=True,
        ),
        "rare": Arm(
            "the real images and as many synthetic ones of rare findings",
            "real + synthetic of rare findings",
            synthetic=1,
            rare=True,
        ),
    }
    found = dict(plain_arms)
    for name, arm in plain_arms.items():
        prefix = name.replace("real", "classic", 1) if name.startswith("real") else f"classic-{name}"
        words = {"what": f"{arm.what}; classic augmentation", "short": f"{arm.short}, classic augmentation"}
        found[prefix] = replace(arm, **words, classic=True)  # type: ignore[arg-type]
    return found


ARMS = _arms()
"""``classic`` is real under classic augmentation (no flips), ``classic+x1`` is real+x1 under it, and so on."""
BASELINE = "real"


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


def schedule(arm: Arm, n: int, total: int, recipe: Recipe) -> list[tuple[Rows, int]]:
    """Rows and steps of each phase of an arm whose first ``n`` of ``total`` images are real (if it has any).

    Their steps add up to the same for all arms of the same share.
    """
    steps = -(-round(arm.share * recipe.images) // recipe.batch_size)
    everything = np.arange(total)
    if not arm.pretrain:
        return [(everything, steps)]
    return [(everything[n:], steps // 2), (everything[:n], steps - steps // 2)]
