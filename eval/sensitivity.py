"""What each metric notices: known damage to real images, in doses, against each metric's own noise.

    python eval/sensitivity.py --manifest MANIFEST --out eval/results/sensitivity --update docs/metrics.md

Real test images play the part of generated ones, others of other patients the real ones. A metric notices a damage
from the first dose on at which it leaves, to the worse side, the range in which undamaged images lie. One JSON a
metric goes to OUT, and the tables between ``<!-- results:sensitivity -->`` and its end in the document. Features are
kept under WORK by content, so the same command again continues a run that was stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from roentgen import errors
from roentgen.data.dataset import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.metrics import damage, duplicates, frechet, kernel, memorisation, prdc
from roentgen.metrics.auroc import MIN_CASES, macro_auroc
from roentgen.metrics.bootstrap import cluster_weights, percentile_interval
from roentgen.metrics.extractors import Extractor, load_extractor
from roentgen.metrics.laterality import LEFT, RIGHT
from roentgen.metrics.ms_ssim import pair_ms_ssim
from roentgen.metrics.pairing import kind_of
from roentgen.metrics.report import replace_between_markers, table
from roentgen.metrics.result import Context, command_line, file_hash, portable, read_result, write_result
from roentgen.prompts import labels_from_row
from roentgen.training.settings import as_dict, parse_settings, require, require_writable

Floats = NDArray[np.float64]
SIDE = 256
"""All images are brought to this size first, so that a dose means the same whatever the size on disk."""
NAME = "sensitivity"
KID_UNIT = 1000
LEAST = 40
RESIZE = f"file: shorter side to {SIDE} px by antialiased bicubic, centre crop; damage; then the extractor's own chain"


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Args:
        out: folder for the results.
        manifest: manifest with `train` and `test` images (not needed with `--measure false`).
        update: Markdown file with the markers, to put the tables into (None: they are printed).
        measure: false: take the results that OUT holds.
        images: damaged images, and as many to compare with; half of the test images where there are fewer.
        train: training images that copies are taken from and searched in.
        extractor: makes the features; scores are always those of the classifier that ships.
        draws: of undamaged images for the noise of each metric.
        pairs: image pairs for MS-SSIM, of one kind and of different kinds.
        planted: training images whose copies are searched.
        work: folder for features.
        seed: of every random choice.
        batch_size: images through the network at a time.
        device: for the network, such as cpu or cuda.
    """

    out: Path
    manifest: Path | None = None
    update: Path | None = None
    measure: bool = True
    images: int = 400
    train: int = 1600
    extractor: str = "classifier"
    draws: int = 100
    pairs: int = 100
    planted: int = 200
    work: Path = Path("runs/eval-sensitivity")
    seed: int = 0
    batch_size: int = 32
    device: str = "cpu"


# ---------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True, eq=False)
class Sample:
    """Images and what is known of them, one row an image.

    pixels uint8 (N, SIDE, SIDE); features (N, D); probabilities (N, F) and leftness (N, F) of the classifier's
    findings; thumbs (N, 1024); hashes (N, 256); labels (N, F) 1, 0, NaN; sides (N, F): 1 left, -1 right, 0 neither;
    patients, kinds (N,): findings and view as numbers.
    """

    pixels: NDArray[np.uint8]
    features: Floats
    probabilities: Floats
    leftness: Floats
    thumbs: Floats
    hashes: NDArray[np.uint8]
    labels: Floats
    sides: NDArray[np.int64]
    patients: NDArray[np.str_]
    kinds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.integer]) -> Sample:
        return Sample(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    def with_images(self, rows: NDArray[np.integer], other: Sample, numbers: NDArray[np.integer]) -> Sample:
        """The sample with the images of ``rows`` taken from ``other``; what was asked for stays."""
        changed = {}
        for name in IMAGE_FIELDS:
            values = np.array(getattr(self, name))
            values[rows] = getattr(other, name)[numbers]
            changed[name] = values
        return replace(self, **changed)

    def with_answers(self, rows: NDArray[np.integer], other: Sample, numbers: NDArray[np.integer]) -> Sample:
        """The sample with what was asked for in ``rows`` taken from ``other``; the images stay."""
        changed = {}
        for name in ("labels", "sides", "kinds"):
            values = np.array(getattr(self, name))
            values[rows] = getattr(other, name)[numbers]
            changed[name] = values
        return replace(self, **changed)


IMAGE_FIELDS = ("pixels", "features", "probabilities", "leftness", "thumbs", "hashes")


def join(a: Sample, b: Sample) -> Sample:
    """Rows of both, ``a`` first."""
    fields = [field.name for field in dataclasses.fields(Sample)]
    return Sample(**{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in fields})


@dataclass(frozen=True, eq=False)
class World:
    """What a sample is compared with: unseen real images, training images, pairs for MS-SSIM, and the findings.

    views (V * N, 1024): crops of the training images, for the search of copies.
    """

    real: Sample
    train: Sample
    views: NDArray[np.float32]
    findings: tuple[str, ...]
    same_kind: NDArray[np.int64]
    other_kind: NDArray[np.int64]
    seed: int


def fid(s: Sample, w: World) -> float:
    x, y = s.features - w.real.features.mean(axis=0), w.real.features - w.real.features.mean(axis=0)
    return frechet.weighted_frechet(x, y, x @ y.T, np.ones(len(x)), np.ones(len(y)))


def kid(s: Sample, w: World) -> float:
    return KID_UNIT * kernel.mmd2(s.features, w.real.features)


def manifold(which: str, s: Sample, w: World) -> float:
    return float(getattr(manifolds_of(s, w), which))


@lru_cache(maxsize=1)  # four metrics in a row read the same one
def manifolds_of(s: Sample, w: World) -> prdc.Manifolds:
    return prdc.manifolds(w.real.features, s.features)


def adherence(s: Sample, w: World) -> float:
    none = np.ones((1, len(s)))
    return macro_auroc(s.probabilities, s.labels, w.findings, none, leave_out=("No Finding",)).value


def right_side(s: Sample, w: World) -> float:
    known = s.sides != 0
    return float((s.leftness[known] * s.sides[known] > 0).mean()) if known.any() else float("nan")


def nearer(s: Sample, w: World) -> float:
    found = memorisation.nearer_to_train(
        s.features, w.train.features, w.real.features, subsets=5, resamples=1, seed=w.seed
    )
    return found.share


def authentic(s: Sample, w: World) -> float:
    return float(authentic_rows(s, w).mean())


def authentic_rows(s: Sample, w: World) -> Floats:
    """1 where a row is authentic (N,): what the bootstrap draws from."""
    found = memorisation.authenticity(s.features, w.train.features, train_groups=w.train.patients, resamples=1)
    return np.asarray(found["details"]["authentic"])


def in_space(space: str, s: Sample) -> NDArray[np.floating]:
    """A sample as points of a space in which copies are searched."""
    return s.features if space == "features" else memorisation.standardise(s.thumbs)


def train_in_space(space: str, w: World) -> NDArray[np.floating]:
    return w.train.features if space == "features" else w.views


def copied(space: str, s: Sample, w: World) -> float:
    queries, unseen = in_space(space, s), in_space(space, w.real)
    return float(memorisation.near_duplicates(queries, train_in_space(space, w), unseen, listed=0)["value"])


def repeated(s: Sample, w: World) -> float:
    found = duplicates.duplicates_within(
        s.features,
        s.hashes,
        w.real.features,
        w.real.hashes,
        groups=s.patients,
        real_groups=w.real.patients,
        listed=0,
    )
    return float(found["value"])


def alike(which: str, s: Sample, w: World) -> float:
    pairs = getattr(w, which)
    return float(pair_ms_ssim(s.pixels, pairs).mean()) if len(pairs) else float("nan")


BLUR, NOISE, BRIGHT, JPEG = "blur", "noise", "brightness", "JPEG"
LABELS, FLIP = "shuffled labels", "left-right flip"
COLLAPSE, ONE_KIND = "mode collapse", "collapse within a kind"
COPIES, CROPPED, BLURRED, BRIGHTER = "training copies", "cropped copies", "blurred copies", "brighter copies"
LOOKS = (BLUR, NOISE, BRIGHT, JPEG)
SPACES = {"features": "features", "pixels": "pixels 32 x 32, standardised, crops of train"}
ALL_COPIES = (COPIES, CROPPED, BLURRED, BRIGHTER)


@dataclass(frozen=True)
class Metric:
    """``claims``: damages that the metric is said to measure. ``worse``: 1 where higher is worse, else -1.

    noise: "halves" compares halves of undamaged images with each other ("lookup": the same, from distances to train
    that are measured once); "patients" draws patients with replacement, for what depends on one set alone (halves of
    one pool differ too little); "rows" the same for a mean over images, "pairs" for one over image pairs.
    """

    key: str
    title: str
    value: Callable[[Sample, World], float]
    worse: int
    digits: int
    claims: tuple[str, ...]
    noise: str = "halves"


METRICS = (
    Metric("fid", "FID", fid, 1, 1, (*LOOKS, COLLAPSE)),
    Metric("kid", f"KID x {KID_UNIT}", kid, 1, 1, (*LOOKS, COLLAPSE)),
    Metric("precision", "precision", partial(manifold, "precision"), -1, 2, LOOKS),
    Metric("recall", "recall", partial(manifold, "recall"), -1, 2, (COLLAPSE, ONE_KIND)),
    Metric("density", "density", partial(manifold, "density"), -1, 2, LOOKS),
    Metric("coverage", "coverage", partial(manifold, "coverage"), -1, 2, (COLLAPSE, ONE_KIND)),
    Metric("ms_ssim_within", "MS-SSIM, one kind", partial(alike, "same_kind"), 1, 3, (ONE_KIND, COLLAPSE), "pairs"),
    Metric("ms_ssim_across", "MS-SSIM, all kinds", partial(alike, "other_kind"), 1, 3, (COLLAPSE,), "pairs"),
    Metric("repeats", "near-duplicates within", repeated, 1, 3, (COLLAPSE, ONE_KIND)),
    Metric("auroc", "AUROC", adherence, -1, 3, (LABELS,), "patients"),
    Metric("laterality", "right side", right_side, -1, 3, (FLIP,), "patients"),
    Metric("nearer", "nearer to train", nearer, 1, 3, ALL_COPIES, "lookup"),
    Metric("authpct", "AuthPct (share)", authentic, -1, 3, ALL_COPIES, "rows"),
    Metric(
        "copies_features", "near-duplicates of train, features", partial(copied, "features"), 1, 3, ALL_COPIES, "lookup"
    ),
    Metric("copies_pixels", "near-duplicates of train, pixels", partial(copied, "pixels"), 1, 3, ALL_COPIES, "lookup"),
)

BOUNDS = {"fid": (0.0, np.inf), "kid": (-np.inf, np.inf), "density": (0.0, np.inf)}
"""What a metric can be at all, where that is not 0 to 1."""


@dataclass(frozen=True)
class Damage:
    """``doses`` from weak to strong; ``unit`` is a format of the dose."""

    name: str
    doses: tuple[float, ...]
    unit: str

    def dose(self, dose: float) -> str:
        return self.unit.format(dose)


DAMAGES = (
    Damage(BLUR, (0.5, 1, 2, 4), "sigma {:g} px"),
    Damage(NOISE, (5, 10, 20, 40), "sd {:g} grey levels"),
    Damage(BRIGHT, (5, 10, 20, 40), "+{:g} grey levels"),
    Damage(JPEG, (75, 50, 25, 10), "quality {:g}"),
    Damage(LABELS, (0.1, 0.25, 0.5, 1), "{:.0%} of rows"),
    Damage(FLIP, (0.1, 0.25, 0.5, 1), "{:.0%} of images"),
    Damage(COLLAPSE, (200, 100, 50, 10), "{:g} images left"),
    Damage(ONE_KIND, (4, 2, 1), "{:g} images of each kind"),
    Damage(COPIES, (0.02, 0.05, 0.1, 0.25), "{:.0%} of images"),
    Damage(CROPPED, (0.1, 0.25), "{:.0%} of images"),
    Damage(BLURRED, (0.1, 0.25), "{:.0%} of images"),
    Damage(BRIGHTER, (0.1, 0.25), "{:.0%} of images"),
)
PIXEL_DAMAGE: dict[str, Callable[[damage.Grey, float, int], damage.Grey]] = {
    BLUR: lambda image, dose, seed: damage.blur(image, dose),
    NOISE: lambda image, dose, seed: damage.noise(image, dose, seed=seed),
    BRIGHT: lambda image, dose, seed: damage.brightness(image, dose),
    JPEG: lambda image, dose, seed: damage.jpeg(image, int(dose)),
}
ALTERED = {CROPPED: "cropped", BLURRED: "blurred", BRIGHTER: "brighter"}

# ------------------------------------------------------------------------------------------------------- the run


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/sensitivity.py", description=(__doc__ or "").splitlines()[0])
    for flag, least in (("images", LEAST), ("train", LEAST), ("draws", 20), ("pairs", 2), ("planted", 1)):
        require(dataclasses.asdict(s)[flag] >= least, f"--{flag} must be at least {least}")
    require(s.batch_size >= 1, "--batch_size must be at least 1")
    if s.update is not None:  # before the minutes of work, not after
        replace_between_markers(s.update, NAME, "", write=False)
    if s.measure:
        require(s.manifest is not None, "--manifest is missing; name a manifest with train and test images")
        require_writable(s.out, "--out")
        require_writable(s.work, "--work")
        measure(s)
    text = report(s.out)
    if s.update is None:
        print(text)
    else:
        replace_between_markers(s.update, NAME, text)
        print(s.update)
    return 0


def measure(s: Settings) -> None:
    """Everything, to one JSON a metric and one for the planted copies."""
    assert s.manifest is not None
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
        views=memorisation.train_views(samples["train"].pixels),
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

    context = Context(
        extractor=f"{chosen.name}, {chosen.dim} features, weights {chosen.hash}"
        + (f"; scores: {classifier.name}, weights {classifier.hash}" if chosen is not classifier else ""),
        resize=f"{RESIZE}: {chosen.chain}",
        seed=s.seed,
        settings={key: portable(value) for key, value in as_dict(s).items()},
        model={"name": "none: real images, damaged"},
        inputs={str(portable(s.manifest.resolve())): file_hash(s.manifest)},
        command=command_line("eval/sensitivity.py", s),
    )
    noises = noise_of_all(start, world, draws=s.draws, seed=s.seed)
    for metric in METRICS:
        undamaged = metric.value(start, world)
        noise = range_about(undamaged, noises[metric.key], BOUNDS.get(metric.key, (0.0, 1.0)))
        write_metric(s.out, metric, values[metric.key], undamaged, noise, start, world, context)
    write_planted(s, world, reader, context)


def doses_of(kind: Damage, n: int) -> list[float]:
    """The doses that ``n`` images allow: as many as there are cannot be "left"."""
    return [dose for dose in kind.doses if kind.name != COLLAPSE or dose < n]


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


@dataclass(frozen=True)
class Reader:
    """Images to samples; what the networks say of a set is kept under ``work`` by its pixels and the weights."""

    classifier: Extractor
    chosen: Extractor
    work: Path
    batch_size: int

    def outputs(self, pixels: NDArray[np.uint8], name: str) -> dict[str, Floats]:
        both = {extractor.key: extractor for extractor in (self.classifier, self.chosen)}
        key = hashlib.sha256(f"{pixels.shape} {sorted(both)}".encode())
        key.update(np.ascontiguousarray(pixels).data)
        path = self.work / "outputs" / f"{key.hexdigest()[:20]}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return {field: _double(stored[field]) for field in stored.files}
        parts: dict[str, list[dict[str, NDArray[np.float32]]]] = {extractor_key: [] for extractor_key in both}
        starts = range(0, len(pixels), self.batch_size)
        for start in tqdm(starts, desc=name, file=sys.stderr, leave=False):
            for extractor_key, extractor in both.items():
                parts[extractor_key].append(extractor(list(pixels[start : start + self.batch_size])))

        def joined(extractor: Extractor, output: str) -> Floats:
            return np.concatenate([part[output] for part in parts[extractor.key]]).astype(np.float64)

        sides = joined(self.classifier, "sides")
        found: dict[str, Any] = {
            "features": joined(self.chosen, "features"),
            "probabilities": joined(self.classifier, "probabilities"),
            "leftness": sides[..., LEFT] - sides[..., RIGHT],
            "thumbs": memorisation.thumbnails(pixels).astype(np.float64),
            "hashes": duplicates.difference_hash(list(pixels)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        # Everything came in single precision, so nothing is lost, and half of the disk is saved.
        found = {field: v.astype(np.float32) if v.dtype == np.float64 else v for field, v in found.items()}
        np.savez(temporary, **found)
        temporary.replace(path)
        return {field: _double(values) for field, values in found.items()}

    def sample(self, pixels: NDArray[np.uint8], rows: pd.DataFrame, name: str) -> Sample:
        """Images with what the manifest's ``rows`` say of them."""
        findings = self.classifier.findings
        nothing = pd.Series(np.nan, index=rows.index)
        blank = pd.Series("", index=rows.index)
        sides = [rows.get(f"{f}_side", blank).map({"left": 1, "right": -1}).fillna(0) for f in findings]
        kinds = [str(sorted(map(str, kind_of(labels_from_row(row))))) for row in rows.to_dict("records")]  # type: ignore[call-overload]
        return Sample(
            pixels=pixels,
            **self.outputs(pixels, name),  # type: ignore[arg-type]
            labels=np.column_stack([rows.get(f, nothing).to_numpy(np.float64) for f in findings]),
            sides=np.column_stack(sides).astype(np.int64),
            patients=rows["patient_id"].to_numpy(dtype=str),
            kinds=np.unique(kinds, return_inverse=True)[1],
        )

    def again(self, sample: Sample, pixels: NDArray[np.uint8], name: str) -> Sample:
        """The same rows with other pixels."""
        return replace(sample, pixels=pixels, **self.outputs(pixels, name))  # type: ignore[arg-type]


def _double(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float64) if values.dtype == np.float32 else values


def changed(pixels: NDArray[np.uint8], change: Callable[[damage.Grey, int], damage.Grey]) -> NDArray[np.uint8]:
    """``change(image, row)`` of every image, in threads."""
    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(change, pixels, range(len(pixels)))))


def damaged_sample(name: str, dose: float, start: Sample, world: World, reader: Reader, seed: int) -> Sample:
    """``start`` after damage ``name`` of this ``dose``."""
    n = len(start)
    if name in PIXEL_DAMAGE:
        damage_of = PIXEL_DAMAGE[name]
        pixels = changed(start.pixels, lambda image, row: damage_of(image, dose, seed + row))
        return reader.again(start, pixels, f"{name} {dose:g}")
    if name == LABELS:
        order = damage.shuffle(n, dose, seed=seed)
        return start.with_answers(np.arange(n), start, order)
    if name == FLIP:
        mirrored = reader.again(start, changed(start.pixels, lambda image, row: damage.flip(image)), name)
        rows = np.random.default_rng(seed).permutation(n)[: round(dose * n)]
        return start.with_images(rows, mirrored, rows)
    if name == COLLAPSE:
        return start.with_images(np.arange(n), start, damage.collapse(n, int(dose), seed=seed))
    if name == ONE_KIND:
        shown = np.arange(n)
        for kind in np.unique(start.kinds):
            rows = np.flatnonzero(start.kinds == kind)
            if len(rows) > dose:
                shown[rows] = rows[damage.collapse(len(rows), int(dose), seed=seed)]
        return start.with_images(np.arange(n), start, shown)
    rows, numbers = damage.replace(n, dose, len(world.train), seed=seed)
    sources = world.train.take(numbers)
    if name in ALTERED:
        alter = damage.PLANTED[ALTERED[name]]
        sources = reader.again(sources, changed(sources.pixels, lambda image, row: alter(image)), name)
    order = np.arange(len(rows))
    # A memorised image answers the prompt that it was trained with.
    return start.with_images(rows, sources, order).with_answers(rows, sources, order)


def pairs_of(sample: Sample, count: int, *, same: bool, seed: int) -> NDArray[np.int64]:
    """At most ``count`` pairs (P, 2) of rows of different patients, of one kind or of different kinds."""
    n = len(sample)
    first, second = np.triu_indices(n, 1)
    alike_kind = sample.kinds[first] == sample.kinds[second]
    good = np.flatnonzero((alike_kind == same) & (sample.patients[first] != sample.patients[second]))
    chosen = np.random.default_rng(seed).permutation(good)[:count]
    return np.column_stack([first[chosen], second[chosen]]).astype(np.int64)


# ------------------------------------------------------------------------------------------------------- the noise


def noise_of_all(start: Sample, world: World, *, draws: int, seed: int) -> dict[str, Floats]:
    """Values (draws,) of each metric over undamaged images."""
    rng = np.random.default_rng(seed)
    pool = join(start, world.real)
    names, patient = np.unique(pool.patients, return_inverse=True)
    light = replace(pool, pixels=np.zeros((len(pool), 1, 1), np.uint8))  # halves are never looked at, only measured
    far = Lookup.of(pool, world)
    weights = cluster_weights(start.patients, draws, seed)
    found: dict[str, list[float]] = {metric.key: [] for metric in METRICS}
    for number in tqdm(range(draws), desc="noise of undamaged images", file=sys.stderr, leave=False):
        ranks = rng.permutation(len(names))[patient]
        order = np.argsort(ranks, kind="stable")  # whole patients, in random order
        a, b = np.sort(order[: len(start)]), np.sort(order[len(start) :])
        first, other = light.take(a), replace(world, real=light.take(b), seed=seed + number)
        drawn = start.take(np.repeat(np.arange(len(start)), weights[number].astype(np.int64)))
        for metric in METRICS:
            if metric.noise == "halves":
                found[metric.key].append(metric.value(first, other))
            elif metric.noise == "lookup":
                found[metric.key].append(far.value(metric.key, a, b))
            elif metric.noise == "patients":
                found[metric.key].append(metric.value(drawn, world))
    found["authpct"] = list(weights @ authentic_rows(start, world) / weights.sum(axis=1))
    for metric in METRICS:
        if metric.noise == "pairs":
            found[metric.key] = pair_draws(metric, start, world, draws=draws, seed=seed)
    return {key: np.array(values) for key, values in found.items()}


@dataclass(frozen=True, eq=False)
class Lookup:
    """Distances that every division of the undamaged images into halves shares: the same values, far sooner.

    nearest (N,): to train, by space; subsets (S, N): to the nearest of S random subsets of train; within (N, N).
    """

    nearest: dict[str, Floats]
    subsets: Floats
    within: Floats

    @staticmethod
    def of(pool: Sample, world: World) -> Lookup:
        size = min(len(world.real), len(world.train))
        rng = np.random.default_rng(world.seed)
        drawn = [rng.choice(len(world.train), size, replace=False) for _ in range(5)]
        to_train = memorisation.distances(pool.features, world.train.features)
        return Lookup(
            nearest={
                f"copies_{space}": memorisation.nearest(in_space(space, pool), train_in_space(space, world))[1][:, 0]
                for space in SPACES
            },
            subsets=np.stack([to_train[:, rows].min(axis=1) for rows in drawn]),
            within=memorisation.distances(pool.features, pool.features),
        )

    def value(self, key: str, a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
        """The metric ``key`` with rows ``a`` in the part of the damaged images, ``b`` in that of the real ones."""
        if key == "nearer":
            to_real = self.within[np.ix_(a, b)].min(axis=1)
            return float((self.subsets[:, a] < to_real).mean())
        distance = self.nearest[key]
        return float((distance[a] < np.quantile(distance[b], memorisation.QUANTILE)).mean())


def range_about(value: float, draws: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    """Central 95 % of ``draws``, moved so that their median is ``value``, within ``bounds``.

    The images to be damaged are one draw, high or low by luck; damage is a step from there, not from the middle.
    """
    low, high = percentile_interval(draws)
    finite = draws[np.isfinite(draws)]
    if not len(finite) or not np.isfinite(value):
        return float("nan"), float("nan")
    shift = value - float(np.median(finite))
    return max(bounds[0], low + shift), min(bounds[1], high + shift)


def pair_draws(metric: Metric, start: Sample, world: World, *, draws: int, seed: int) -> list[float]:
    """The metric's mean over image pairs drawn anew, with replacement, from four times as many undamaged pairs."""
    same = metric.key == "ms_ssim_within"
    used = world.same_kind if same else world.other_kind
    if len(used) == 0:
        return []
    more = pairs_of(start, 4 * len(used), same=same, seed=seed + 1)
    values = pair_ms_ssim(start.pixels, more)
    rng = np.random.default_rng(seed)
    return [float(values[rng.integers(len(values), size=len(used))].mean()) for _ in range(draws)]


def judge_doses(entries: Sequence[dict[str, Any]], noise: tuple[float, float], worse: int) -> list[dict[str, Any]]:
    """``entries`` with ``outside``: "worse", "better" or "" (within the noise of undamaged images)."""
    low, high = noise
    judged = []
    for entry in entries:
        value = entry["value"]
        side = 1 if value > high else -1 if value < low else 0
        judged.append({**entry, "outside": "" if side == 0 else "worse" if side == worse else "better"})
    return judged


def noticed_from(entries: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """Place of the first dose of damage ``name`` from which on all are noticed; None if the strongest is not."""
    doses = [entry for entry in entries if entry["damage"] == name]
    place = None
    for number in reversed(range(len(doses))):
        if doses[number]["outside"] != "worse":
            break
        place = number
    return place


def write_metric(
    out: Path,
    metric: Metric,
    entries: list[dict[str, Any]],
    undamaged: float,
    noise: tuple[float, float],
    start: Sample,
    world: World,
    context: Context,
) -> None:
    judged = judge_doses(entries, noise, metric.worse)
    n = len(start)
    warnings = []
    if metric.key == "fid" and n < start.features.shape[1]:
        warnings.append(f"n = {n} is below the feature dimension {start.features.shape[1]}: distances are too high")
    if metric.key == "laterality":
        n = int((start.sides != 0).sum())
        if n < 30:
            warnings.append(f"{n} findings with a side: too few to notice a part of them on the wrong side")
    if metric.key == "auroc":
        counts = [(int((column == 1).sum()), int((column == 0).sum())) for column in start.labels.T]
        in_macro = [f for f, c in zip(world.findings, counts, strict=True) if min(c) >= MIN_CASES and f != "No Finding"]
        warnings.append(f"{len(in_macro)} finding(s) with {MIN_CASES} cases in the macro: {', '.join(in_macro)}")
    if not np.isfinite(undamaged):
        warnings.append("not measurable on these images")
    methods = {
        "halves": "central 95 % over random halves of the undamaged images by patient, moved to the value",
        "lookup": "central 95 % over random halves of the undamaged images by patient, moved to the value",
        "patients": "95 % bootstrap by patient of the undamaged images, moved to the value",
        "rows": "95 % bootstrap by patient of the undamaged images, moved to the value",
        "pairs": "95 % bootstrap over undamaged image pairs, moved to the value",
    }
    write_result(
        out / f"{metric.key}.json",
        metric=f"{metric.title} of undamaged images, and under known damage",
        value=undamaged,
        ci=noise,
        ci_method=methods[metric.noise],
        n=n,
        context=context,
        warnings=warnings,
        details={
            "title": metric.title,
            "digits": metric.digits,
            "higher_is_worse": metric.worse == 1,
            "images": len(start),
            "compared_with": len(world.real),
            "train": len(world.train),
            "damages": judged,
            "claims": [
                {"damage": name, "noticed_from": _label(judged, name)}
                for name in metric.claims
                if any(entry["damage"] == name for entry in judged)
            ],
            "beyond": [
                {"damage": name, "noticed_from": _label(judged, name)}
                for name in dict.fromkeys(entry["damage"] for entry in judged)
                if name not in metric.claims and noticed_from(judged, name) is not None
            ],
            "fooled": {
                name: [e["label"] for e in judged if e["damage"] == name and e["outside"] == "better"]
                for name in dict.fromkeys(e["damage"] for e in judged if e["outside"] == "better")
            },
        },
    )


def _label(entries: Sequence[Mapping[str, Any]], name: str) -> str | None:
    place = noticed_from(entries, name)
    return None if place is None else str([entry for entry in entries if entry["damage"] == name][place]["label"])


def write_planted(s: Settings, world: World, reader: Reader, context: Context) -> None:
    """Recall of the search for near-duplicates on copies of training images, in features and in pixels."""
    train, real = world.train, world.real
    numbers = np.random.default_rng([s.seed, 2]).choice(len(train), min(s.planted, len(train)), replace=False)
    copies = {}
    for kind, make in damage.PLANTED.items():
        pixels = changed(train.pixels[numbers], lambda image, row, make=make: make(image))  # type: ignore[misc]
        copies[kind] = reader.again(train.take(numbers), pixels, f"{kind} copies")
    spaces: dict[str, dict[str, Any]] = {}
    for space, title in SPACES.items():
        pool = train_in_space(space, world)
        threshold = memorisation.near_duplicate_threshold(in_space(space, real), pool)
        spaces[space] = {
            "title": title,
            "threshold": threshold,
            "kinds": memorisation.planted_recall(
                {kind: in_space(space, sample) for kind, sample in copies.items()},
                dict.fromkeys(copies, numbers),
                pool,
                threshold=threshold,
                views=len(pool) // len(train),
            ),
        }
    first = spaces["features"]["kinds"]["exact"]
    write_result(
        s.out / "planted.json",
        metric="recall of the search for near-duplicates on planted copies of training images",
        value=first["value"],
        ci=first["ci"],
        ci_method="95 % Wilson",
        n=first["n"],
        context=context,
        details={
            "kinds": {
                "exact": "unchanged",
                "cropped": f"central {damage.CROPPED:.0%} of each side, brought back to size",
                "blurred": f"Gaussian, sigma {damage.BLURRED:g} px of {SIDE}",
                "brighter": f"+{damage.BRIGHTER:g} grey levels",
            },
            "spaces": spaces,
            "unseen": len(real),
            "train": len(train),
        },
    )


# ------------------------------------------------------------------------------------------------------ the tables


def report(folder: Path) -> str:
    """Markdown of what ``measure`` wrote to ``folder``; UserError if a result is missing or of another run."""
    results = {metric.key: read_result(folder / f"{metric.key}.json") for metric in METRICS}
    planted = read_result(folder / "planted.json")
    commands = {str(result["command"]) for result in (*results.values(), planted)}
    if len(commands) != 1:
        raise errors.UserError(f"{folder}: results of {len(commands)} different runs; run eval/sensitivity.py again")
    kinds = [metric.key for metric in METRICS]
    fid_result = results["fid"]
    details = fid_result["details"]
    parts = [
        f"{details['images']} real test images, damaged, against {details['compared_with']} others of other patients; "
        f"{details['train']} training images; features and scores: {fid_result['extractor']}. Bold: outside the range "
        "of undamaged images (second row) to the worse side. A dagger: outside it to the better side, so the metric "
        "praises the damage.",
        _table(results, kinds[:6]),
        _table(results, kinds[6:11]),
        _table(results, kinds[11:]),
        "Kinds are findings and view. What each metric notices, and from which dose on: first of what it is said to "
        "measure, then besides. The range of undamaged images is a 95 % one, so a few entries are there by chance.",
        _claims_table(results),
        f"Recall of the search for near-duplicates on {planted['n']} planted copies of each kind (the threshold flags "
        f"{memorisation.QUANTILE:.0%} of {planted['details']['unseen']} unseen real images):",
        _planted_table(planted),
        *dict.fromkeys(f"Note, {r['details']['title']}: {w}." for r in results.values() for w in r["warnings"]),
        f"Made by `{fid_result['command']}`.",
    ]
    return "\n\n".join(parts)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _table(results: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> str:
    chosen = [results[key] for key in keys]
    rows = [["undamaged", "", *(_number(r["value"], r["details"]["digits"]) for r in chosen)]]
    span = []
    for result in chosen:
        low, high = (_number(edge, result["details"]["digits"]) for edge in result["ci"])
        span.append(f"{low} to {high}")
    rows.append(["range of undamaged", "", *span])
    for number, entry in enumerate(chosen[0]["details"]["damages"]):
        cells = []
        for result in chosen:
            each = result["details"]["damages"][number]
            text = _number(each["value"], result["details"]["digits"])
            cells.append({"worse": f"**{text}**", "better": f"{text} †"}.get(each["outside"], text))
        rows.append([entry["damage"], entry["label"], *cells])
    return table(["damage", "dose", *(r["details"]["title"] for r in chosen)], rows)


def _claims_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [_claims(result) for result in results.values()]
    words = table(["metric", "of what it claims to measure", "besides"], rows)
    return words.replace(" ---: |", " --- |")  # words, not numbers


def _claims(result: Mapping[str, Any]) -> list[str]:
    details = result["details"]
    strongest = {entry["damage"]: entry["label"] for entry in details["damages"]}
    claims = []
    for claim in details["claims"]:
        start = claim["noticed_from"]
        if start is None:
            claims.append(f"**does not notice {claim['damage']}** (up to {strongest[claim['damage']]})")
        else:
            claims.append(f"{claim['damage']} from {start}")
    besides = [f"{entry['damage']} from {entry['noticed_from']}" for entry in details["beyond"]]
    besides += [f"praises {name} ({', '.join(doses)})" for name, doses in details["fooled"].items()]
    return [details["title"], "; ".join(claims), "; ".join(besides) or "–"]


def _planted_table(planted: Mapping[str, Any]) -> str:
    spaces = planted["details"]["spaces"]
    rows = []
    for kind, what in planted["details"]["kinds"].items():
        cells = []
        for space in spaces.values():
            entry = space["kinds"][kind]
            low, high = entry["ci"]
            cells.append(f"{entry['value']:.2f} [{low:.2f}, {high:.2f}]")
            cells.append(f"{entry['details']['right_source']:.2f}")
        rows.append([f"{kind} ({what})", *cells])
    header = ["copy", *(cell for space in spaces.values() for cell in (f"found in {space['title']}", "right source"))]
    return table(header, rows)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/sensitivity.py"))
