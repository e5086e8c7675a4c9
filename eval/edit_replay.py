"""Measure edits of generated images: by inversion, and by going their way again from their seed (``--replay``).

    python eval/edit_replay.py --manifest MANIFEST
    python eval/edit_replay.py --table docs/edit.md

The tasks are those of eval/edit.py. A finding is added to images of normal chests, or removed from images of the
finding. The judge is the network of the reporter that ships. Identity is whether the nearest among all sources and
``pool`` real images is still the source. Writes ``OUT/edit-replay.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen import errors
from roentgen.config import Count, Filled, Guidance, PathOrName, Range, Seed, parse_settings
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.experiments.edits import SIZE, TASKS, Case, Judged, ReportJudge, Task, mean_row
from roentgen.files import file_hash, require_writable
from roentgen.generators.base import Editing, Origin
from roentgen.generators.edit import Wish, apply
from roentgen.generators.generate import generate, load_model
from roentgen.metrics.report.tables import replace_between_markers, table
from roentgen.metrics.result import Context, read_result, shown, write_result
from roentgen.prompts.vocabulary import NORMAL_NOUNS
from roentgen.provenance import portable

WAYS = {"by inversion": Editing(), "by replay": Editing(replay=True)}


@dataclass(frozen=True)
class Settings:
    """Settings of the measurement."""

    manifest: Annotated[Path | None, "manifest with real images, among which the nearest is sought, too"] = None
    strengths: Annotated[tuple[Annotated[float, Range(0, 1, above=True)], ...], Filled(), "strengths"] = (0.5, 0.7)
    guidance: Annotated[Guidance, "guidance scale of the edits"] = 5.0
    images: Annotated[Count, "images a task"] = 6
    pool: Annotated[Count, "real images among which the nearest is sought"] = 470
    model: Annotated[PathOrName, "name, folder or hub id"] = "mini"
    out: Annotated[Path, "folder of the results"] = Path("eval/results")
    work: Annotated[Path, "folder of the cache"] = Path("out/edits")
    seed: Annotated[Seed, "first seed of the images"] = 5000
    table: Annotated[Path | None, "only put the results into this document"] = None


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="eval/edit_replay.py", about=__doc__)
    if s.table is not None:
        with shown(s.out):
            lines = markdown(read_result(s.out / "edit-replay.json"))
        replace_between_markers(s.table, "edit-replay", lines)
        return 0
    if s.manifest is None:
        raise UserError("--manifest is needed: a manifest with val images")
    require_writable(s.out, "--out")
    model, judge = load_model(s.model, dtype="float32"), ReportJudge()
    made = [case_of(model, task, s.seed + number * s.images, s.images) for number, task in enumerate(TASKS)]
    real = read_manifest(s.manifest, splits=["val"], allow_empty_text=True).head(s.pool)["image"].tolist()
    pool = np.asarray(load_pixels(real, size=SIZE, cache=s.work / "cache").pixels)
    own = np.stack([image for case, _, _ in made for image in case.before])
    names = [name for case, _, _ in made for name in case.rows["image"]]
    judged = Judged(judge, np.concatenate([own, pool]), names + real, s.seed)
    context = Context.of(
        "eval/edit_replay.py", s, inputs={"manifest": s.manifest.name},
        extractor=f"network of {judge.folder.name}, sha256 {file_hash(judge.folder)}",
        resize=f"{SIZE} px; then the network's own size",
        model={"name": portable(model.info.name), "hash": model.info.hash},
    )  # fmt: skip
    rows = []
    for (way, editing), strength in product(WAYS.items(), s.strengths):
        for case, origin, seeds in made:
            after, outside = edited(model, case, origin, seeds, replace(editing, strength=strength), s.guidance)
            name = f"{way}, strength {strength:g}"
            rows.append({"way": name, "task": case.task.title, **judged.row(case, after), "outside": outside})
            print(name, case.task.title, rows[-1]["gain"], flush=True)
    means = [mean_row(rows, way) for way in dict.fromkeys(row["way"] for row in rows)]
    write_result(
        s.out / "edit-replay.json", metric="change of the target finding's probability by an edit of a generated image",
        goal="up", value=means[-1]["gain"], ci_method="see details", n=means[-1]["n"],
        context=context, details={"rows": rows, "means": means},
    )  # fmt: skip
    return 0


def case_of(model: Any, task: Task, seed: int, count: int) -> tuple[Case, Origin, list[int]]:
    """Generated images of a task, how they were made, and their seeds."""
    sides = [("left", "right")[number % 2] for number in range(count)]
    plain = task.remove if task.remove == "cardiomegaly" else "{side} " + task.remove
    sources = [plain.format(side=side) if task.remove else NORMAL_NOUNS[0] for side in sides]
    seeds = [seed + number for number in range(count)]
    before = [sample.image for sample in generate(model, sources, seeds=seeds, batch_size=count)]
    rows = pd.DataFrame({"image": [f"seed {one}" for one in seeds], "patient_id": seeds})
    case = Case(task, rows, before, [task.text.format(side=side) for side in sides], sides)
    return case, Origin(sources, model.sampling()), seeds


def edited(
    model: Any, case: Case, origin: Origin, seeds: Sequence[int], editing: Editing, guidance: float
) -> tuple[NDArray[np.uint8], int]:
    """Edits (N, SIZE, SIZE) of a case, and the largest difference outside of the regions, in grey levels."""
    sampling = model.sampling(
        guidance=guidance, negative_prompt=case.task.remove or None,
        sampler=origin.sampling.sampler if editing.replay else "ddim",
    )  # fmt: skip
    wishes = [
        Wish(image, text, seed, case.region(number, False))
        for number, (image, text, seed) in enumerate(zip(case.before, case.texts, seeds, strict=True))
    ]
    after = np.stack(list(apply(model, wishes, sampling, editing, origin=origin if editing.replay else None)))
    gaps = [np.abs(new.astype(int) - wish.before)[~wish.region] for new, wish in zip(after, wishes, strict=True)]
    return after, int(max(gap.max(initial=0) for gap in gaps))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of docs/edit.md."""
    names = {"gain": "change towards the text", "others": "change of the others"}
    names |= {"same_by_features": "nearest by features", "same_by_pixels": "nearest by pixels"}
    header = ["edit of generated images", *names.values(), "largest change outside"]
    means = [
        [mean["way"], *(f"{mean[key]:.3f}" for key in names), str(mean["outside"])]
        for mean in result["details"]["means"]
    ]
    tasks = list(dict.fromkeys(row["task"] for row in result["details"]["rows"]))
    gains = [
        [mean["way"], *(
            f"{row['gain']['value']:.3f}" for row in result["details"]["rows"] if row["way"] == mean["way"]
        )]
        for mean in result["details"]["means"]
    ]  # fmt: skip
    said = f"{result['model']['name']} ({result['model']['hash']}), n = {result['n']} a row, `{result['command']}`."
    return table(header, means, table(["change towards the text", *tasks], gains), said)


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/edit_replay.py"))
