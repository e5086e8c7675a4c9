"""What measures read of the image sets: partners, pixels, texts, prompts, labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.images import read_image, resize_center_crop
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import EvaluationInputs, Unavailable
from roentgen.metrics.statistics import Floats
from roentgen.prompts import FINDINGS

PIXELS = 256
"""Shorter side at which images are compared pixel by pixel."""


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
    """Grey images uint8 (n, size, size) of these rows, n of at least 1: shorter side resized, centre cropped."""
    paths = images.paths
    if not len(rows):
        raise Unavailable(f"no image of --{images.name} can be compared by pixels")
    return np.stack([resize_center_crop(read_image(paths[row]), size) for row in rows])


BY_PIXELS = ("pixels", f"grey uint8; shorter side to at most {PIXELS} px by antialiased bicubic, centre crop; [0, 1]")


def texts_of(images: ImageSet) -> list[str]:
    texts = [str(text) for text in images.table["text"]]
    if not any(texts):
        raise Unavailable(f"--{images.name} has no texts; give a manifest with a text column", bad_input=True)
    return texts


def prompt_keys(images: ImageSet) -> list[str | None]:
    """The prompt of each image, None where there is none."""
    return [str(text) or None for text in images.table["text"]]


def one_seed(inputs: EvaluationInputs) -> list[str]:
    """A warning where all images were made from the same seed: they share their noise and so look alike."""
    seeds, texts = inputs.synthetic.table["seed"].astype(str), inputs.synthetic.table["text"]
    if len(seeds) < 2 or seeds.iloc[0] == "" or seeds.nunique() > 1 or texts.nunique() < 2:
        return []
    return [f"all images have the seed {seeds.iloc[0]}: they share their noise and are more alike than need be"]


def labels_of(inputs: EvaluationInputs, findings: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """Labels of synthetic (N, F) and real (M, F) images; Unavailable where one side has none."""
    names = inputs.real.findings if findings is None else findings
    mine, theirs = inputs.synthetic.labels(names), inputs.real.labels(names)
    for flag, matrix in (("--real", theirs), ("--synthetic", mine)):
        if not (matrix == 1).any():
            raise Unavailable(
                f"{flag} has no labels; give a manifest with finding columns, or images that roentgen generated",
                bad_input=True,
            )
    return mine, theirs


def sides_of(table: pd.DataFrame, findings: Sequence[str]) -> list[list[str]]:
    """The sides that a table gives, (N, F)."""
    columns = [table[f + SIDE_SUFFIX].tolist() if f + SIDE_SUFFIX in table else [""] * len(table) for f in findings]
    return [[str(column[row]) for column in columns] for row in range(len(table))]
