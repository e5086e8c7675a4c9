"""Measure edits of real X-rays: does the finding come or go, and does everything else stay?

    python eval/edit.py --manifest MANIFEST --split val --choose --strengths 0.5 0.7 --scales 5 8
    python eval/edit.py --manifest MANIFEST --strength 0.7 --guidance 5
    python eval/edit.py --table docs/edit.md

Strength, guidance and way (``TRIED``) are chosen on `val` images (``--choose``); the figures are of `test` images.
Every task edits real images: a finding is added where the label says that there is none, or removed where the label
says that there is one. Beside the edits stand the same edits with one part left out, and images made anew from the
same text.
Writes ``OUT/edit.json`` (``OUT/edit-choice.json`` with ``--choose``) and ``OUT/edit.png``, one example a task.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen import errors, images
from roentgen.cache import kept
from roentgen.config import (
    BatchSize,
    Count,
    Filled,
    Guidance,
    PathOrName,
    Range,
    Seed,
    Steps,
    parse_settings,
    seed_of_32_bits,
)
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.experiments.edits import SIZE, TASKS, Case, Judged, Task, mean_row
from roentgen.files import file_hash, require_writable, sha256
from roentgen.generators.base import Editing
from roentgen.generators.edit import Wish, apply
from roentgen.generators.generate import generate, load_model
from roentgen.metrics.report.tables import figure, replace_between_markers, table
from roentgen.metrics.result import Context, read_result, shown, write_result
from roentgen.models.classifier import SHIPPED, load_classifier
from roentgen.models.dual_encoder import load_shipped
from roentgen.provenance import portable

Strength = Annotated[float, Range(0, 1, above=True)]


WAYS = {
    "edit": {},
    "without a region": {"whole": True},
    "without inversion": {"invert": False},
    "drawn anew": {"detail": False},
}
"""The edit, and what is changed of it."""
ANEW = "made from the text alone"
TURNS = 4
"""Edits from random noise that are averaged, or of which one is taken."""


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path | None, "manifest with `val` and `test` images"] = None
    split: Annotated[Literal["val", "test"], "of the images that are edited"] = "test"
    choose: Annotated[bool, "compare strengths, guidance scales and ways on `val`"] = False
    strengths: Annotated[tuple[Strength, ...], Filled(), "strengths to compare"] = (0.5, 0.7, 0.9)
    scales: Annotated[tuple[Guidance, ...], Filled(), "guidance scales to compare"] = (3.0, 5.0, 8.0)
    strength: Annotated[Strength, "strength of the edits"] = 0.7
    guidance: Annotated[Guidance, "guidance scale of the edits"] = 5.0
    steps: Annotated[Steps | None, "denoising steps of the whole way (default: the model's)"] = None
    ablations: Annotated[bool, "edit also with one part left out"] = True
    images: Annotated[Count, "images a task at most"] = 24
    pool: Annotated[Count, "real images among which the nearest is sought"] = 500
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    classifier: Annotated[Path, "the judge"] = SHIPPED
    out: Annotated[Path, "folder of the results"] = Path("eval/results")
    work: Annotated[Path, "folder of edited images, which are kept"] = Path("out/edits")
    seed: Annotated[Seed, "seed of noise and of the choice of images"] = 0
    batch_size: Annotated[BatchSize, "images edited at a time"] = 8
    table: Annotated[Path | None, "only put the results into this document"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/edit.py", about=__doc__)
    if s.table is not None:
        with shown(s.out):
            lines = markdown(read_result(s.out / "edit.json"))
            chosen = choice(read_result(s.out / "edit-choice.json"))
        replace_between_markers(s.table, "edit", lines)
        replace_between_markers(s.table, "edit-choice", chosen)
        return 0
    if s.manifest is None:
        raise UserError("--manifest is needed: a manifest with val and test images")
    if s.choose and s.split != "val":
        raise UserError("--choose: settings are chosen on val, never on test; add --split val")
    require_writable(s.out, "--out")
    model, judge = load_model(s.model, dtype="float32"), load_classifier(s.classifier)
    real = read_manifest(s.manifest, splits=[s.split], allow_empty_text=True)
    cases = [case_of(real, task, s) for task in TASKS]
    chosen = pd.concat([case.rows for case in cases]).drop_duplicates("image")
    others = real[~real["image"].isin(chosen["image"])].sample(frac=1, random_state=seed_of_32_bits(s.seed))
    around = pd.concat([chosen, others.head(max(0, s.pool - len(chosen)))])
    pool = load_pixels(around["image"].tolist(), size=SIZE, cache=s.work / "cache").pixels
    judged = Judged(judge, np.asarray(pool), around["image"].tolist(), s.seed)
    context = Context.of(
        "eval/edit.py", s, inputs={"manifest": s.manifest.name},
        extractor=f"roentgen classifier {s.classifier.name}, sha256 {file_hash(s.classifier)}",
        resize=f"shorter side to {SIZE} px, centre crop; then the classifier's own size",
        model={"name": portable(model.info.name), "hash": model.info.hash},
    )  # fmt: skip
    if s.choose:
        return choose(s, model, cases, judged, context)
    rows, strips = [], []
    ways = WAYS if s.ablations else {"edit": WAYS["edit"]}
    for way, changes in ways.items():
        for case in cases:
            after, outside = edited(model, case, s, **changes)
            rows.append({"way": way, "task": case.task.title, **judged.row(case, after), "outside": int(outside.max())})
            print(way, case.task.title, rows[-1]["gain"], flush=True)
            if way == "edit":
                strips.append(strip(case, after, judged))
    for case in cases:
        rows.append({"way": ANEW, "task": case.task.title, **judged.row(case, anew(model, case, s)), "outside": None})
    means = [mean_row(rows, way) for way in (*ways, ANEW)]
    write_result(
        s.out / "edit.json", metric="change of the target finding's probability by an edit", goal="up",
        value=means[0]["gain"], ci_method="see details", n=means[0]["n"],
        context=context, details={"rows": rows, "means": means},
    )  # fmt: skip
    marks = {"edited": "true"}
    images.save_image(np.concatenate(strips), s.out / "edit.png", format="png", provenance=marks, overwrite=True)
    return 0


def case_of(real: pd.DataFrame, task: Task, s: Settings) -> Case:
    """Images of a task: without the finding and without any other (added), or with it (removed)."""
    finding = pd.to_numeric(real[task.finding])
    fitting = real[finding == 1] if task.remove else real[(finding == 0) & (pd.to_numeric(real["No Finding"]) == 1)]
    rows = fitting.drop_duplicates("patient_id").sample(frac=1, random_state=seed_of_32_bits(s.seed)).head(s.images)
    if rows.empty:
        raise UserError(f"--manifest {s.manifest}: no {s.split} image for the task {task.title!r}")
    sides = [("left", "right")[number % 2] for number in range(len(rows))]
    texts = [task.text.format(side=side) for side in sides]
    return Case(task, rows, [images.read_image(path) for path in rows["image"]], texts, sides)


def edited(
    model: Any,
    case: Case,
    s: Settings,
    *,
    whole: bool = False,
    invert: bool = True,
    detail: bool = True,
    opposite: bool = False,
    turn: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Edits of a case at SIZE, (N, SIZE, SIZE), and the largest difference outside of each region, in grey levels.

    ``turn`` counts edits of the same image from other noise.
    """
    editing = Editing(s.strength, invert, detail)
    away = case.task.remove or (case.task.opposite if opposite else "")
    sampling = model.sampling(
        steps=s.steps, guidance=s.guidance, sampler="ddim" if invert else None, negative_prompt=away or None
    )
    made, outside = [], []
    for start in range(0, len(case.before), s.batch_size):
        numbers = range(start, min(start + s.batch_size, len(case.before)))
        seeds = [s.seed + n + turn * s.images for n in numbers]
        wishes = [
            Wish(case.before[n], case.texts[n], seed, case.region(n, whole))
            for n, seed in zip(numbers, seeds, strict=True)
        ]

        def make(wishes: list[Wish] = wishes) -> dict[str, NDArray[Any]]:
            done = list(apply(model, wishes, sampling, editing))
            gaps = [
                np.abs(after.astype(int) - wish.before)[~wish.region].max(initial=0)
                for after, wish in zip(done, wishes, strict=True)
            ]
            return {"made": np.stack([images.resize_center_crop(one, SIZE) for one in done]), "outside": np.array(gaps)}

        what = [part for w in wishes for part in (w.before, w.region, f"{w.text} {w.seed} {w.before.shape}")]
        key = sha256(model.info.hash, str(sampling), str(editing), *what)
        arrays = kept(s.work / "made", "edits", key, make)
        made.append(np.asarray(arrays["made"]))
        outside.append(np.asarray(arrays["outside"]))
    return np.concatenate(made), np.concatenate(outside)


def turns(model: Any, case: Case, s: Settings) -> NDArray[np.uint8]:
    """Edits of a case from the noise of TURNS seeds, (TURNS, N, SIZE, SIZE)."""
    return np.stack([edited(model, case, s, invert=False, turn=turn)[0] for turn in range(TURNS)])


def best_of_turns(model: Any, case: Case, s: Settings) -> NDArray[np.uint8]:
    """Of each image's TURNS edits the one that the dual encoder finds nearest to its text.

    That encoder reads the judge's own features: it is no independent choice, and its gain is an upper bound.
    """
    made, encoder = turns(model, case, s), load_shipped()
    texts = encoder.texts(case.texts)
    near = [(encoder.images(list(one)) * texts).sum(1) for one in made]
    return np.asarray(made[np.argmax(near, axis=0), np.arange(len(texts))])


TRIED: dict[str, Callable[[Any, Case, Settings], NDArray[np.uint8]]] = {
    "as `roentgen edit` does": lambda model, case, s: edited(model, case, s)[0],
    "away from the opposite": lambda model, case, s: edited(model, case, s, opposite=True)[0],
    "from random noise": lambda model, case, s: edited(model, case, s, invert=False)[0],
    f"mean of {TURNS} from random noise": lambda model, case, s: turns(model, case, s).mean(0).round().astype(np.uint8),
    f"best of {TURNS} from random noise": best_of_turns,
}
"""Ways to edit that ``--choose`` compares."""


def anew(model: Any, case: Case, s: Settings) -> NDArray[np.uint8]:
    """Images of the same texts and seeds by the model's own settings, from nothing."""
    seeds = [s.seed + number for number in range(len(case.texts))]
    key = sha256(model.info.hash, *(f"{text} {seed} {s.steps};" for text, seed in zip(case.texts, seeds, strict=True)))

    def make() -> dict[str, NDArray[Any]]:
        done = generate(model, case.texts, seeds=seeds, batch_size=s.batch_size, steps=s.steps)
        return {"made": np.stack([images.resize_center_crop(sample.image, SIZE) for sample in done])}

    return np.asarray(kept(s.work / "made", "anew", key, make)["made"])


def choose(s: Settings, model: Any, cases: Sequence[Case], judged: Judged, context: Context) -> int:
    """Write the figures of every strength, scale and way; the best has the largest gain less change of the others."""
    points = []
    for strength, scale, (way, make) in product(s.strengths, s.scales, TRIED.items()):
        here = dataclasses.replace(s, strength=strength, guidance=scale)
        rows = [{"way": way, "outside": 0, **judged.row(case, make(model, case, here))} for case in cases]
        points.append({"strength": strength, "guidance": scale, **mean_row(rows, way)})
        print(points[-1], flush=True)
    best = max(points, key=lambda point: (point["same_by_features"] >= 0.9, point["gain"] - point["others"]))
    write_result(
        s.out / "edit-choice.json", metric="change of the target finding less change of the others, on val", goal="up",
        value=best["gain"] - best["others"], ci_method="none", n=best["n"],
        context=context, warnings=["chosen on val among the points with an identity of 0.9 or more, if there are any"],
        details={"best": {key: best[key] for key in ("way", "strength", "guidance")}, "points": points},
    )  # fmt: skip
    return 0


def strip(case: Case, after: NDArray[np.uint8], judged: Judged) -> NDArray[np.uint8]:
    """Before, after and difference of three images of a task: at the quartiles of the gain, not the best ones."""
    target = judged.judge.findings.index(case.task.finding)
    source = [judged.names.index(name) for name in case.rows["image"]]
    gain = case.task.sign * (judged.judge.predict(after)[:, target] - judged.before[source, target])
    order = np.argsort(gain)
    cells, captions = [], []
    for share in (0.25, 0.5, 0.75):
        number = int(order[int(share * (len(order) - 1))])
        before = images.resize_center_crop(case.before[number], SIZE)
        change = np.clip(after[number].astype(int) - before + 128, 0, 255).astype(np.uint8)
        cells += [before, after[number], change]
        captions += [f"{case.task.title}: before", f"after ({case.texts[number]})", "difference"]
    return images.make_grid(cells, captions, columns=9)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/edit.md."""
    details = result["details"]
    header = ["edit", "n", "target before", "after", "change towards the text", "change of the others"]
    header += ["nearest is the source", "on the side asked for", "largest change outside"]
    body = []
    for row in details["rows"]:
        if row["way"] not in ("edit", ANEW):
            continue
        name = row["task"] if row["way"] == "edit" else f"{row['task']}, {ANEW}"
        outside = "–" if row["outside"] is None else str(row["outside"])
        body.append(
            [name, str(row["n"]), f"{row['before']:.2f}", f"{row['after']:.2f}", figure(row["gain"]),
             figure(row["others"]), figure(row["same_by_features"]), figure(row["side"]), outside]
        )  # fmt: skip
    means = [
        [m["way"], *(f"{m[key]:.2f}" for key in ("gain", "others", "same_by_features", "same_by_pixels", "side")),
         "–" if m["outside"] is None else str(m["outside"])]
        for m in details["means"]
    ]  # fmt: skip
    short = ["mean of the five tasks", "change towards the text", "change of the others", "nearest by features"]
    short += ["nearest by pixels", "on the side asked for", "largest change outside"]
    said = f"{result['model']['name']} ({result['model']['hash']}), `{result['command']}`; 95 % intervals by patient."
    return table(short, means, table(header, body), said)


def choice(result: Mapping[str, Any]) -> str:
    """The table of ways, strengths and scales."""
    header = ["way", "strength", "guidance", "change towards the text", "change of the others", "nearest by features"]
    keys = ("gain", "others", "same_by_features")
    rows = [
        [p["way"], f"{p['strength']:g}", f"{p['guidance']:g}", *(f"{p[key]:.3f}" for key in keys)]
        for p in result["details"]["points"]
    ]
    return table(header, rows, f"n = {result['n']} a row, `{result['command']}`.")


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/edit.py"))
