"""The measures of a suite: each turns a case (sets, features, labels) into one result with its floor and ceiling.

This is where the metric families meet: computations are theirs, here it is decided what is compared with what. A
measure that lacks what it needs raises ``Unavailable`` with the reason, which the report lists.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics import (
    adherence,
    alignment,
    calibration,
    distribution,
    diversity,
    duplicates,
    frechet,
    laterality,
    memorisation,
    ms_ssim,
    pairing,
    retrieval,
)
from roentgen.metrics.bootstrap import cluster_weights, percentile_interval
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.features import Features
from roentgen.metrics.image_set import ImageSet, look
from roentgen.metrics.result import portable
from roentgen.models.alignment import ShippedEncoder
from roentgen.prompts import FINDINGS, labels_from_row

Floats = NDArray[np.float64]
Found = dict[str, Any]
NOTHING = (float("nan"), float("nan"))
VALIDATION = "validation"
"""Name of the set of real validation images, on which thresholds are fitted."""
SHOWN = "shows what is asked"
"""Column of single images by which the best and the worst are chosen."""
PIXELS = 256
COPY_PIXELS = 128  # before thumbnails of 32: small enough for large training sets
"""Shorter side at which images are compared pixel by pixel."""
PAIRS = 400
"""Pairs of different prompts for MS-SSIM."""
GROUPS = 100
"""Prompts at most for MS-SSIM within a prompt."""
CURVE = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the images at which a Frechet distance is drawn against n."""


class Unavailable(Exception):
    """A measure cannot be computed from what was given; ``bad_input`` where the user would expect that it could."""

    def __init__(self, reason: str, *, bad_input: bool = False) -> None:
        super().__init__(reason)
        self.bad_input = bad_input


@dataclass(frozen=True)
class Case:
    """Everything that a measure reads.

    ``partner`` (N,): row of the real image whose prompt or text each synthetic image has, -1 without one. ``notes``:
    how labels of synthetic images came about, where that needs saying. ``dual_encoder``, ``image_to_text``: names of
    the models that measures of text use.
    """

    real: ImageSet
    synthetic: ImageSet
    train: ImageSet | None
    validation: ImageSet | None
    partner: NDArray[np.int64]
    notes: tuple[str, ...]
    features: Features
    extractors: tuple[Extractor, ...]
    seed: int
    resamples: int
    device: str
    dual_encoder: str
    image_to_text: str | None

    def of(self, name: str, extractor: Extractor, output: str = "features") -> NDArray[np.float32]:
        return self.features.of(name, extractor.name, output)

    @property
    def bootstrap_groups(self) -> list[str]:
        """Cluster of each synthetic image: the patient of its real partner, else its prompt, else its own patient."""
        patients, texts, own = self.real.patients, self.synthetic.table["text"].tolist(), self.synthetic.patients
        return [
            patients[row] if row >= 0 else (f"prompt {text}" if text else mine)
            for row, text, mine in zip(self.partner, texts, own, strict=True)
        ]

    def training(self) -> ImageSet:
        if self.train is None:
            raise Unavailable("no training images were given (--train)")
        return self.train


@dataclass(frozen=True)
class Measure:
    """A line of the report.

    ``suite``: the smallest that has it. ``reads``: sets that it reads besides real and synthetic. ``output``: what it
    reads of an extractor; one that reads none has ``judge``, which says what it looks at images with: name with hash,
    and chain.
    """

    label: str
    suite: str
    better: str
    unit: str
    compute: Callable[[Case, Extractor], Found]
    output: str = "features"
    each_extractor: bool = False
    reads: tuple[str, ...] = ()
    judge: Callable[[Case], tuple[str, str]] | None = None


def match_to_real(
    synthetic: pd.DataFrame, real: pd.DataFrame
) -> tuple[pd.DataFrame, NDArray[np.int64], tuple[str, ...]]:
    """Partners of synthetic rows among real ones, by prompt id (the stem of the real image) or by equal text.

    A prompt says what is there and seldom what is not. So a finding that the prompt leaves open and the real image is
    known not to have counts as absent. Where no prompt has a partner, what no prompt mentions counts as absent, and a
    note says so.

    Returns:
        The synthetic table with labels filled in, the partners (N,) with -1 for none, and notes.
    """
    stems = {Path(image).stem: row for row, image in enumerate(real["image"])}
    by_text: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(real["text"]):
        by_text[text].append(row)
    used: dict[str, int] = defaultdict(int)
    partner = np.full(len(synthetic), -1, dtype=np.int64)
    for number, (name, text) in enumerate(zip(synthetic["prompt_id"], synthetic["text"], strict=True)):
        found = stems.get(str(name), stems.get(str(name).partition("-")[2])) if name else None
        if found is None and text and text in by_text:
            # Several real images may share a text: their prompts come in the same order.
            found = by_text[text][used[text] % len(by_text[text])]
            used[text] += 1
        if found is not None:
            partner[number] = found
    table = synthetic.copy()
    findings = [name for name in FINDINGS if name in real and name in table]
    matched = partner >= 0
    notes: tuple[str, ...] = ()
    has_labels = bool(findings) and bool(table[findings].notna().any(axis=None))
    for name in findings:
        values = table[name].to_numpy(copy=True)
        absent = real[name].to_numpy()[np.clip(partner, 0, None)] == 0
        values[np.isnan(values) & matched & absent] = 0
        if has_labels and not matched.any():
            values[np.isnan(values)] = 0
        table[name] = values
    if has_labels and not matched.any():
        notes = (
            "no prompt has a real image of the same id or text: findings that a prompt leaves open count as absent",
        )
    elif has_labels and not matched.all():
        notes = (f"{int((~matched).sum())} of {len(matched)} synthetic images have no real image of the same prompt",)
    return table, partner, notes


def pixels(images: ImageSet, rows: Sequence[int] | NDArray[np.integer], size: int = PIXELS) -> NDArray[np.uint8]:
    """Grey images uint8 (n, size, size) of these rows: shorter side resized, centre cropped."""
    paths = images.paths
    return np.stack([resize_center_crop(read_image(paths[row]), size) for row in rows])


# ------------------------------------------------------------------------------------------ distribution


def pair_of(case: Case, extractor: Extractor) -> distribution.Pair:
    return distribution.Pair(
        case.of("synthetic", extractor),
        case.of("real", extractor),
        synthetic_groups=case.bootstrap_groups,
        real_groups=case.real.patients,
        resamples=case.resamples,
        seed=case.seed,
    )


def measure_distribution(name: str, bound: str) -> Callable[[Case, Extractor], Found]:
    """A metric of ``distribution.METRICS``; ``bound``: whether real against real is its floor or its ceiling."""

    def compute(case: Case, extractor: Extractor) -> Found:
        pair = pair_of(case, extractor)
        least = pair.k + 1
        if min(len(pair.synthetic), len(pair.real)) < least:
            raise Unavailable(f"too few images: at least {least} on each side are needed", bad_input=True)
        found = distribution.measure(name, pair)
        found["warnings"] += one_seed(case)
        details = found["details"]
        if entry := details.pop("floor", None):
            words = f"real against real, n = {entry['n']:,}"
            if same := details.get("at_floor_n"):
                words += f"; generated at that n: {same['value']:.3g}"
            details[bound] = {**entry, "what": words}
        if "points" in details:
            details["points"] = [{"n": n, "value": value} for n, value in details["points"]]
        if name == "fid":
            details["by_n"] = fid_by_n(pair)
        return found

    return compute


def one_seed(case: Case) -> list[str]:
    """A warning where all images were made from the same seed: they share their noise and so look alike."""
    seeds, texts = case.synthetic.table["seed"].astype(str), case.synthetic.table["text"]
    if len(seeds) < 2 or seeds.iloc[0] == "" or seeds.nunique() > 1 or texts.nunique() < 2:
        return []
    return [f"all images have the seed {seeds.iloc[0]}: they share their noise and are more alike than need be"]


def fid_by_n(pair: distribution.Pair) -> dict[str, list[dict[str, Any]]]:
    """Frechet distance of n of the images against n real ones, for growing n: generated, and real against real.

    Both curves fall with n; what is left between them at equal n is the model's.
    """
    halves = distribution.real_halves(pair)
    curves = {"generated": (pair.synthetic, pair.real)}
    if halves is not None:
        curves["real against real (two halves of the patients)"] = (halves.synthetic, halves.real)
    rng = np.random.default_rng(pair.seed)
    found: dict[str, list[dict[str, Any]]] = {}
    every = {round(share * min(len(pair.synthetic), len(pair.real))) for share in CURVE}
    for name, (x, y) in curves.items():
        most = min(len(x), len(y))
        rows, others = rng.permutation(len(x)), rng.permutation(len(y))
        sizes = sorted({n for n in every if 2 <= n <= most} | {most})
        found[name] = [{"n": n, "value": frechet.feature_distance(x[rows[:n]], y[others[:n]])} for n in sizes]
    return found


def measure_fid_by_finding(case: Case, extractor: Extractor) -> Found:
    """Frechet distance of the images with a finding to the real images with it; the value is the mean."""
    mine, theirs = labels_of(case)
    names = list(case.real.findings)
    found = distribution.per_finding(
        "fid",
        pair_of(case, extractor),
        {name: mine[:, column] for column, name in enumerate(names)},
        {name: theirs[:, column] for column, name in enumerate(names)},
    )
    known = {name: entry for name, entry in found.items() if math.isfinite(entry["value"])}
    if not known:
        raise Unavailable(f"no finding has {distribution.LEAST} images on both sides")
    rows = [
        {"finding": name, **{key: entry[key] for key in ("value", "ci", "n")}, "floor": entry["details"].get("floor")}
        for name, entry in known.items()
    ]
    few = [name for name in found if name not in known]
    left = f"fewer than {distribution.LEAST} images on a side, so without a distance of their own: {', '.join(few)}"
    return {
        "value": float(np.mean([row["value"] for row in rows])),
        "ci": NOTHING,
        "ci_method": "none for the mean; by finding: " + next(iter(known.values()))["ci_method"],
        "n": sum(row["n"] for row in rows),
        "warnings": [
            *([left] if few else []),
            *dict.fromkeys(warning for entry in known.values() for warning in entry["warnings"]),
            *case.notes,
        ],
        "details": {"findings": rows},
    }


# -------------------------------------------------------------------------------- does it show what is asked


def labels_of(case: Case, findings: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """Labels of synthetic (N, F) and real (M, F) images; Unavailable where one side has none."""
    names = case.real.findings if findings is None else findings
    mine, theirs = case.synthetic.labels(names), case.real.labels(names)
    for flag, matrix in (("--real", theirs), ("--synthetic", mine)):
        if not (matrix == 1).any():
            raise Unavailable(
                f"{flag} has no labels; give a manifest with finding columns, or images that roentgen generated",
                bad_input=True,
            )
    return mine, theirs


def judged(case: Case, extractor: Extractor) -> tuple[adherence.Judged, adherence.Judged, list[str]]:
    """Synthetic and real images as the classifier sees them, on the findings that it and the real labels share."""
    findings = [name for name in extractor.findings if name in case.real.findings]
    mine, theirs = labels_of(case, findings)
    columns = [extractor.findings.index(name) for name in findings]

    def scores(name: str) -> Floats:
        return case.of(name, extractor, "probabilities")[:, columns].astype(np.float64)

    return (
        adherence.Judged(scores("synthetic"), mine, case.bootstrap_groups),
        adherence.Judged(scores("real"), theirs, case.real.patients),
        findings,
    )


def with_bounds(found: Found, ceiling: str) -> Found:
    """An adherence result with its ceiling and floor where the report looks for them, also by finding."""
    details = found["details"]
    real = {row["finding"]: row for row in details.get("real", {}).get("findings", [])}
    for row in details["findings"]:
        if other := real.get(row["finding"]):
            row["ceiling"] = {key: other[key] for key in ("value", "ci", "positives")}
    if common := details.get("on_common_findings"):
        words = f"{ceiling}, {len(common['findings'])} findings"
        details["ceiling"] = {**common["real"], "what": words}
    details["floor"] = {**details["shuffled"], "what": "prompts shuffled"}
    return found


def measure_auroc(case: Case, extractor: Extractor) -> Found:
    mine, theirs, findings = judged(case, extractor)
    found = with_bounds(
        adherence.adherence_auroc(mine, findings, real=theirs, resamples=case.resamples, seed=case.seed),
        "real images",
    )
    found["details"] |= {
        "chance": 0.5,
        "reliability": {"generated": reliability(mine), "real": reliability(theirs)},
    }
    found["warnings"] += case.notes
    scores = {f"score {name}": mine.scores[:, i] for i, name in enumerate(findings)}
    labels = {f"label {name}": mine.labels[:, i] for i, name in enumerate(findings)}
    return found | {"per_image": {SHOWN: shown(mine, theirs), **scores, **labels}}


def measure_f1(case: Case, extractor: Extractor) -> Found:
    if case.validation is None:
        raise Unavailable("thresholds are fitted on real validation images: --real needs rows in split val")
    mine, theirs, findings = judged(case, extractor)
    columns = [extractor.findings.index(name) for name in findings]
    scores = case.of(VALIDATION, extractor, "probabilities")[:, columns].astype(np.float64)
    thresholds = calibration.calibrate(scores, case.validation.labels(findings), findings)
    if not any(math.isfinite(row.threshold) for row in thresholds):
        raise Unavailable(f"{len(scores)} validation images have too few cases of every finding to fit a threshold")
    ceiling, warnings = adherence.ceiling(mine, theirs, seed=case.seed)
    found = with_bounds(
        adherence.adherence_f1(mine, findings, thresholds, real=ceiling, resamples=case.resamples, seed=case.seed),
        "real images of the same findings",
    )
    found["warnings"] += [*warnings, *case.notes]
    return found


def reliability(images: adherence.Judged) -> list[dict[str, Any]]:
    """Reliability curve over all findings together."""
    known = np.isfinite(images.labels)
    return calibration.reliability_curve(images.scores[known], images.labels[known])


def shown(mine: adherence.Judged, real: adherence.Judged) -> Floats:
    """How well each image shows the findings asked of it, (N,) in [0, 1]; NaN where none was asked or can be judged.

    The mean over its findings of the share of real images without the finding that score lower: what the image adds to
    the AUROC of generated cases against real controls.
    """
    total, count = np.zeros(len(mine.scores)), np.zeros(len(mine.scores))
    for column in range(mine.scores.shape[1]):
        controls = np.sort(real.scores[real.labels[:, column] == 0, column])
        rows = np.flatnonzero(mine.labels[:, column] == 1)
        if len(controls) and len(rows):
            total[rows] += np.searchsorted(controls, mine.scores[rows, column]) / len(controls)
            count[rows] += 1
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def measure_laterality(case: Case, extractor: Extractor) -> Found:
    """Left and right told apart by the classifier, over the findings that prompts give a side."""

    def see(images: ImageSet, name: str) -> tuple[Floats, NDArray[np.str_]]:
        both = case.of(name, extractor, "sides").astype(np.float64)
        sides = [
            images.table.get(finding + SIDE_SUFFIX, pd.Series("", index=images.table.index)).tolist()
            for finding in extractor.findings
        ]
        return both[..., laterality.LEFT] - both[..., laterality.RIGHT], np.array(sides).T

    leftness, sides = see(case.synthetic, "synthetic")
    real_leftness, real_sides = see(case.real, "real")
    if not np.isin(sides, ("left", "right")).any():
        raise Unavailable("no prompt gives a finding a side (left or right)")
    found = adherence.side_adherence(
        leftness,
        sides,
        extractor.findings,
        case.bootstrap_groups,
        real=(real_leftness, real_sides),
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]

    def renamed(row: Found) -> Found:
        return {"finding": row["finding"], "value": row["accuracy"], **{k: row[k] for k in ("ci", "n", "auroc")}}

    real_rows = {row["finding"]: renamed(row) for row in details.pop("real")}
    details["findings"] = [renamed(row) | {"ceiling": real_rows.get(row["finding"])} for row in details["findings"]]
    known = np.isin(real_sides, ("left", "right"))
    whole = laterality.side_accuracy(real_leftness[known], real_sides[known].tolist())
    details["ceiling"] = {"value": whole.accuracy, "ci": whole.ci, "n": whole.n, "what": "real images"}
    details["floor"] = {"value": 0.5, "what": "by chance"}
    return found


# --------------------------------------------------------------------------------------------- memorisation


def measure_nearest(case: Case, extractor: Extractor) -> Found:
    """Share of generated images nearer to training images than to as many unseen ones."""
    train = case.training()
    queries, seen, unseen = (case.of(name, extractor) for name in ("synthetic", "train", "real"))
    found = memorisation.nearness(
        queries,
        seen,
        unseen,
        groups=case.bootstrap_groups,
        train_groups=train.patients,
        test_groups=case.real.patients,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    _, to_unseen = memorisation.nearest(queries, unseen)
    _, real_to_train = memorisation.nearest(unseen, seen)
    distances = {
        "generated to training": details.pop("distance"),
        "generated to held-out real": to_unseen[:, 0],
        "held-out real to training": real_to_train[:, 0],
    }
    per_image = {
        "nearest training row": details.pop("nearest_train"),
        "distance to training": distances["generated to training"],
        "share nearer to training": details.pop("nearer"),
    }
    counts = memorisation.prompt_counts(case.synthetic.table["text"].tolist(), train.table["text"].tolist())
    details["by_frequency"] = memorisation.by_frequency(
        per_image["share nearer to training"],
        counts,
        groups=case.bootstrap_groups,
        resamples=case.resamples,
        seed=case.seed,
    )
    details["floor"] = {"value": 0.5, "what": "no difference"}
    details["histogram"] = histogram(distances)
    return {**found, "per_image": per_image, "details": details}


def histogram(values: Mapping[str, Floats], bins: int = 30) -> dict[str, Any]:
    """Common edges (bins + 1,) from the least to the greatest, and for each set the per cent of it in each bin."""
    every = np.concatenate(list(values.values()))
    edges = np.linspace(every.min(), every.max() if every.max() > every.min() else every.min() + 1, bins + 1)
    shares = {name: 100 * np.histogram(found, edges)[0] / len(found) for name, found in values.items()}
    return {"edges": edges, "shares": shares, "unit": "Euclidean distance of features"}


def measure_authenticity(case: Case, extractor: Extractor) -> Found:
    train = case.training()
    found = memorisation.authenticity(
        case.of("synthetic", extractor),
        case.of("train", extractor),
        unseen=case.of("real", extractor),
        groups=case.bootstrap_groups,
        train_groups=train.patients,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    per_image = {"authentic": details.pop("authentic")}
    details["ceiling"] = {**details.pop("unseen"), "what": "held-out real images"}
    return {**found, "per_image": per_image, "details": details}


def measure_near_duplicates(case: Case, extractor: Extractor) -> Found:
    """Near-duplicates in features; brighter and cropped copies are for ``measure_near_copies``."""
    return near_result(
        case,
        memorisation.near_duplicates(*(case.of(name, extractor) for name in ("synthetic", "train", "real"))),
    )


def measure_near_copies(case: Case, extractor: Extractor) -> Found:
    """Near-duplicates in standardised 32 x 32 pixels, against central crops of each training image."""

    def small(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return memorisation.standardise(memorisation.thumbnails(images))

    def points(images: ImageSet, make: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
        blocks = np.array_split(np.arange(len(images)), -(-len(images) // 256))
        return np.concatenate([make(pixels(images, block, COPY_PIXELS)) for block in blocks])

    return near_result(
        case,
        memorisation.near_duplicates(
            points(case.synthetic, small),
            points(case.training(), memorisation.train_views),
            points(case.real, small),
            views=len(memorisation.VIEWS),
        ),
    )


def by_views(case: Case) -> tuple[str, str]:
    return (
        "pixels",
        f"grey uint8; shorter side to at most {COPY_PIXELS} px, centre crop; box to 32 x 32, standardised; training "
        f"images as central crops of {', '.join(f'{keep:g}' for keep in memorisation.VIEWS)}",
    )


def near_result(case: Case, found: Found) -> Found:
    """What ``memorisation.near_duplicates`` found, with names and with what is expected of unseen images."""
    train = case.training()
    details = found["details"]
    names = [Path(image).name for image in case.synthetic.table["image"]]
    seen = [Path(image).name for image in train.table["image"]]
    for pair in details["pairs"]:
        pair |= {"image": names[pair["query"]], "train_image": seen[pair["train"]]}
    per_image = {"near-duplicate of a training image": details.pop("flagged").astype(int)}
    expected = {"value": details["expected"], "what": "held-out real images, by how the threshold is set"}
    details["floor"] = expected
    return {**found, "per_image": per_image, "details": details}


# ------------------------------------------------------------------------------------- retrieval and alignment


def measure_retrieval(case: Case, extractor: Extractor) -> Found:
    """Precision at 5, 10 and 50 of real images found for a generated one: same findings as it was asked for."""
    mine, theirs = labels_of(case)
    found = retrieval.retrieval(
        case.of("synthetic", extractor),
        case.of("real", extractor),
        retrieval.same_findings(mine, theirs),
        case.bootstrap_groups,
        resamples=case.resamples,
        seed=case.seed,
    )
    real = retrieval.retrieval(
        case.of("real", extractor),
        case.of("real", extractor),
        retrieval.same_findings(theirs, theirs),
        case.real.patients,
        gallery_groups=case.real.patients,
        resamples=case.resamples,
        seed=case.seed,
    )
    return retrieval_result(found, real, "real images, other patients found")


def retrieval_result(found: Found, real: Found, what: str) -> Found:
    """Rows by depth, each with the floor of shuffled labels and what real images reach."""
    if not found["details"]["at"]:
        raise Unavailable("no generated image has a real one of the same findings, or the real images are too few")
    reached = {entry["k"]: entry for entry in real["details"]["at"]}
    rows = []
    for entry in found["details"].pop("at"):
        row = {"name": f"at {entry['k']}", **entry}
        row["floor"] = {"value": entry["floor"], "ci": entry["floor_range"], "what": "labels shuffled"}
        if entry["k"] in reached:
            other = reached[entry["k"]]
            row["ceiling"] = {"value": other["value"], "ci": other["ci"], "n": other["n"], "what": what}
        rows.append(row)
    details = {**found["details"], "rows": rows, "floor": rows[0]["floor"], "ceiling": rows[0].get("ceiling")}
    return {**found, "details": details}


@lru_cache(maxsize=1)
def dual_encoder(name: str, device: str) -> Any:
    """The dual encoder ``name``; Unavailable where it is not there."""
    from roentgen.models.alignment import load_dual_encoder

    try:
        return load_dual_encoder(name, device=device)
    except UserError as error:
        raise Unavailable(str(error)) from None


def by_dual_encoder(case: Case) -> tuple[str, str]:
    encoder = dual_encoder(case.dual_encoder, case.device)
    return f"dual encoder {encoder.name}, sha256 {encoder.hash}", encoder.chain


def by_pixels(case: Case) -> tuple[str, str]:
    return "pixels", f"grey uint8; shorter side to at most {PIXELS} px by antialiased bicubic, centre crop; [0, 1]"


def by_describer(case: Case) -> tuple[str, str]:
    if case.image_to_text is None:
        raise Unavailable("no image-to-text model was given (--image-to-text)")
    return str(portable(f"image-to-text {case.image_to_text}")), "the model's own image processor"


def texts_of(images: ImageSet, flag: str) -> list[str]:
    texts = [str(text) for text in images.table["text"]]
    if not any(texts):
        raise Unavailable(f"{flag} has no texts; give a manifest with a text column", bad_input=True)
    return texts


def vectors(
    case: Case, images: ImageSet, flag: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Image and text vectors (n, D) of the dual encoder for the rows (n,) that have a text."""
    encoder = dual_encoder(case.dual_encoder, case.device)
    texts = texts_of(images, flag)
    rows = np.array([row for row, text in enumerate(texts) if text])
    judge = next((extractor for extractor in case.extractors if extractor.name == "classifier"), None)
    if judge is not None and isinstance(encoder, ShippedEncoder):
        of_images = encoder.from_features(case.of(images.name, judge)[rows])
    else:
        paths = images.paths
        of_images = encoder.images([read_image(paths[row]) for row in rows])
    return of_images, encoder.texts([texts[row] for row in rows]), rows


def measure_alignment(case: Case, extractor: Extractor) -> Found:
    """Mean cosine of images and prompts, beside other prompts and real pairs."""
    images, texts, rows = vectors(case, case.synthetic, "--synthetic")
    real_images, real_texts, real_rows = vectors(case, case.real, "--real")
    groups, patients = case.bootstrap_groups, case.real.patients
    said = [str(text) for text in case.synthetic.table["text"].iloc[rows]]
    found = alignment.alignment(
        images,
        texts,
        [groups[row] for row in rows],
        same=np.array([[a == b for b in said] for a in said]),
        real=(real_images, real_texts, [patients[row] for row in real_rows]),
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    details["floor"] = {**details["floor"], "what": "other prompts of the set"}
    details["ceiling"] = {**details.pop("real"), "what": "real images and their texts"}
    cosine = np.full(len(case.synthetic), np.nan)
    cosine[rows] = (images * texts).sum(axis=1)
    return {**found, "per_image": {"cosine of image and prompt": cosine}, "details": details}


def measure_text_retrieval(case: Case, extractor: Extractor) -> Found:
    """Precision at 5, 10 and 50 of real texts found for a generated image."""
    labels_of(case)
    images, _, rows = vectors(case, case.synthetic, "--synthetic")
    real_images, real_texts, real_rows = vectors(case, case.real, "--real")
    mine, theirs = labels_of(case)
    groups, patients = case.bootstrap_groups, case.real.patients
    own = [patients[row] for row in real_rows]
    found = retrieval.retrieval(
        images,
        real_texts,
        retrieval.same_findings(mine[rows], theirs[real_rows]),
        [groups[row] for row in rows],
        resamples=case.resamples,
        seed=case.seed,
    )
    real = retrieval.retrieval(
        real_images,
        real_texts,
        retrieval.same_findings(theirs[real_rows], theirs[real_rows]),
        own,
        gallery_groups=own,
        resamples=case.resamples,
        seed=case.seed,
    )
    return retrieval_result(found, real, "real images, texts of other patients found")


# ----------------------------------------------------------------------------------------------- diversity


def prompt_keys(images: ImageSet) -> list[str | None]:
    """The prompt of each image, None where there is none."""
    return [str(text) or None for text in images.table["text"]]


def kind_keys(images: ImageSet) -> list[Hashable | None]:
    """Findings and view of each real image, which stand for its prompt; None where nothing is known."""
    labels = [labels_from_row(row) for row in images.table.to_dict("records")]
    return [pairing.kind_of(one) if one.findings else None for one in labels]


def common_size(case: Case) -> int:
    """Side at which generated and real images are compared by pixels: theirs, at most ``PIXELS``."""
    sides = [min(look(path)[0]) for path in case.synthetic.paths[:8]]
    size = min(PIXELS, *sides)
    if size < ms_ssim.MIN_SIDE:
        raise Unavailable(f"MS-SSIM needs images of at least {ms_ssim.MIN_SIDE} pixels, these have {size}")
    return size


def measure_ms_ssim_within(case: Case, extractor: Extractor) -> Found:
    """MS-SSIM of four images a prompt, beside four real images of other people with the same findings and view."""
    size = common_size(case)
    sets = []
    for images, keys, apart in (
        (case.synthetic, prompt_keys(case.synthetic), None),
        (case.real, kind_keys(case.real), case.real.patients),
    ):
        chosen = diversity.groups_of(keys, apart=apart, most=GROUPS, seed=case.seed).ravel()
        if not len(chosen) and images is case.synthetic:
            raise Unavailable(f"no prompt has {diversity.PER_PROMPT} images; generate them with --num-images 4")
        sets.append(
            (pixels(images, chosen, size), [keys[row] for row in chosen], [images.patients[row] for row in chosen])
        )
    (mine, prompts, _), (real, kinds, patients) = sets
    found = diversity.ms_ssim_diversity(
        mine,
        prompts,
        real=(real, kinds, patients) if len(real) else None,
        pairs=1,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = {"size": size, "sd_over_prompts": found["details"]["within"]["sd"]}
    if len(real):
        details["ceiling"] = {**found["details"]["real_within"], "what": "real images of the same findings and view"}
    return {**found, "details": details}


def measure_ms_ssim_across(case: Case, extractor: Extractor) -> Found:
    """MS-SSIM of pairs of different prompts, beside pairs of real images of different patients."""
    size = common_size(case)

    def likeness(images: ImageSet, keys: Sequence[Hashable]) -> Found:
        pairs = diversity.pairs_across(keys, pairs=PAIRS, seed=case.seed)
        if not len(pairs):
            raise Unavailable("all images have the same prompt")
        rows, index = np.unique(pairs, return_inverse=True)
        values = ms_ssim.pair_ms_ssim(pixels(images, rows, size), index.reshape(-1, 2))
        # In the bootstrap over keys a pair counts as often as both of its keys were drawn together.
        weights = cluster_weights(keys, case.resamples, case.seed)
        both = weights[:, pairs[:, 0]] * weights[:, pairs[:, 1]]
        total = both.sum(axis=1)
        draws = np.divide(both @ values, total, out=np.full(len(total), np.nan), where=total > 0)
        return {"value": float(values.mean()), "ci": percentile_interval(draws), "n": len(values)}

    keys = [key or path for key, path in zip(prompt_keys(case.synthetic), case.synthetic.table["image"], strict=True)]
    found = likeness(case.synthetic, keys)
    return {
        **found,
        "ci_method": f"95 % percentile, bootstrap over prompts, {case.resamples} resamples; n counts pairs",
        "warnings": one_seed(case),
        "details": {
            "size": size,
            "ceiling": {**likeness(case.real, case.real.patients), "what": "real images of different patients"},
        },
    }


def measure_feature_within(case: Case, extractor: Extractor) -> Found:
    """Distance in feature space among the images of a prompt, standardised by real images: what LPIPS stands for."""
    keys, kinds = prompt_keys(case.synthetic), kind_keys(case.real)
    if not len(diversity.groups_of(keys, seed=case.seed)):
        raise Unavailable(f"no prompt has {diversity.PER_PROMPT} images; generate them with --num-images 4")
    real = case.of("real", extractor)
    enough = len(diversity.groups_of(kinds, apart=case.real.patients, seed=case.seed)) > 0
    found = diversity.feature_diversity(
        case.of("synthetic", extractor),
        keys,
        real,
        real=(real, kinds, case.real.patients) if enough else None,
        resamples=case.resamples,
        seed=case.seed,
    )
    details = found["details"]
    if enough:
        details["ceiling"] = {**details.pop("real_within"), "what": "real images of the same findings and view"}
    return found


def measure_repeats(case: Case, extractor: Extractor) -> Found:
    """Share of generated images that have a near-duplicate among the generated ones."""
    hashes = [
        duplicates.difference_hash([read_image(path) for path in images.paths])
        for images in (case.synthetic, case.real)
    ]
    found = duplicates.duplicates_within(
        case.of("synthetic", extractor),
        hashes[0],
        case.of("real", extractor),
        hashes[1],
        real_groups=case.real.patients,
    )
    real = duplicates.duplicates_within(
        case.of("real", extractor),
        hashes[1],
        case.of("real", extractor),
        hashes[1],
        groups=case.real.patients,
        real_groups=case.real.patients,
    )
    found["details"]["floor"] = {"value": real["value"], "n": real["n"], "what": "real images among themselves"}
    found["warnings"] += one_seed(case)
    names = [Path(image).name for image in case.synthetic.table["image"]]
    for pair in found["details"]["pairs"]:
        pair |= {"first_image": names[pair["first"]], "second_image": names[pair["second"]]}
    return found


def measure_text_scores(case: Case, extractor: Extractor) -> Found:
    """An image-to-text model's words for each image against the prompt, beside its words for real images."""
    from roentgen.metrics.text_scores import Described, load_image_to_text, text_scores

    if case.image_to_text is None:
        raise Unavailable("no image-to-text model was given (--image-to-text)")
    describe = load_image_to_text(case.image_to_text, device=case.device)

    def described(images: ImageSet, groups: Sequence[str], flag: str) -> Described:
        texts = texts_of(images, flag)
        rows = [row for row, text in enumerate(texts) if text]
        said = describe([read_image(images.paths[row]) for row in rows])
        return Described(said, [texts[row] for row in rows], [groups[row] for row in rows])

    mine = described(case.synthetic, case.bootstrap_groups, "--synthetic")
    theirs = described(case.real, case.real.patients, "--real")
    found = text_scores(mine, real=theirs, resamples=case.resamples, seed=case.seed)
    rows, warnings = [], []
    for name, entry in found.items():
        warnings += entry["warnings"]
        if math.isfinite(entry["value"]):
            row = {"name": name, **{key: entry[key] for key in ("value", "ci", "n")}}
            row["floor"] = {**entry["details"]["floor"], "what": "prompts shuffled"}
            row["ceiling"] = {**entry["details"]["real"], "what": "real images and their texts"}
            rows.append(row)
    first = next(iter(found.values()))
    return {
        **first,
        "warnings": list(dict.fromkeys(warnings)),
        "details": {"rows": rows, "floor": rows[0]["floor"], "ceiling": rows[0]["ceiling"]},
    }


def measure_reidentification(case: Case, extractor: Extractor) -> Found:
    raise Unavailable(
        "needs a siamese model, given as a Python function to roentgen.metrics.reidentification.reidentification"
    )


MEASURES: dict[str, Measure] = {
    "fid": Measure(
        "Fréchet distance (FID)", "quick", "lower", "", measure_distribution("fid", "floor"), each_extractor=True
    ),
    "kid": Measure(
        "Kernel distance (KID)", "quick", "lower", "", measure_distribution("kid", "floor"), each_extractor=True
    ),
    "precision": Measure(
        "Precision", "quick", "higher", "share", measure_distribution("precision", "ceiling"), each_extractor=True
    ),
    "recall": Measure(
        "Recall", "quick", "higher", "share", measure_distribution("recall", "ceiling"), each_extractor=True
    ),
    "density": Measure(
        "Density", "quick", "near 1", "", measure_distribution("density", "ceiling"), each_extractor=True
    ),
    "coverage": Measure(
        "Coverage", "quick", "higher", "share", measure_distribution("coverage", "ceiling"), each_extractor=True
    ),
    "fd_infinity": Measure(
        "FD-infinity", "standard", "lower", "", measure_distribution("fd_infinity", "floor"), each_extractor=True
    ),
    "fid_by_finding": Measure(
        "Fréchet distance by finding, mean", "standard", "lower", "", measure_fid_by_finding, each_extractor=True
    ),
    "auroc": Measure(
        "AUROC, macro over findings",
        "quick",
        "higher",
        "",
        measure_auroc,
        output="probabilities",
        each_extractor=True,
    ),
    "f1": Measure(
        "F1 at calibrated thresholds, macro",
        "standard",
        "higher",
        "",
        measure_f1,
        reads=(VALIDATION,),
        output="probabilities",
        each_extractor=True,
    ),
    "laterality": Measure("Left and right told apart", "quick", "higher", "share", measure_laterality, output="sides"),
    "retrieval": Measure(
        "Image retrieval, precision", "standard", "higher", "share", measure_retrieval, each_extractor=True
    ),
    "text_retrieval": Measure(
        "Text retrieval, precision",
        "standard",
        "higher",
        "share",
        measure_text_retrieval,
        output="",
        judge=by_dual_encoder,
    ),
    "alignment": Measure(
        "Image-text alignment, cosine",
        "standard",
        "higher",
        "cosine",
        measure_alignment,
        output="",
        judge=by_dual_encoder,
    ),
    "ms_ssim_within": Measure(
        "MS-SSIM within a prompt", "quick", "as real", "", measure_ms_ssim_within, output="", judge=by_pixels
    ),
    "ms_ssim_across": Measure(
        "MS-SSIM across prompts", "quick", "as real", "", measure_ms_ssim_across, output="", judge=by_pixels
    ),
    "feature_within": Measure(
        "Feature distance within a prompt", "standard", "as real", "", measure_feature_within, each_extractor=True
    ),
    "repeats": Measure("Repeats among generated images", "standard", "lower", "share", measure_repeats),
    "nearest": Measure(
        "Nearer to training than to held-out",
        "quick",
        "near 0.5",
        "share",
        measure_nearest,
        each_extractor=True,
        reads=("train",),
    ),
    "authenticity": Measure(
        "Authentic (AuthPct)",
        "standard",
        "higher",
        "share",
        measure_authenticity,
        each_extractor=True,
        reads=("train",),
    ),
    "near_duplicates": Measure(
        "Near-duplicates of training images",
        "standard",
        "lower",
        "share",
        measure_near_duplicates,
        each_extractor=True,
        reads=("train",),
    ),
    "near_copies": Measure(
        "Near-copies of training images",
        "standard",
        "lower",
        "share",
        measure_near_copies,
        output="",
        judge=by_views,
        reads=("train",),
    ),
    "text_scores": Measure(
        "Described by an image-to-text model,", "full", "higher", "", measure_text_scores, output="", judge=by_describer
    ),
    "reidentification": Measure(
        "Re-identification", "full", "near floor", "", measure_reidentification, reads=("train",)
    ),
}
"""The measures in the order of the report."""
