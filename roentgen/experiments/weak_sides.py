"""Weak side labels: on which side a finding is, from the asymmetry of the lungs.

    python -m roentgen.experiments.weak_sides --manifest MANIFEST --out sides.csv --result eval/results/sides.json

Effusion, opacity and collapse whiten a lung. The mean brightness of the middle and lower zone of the image's two
halves is compared, the usual difference (the heart) taken off, and where it is large the brighter half names the side.
Measured against the images whose side is known by boxes; pass the CSV to ``roentgen data prepare --sides``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen import errors
from roentgen.config import parse_settings
from roentgen.data.images import load_pixels
from roentgen.data.manifest import SIDE_SUFFIX, finding_columns, read_manifest
from roentgen.errors import UserError
from roentgen.files import write_atomic
from roentgen.metrics.result import Context, write_result
from roentgen.metrics.statistics import wilson_interval
from roentgen.prompts import FINDINGS

NAME = "roentgen.experiments.weak_sides"
# Rows and columns (from the midline outwards) of the compared zone, as shares of height and of half the width.
ROWS = (12 / 32, 24 / 32)
COLUMNS = (2 / 16, 13 / 16)
# In sd of the normal images' asymmetry: below it the side is left open.
THRESHOLD = 0.7
# A pneumothorax darkens, a nodule is smaller than the usual asymmetry: this method says nothing about them.
EXCLUDED = frozenset({"Pneumothorax", "Nodule"})


def lung_asymmetry(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Brightness of the patient's left lung zone less the right one's, in sd of the image's grey levels, (N,).

    ``pixels`` is uint8 (N, H, W) with even W; the patient's left is the right half of the image.
    """
    x = pixels.astype(np.float64)
    scale = x.std((1, 2)) + 1e-6
    half = x.shape[2] // 2
    rows = slice(round(ROWS[0] * x.shape[1]), round(ROWS[1] * x.shape[1]))
    columns = slice(round(COLUMNS[0] * half), round(COLUMNS[1] * half))
    left, right = x[:, :, half:], x[:, :, :half][:, :, ::-1]
    difference: NDArray[np.float64] = (left - right)[:, rows, columns].mean((1, 2)) / scale
    return difference


def weak_sides(table: pd.DataFrame, pixels: NDArray[np.uint8]) -> pd.DataFrame:
    """A row (index, finding, side, score) for each listed finding whose side the asymmetry tells.

    ``score`` is the asymmetry in sd of the images without any finding, from which the usual difference was taken off;
    both are those of the splits `train` and `val`.
    """
    learned = (table["split"] != "test").to_numpy()
    normal = learned & (table["No Finding"] == 1).to_numpy() if "No Finding" in table else ~learned & learned
    if normal.sum() < 20:
        raise UserError("--manifest needs at least 20 images with `No Finding` to tell what asymmetry is usual")
    raw = lung_asymmetry(pixels)
    score = (raw - raw[normal].mean()) / raw[normal].std()
    rows = [
        (i, name, "left" if score[i] > 0 else "right", score[i])
        for name in finding_columns(table)
        if FINDINGS[name].can_have_side and name not in EXCLUDED
        for i in np.flatnonzero((table[name] == 1).to_numpy() & (np.abs(score) > THRESHOLD))
    ]
    return pd.DataFrame(rows, columns=["index", "finding", "side", "score"])


def agreement(table: pd.DataFrame, weak: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Per finding: images with one known side (``known``), those the method speaks on (``said``), those right."""
    said = {(row.index_, row.finding): row.side for row in weak.rename(columns={"index": "index_"}).itertuples()}
    result = {}
    for name in finding_columns(table):
        column = name + SIDE_SUFFIX
        if column not in table or name in EXCLUDED:
            continue
        known = np.flatnonzero(table[column].isin(["left", "right"]).to_numpy())
        right = [said[i, name] == table[column].iloc[i] for i in known if (i, name) in said]
        if len(known):
            result[name] = {"known": len(known), "said": len(right), "right": sum(right)}
    return result


@dataclass(frozen=True)
class Settings:
    """Settings of the labels."""

    manifest: Annotated[Path, "manifest of the images"]
    out: Annotated[Path, "CSV for `roentgen data prepare --sides`"]
    result: Annotated[Path | None, "JSON with the accuracy on images whose side is known"] = None


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_settings(Settings, argv, prog=f"python -m {NAME}", about=__doc__)
    table = read_manifest(args.manifest, allow_empty_text=True)
    weak = weak_sides(table, load_pixels(table["image"].tolist(), size=64).pixels)
    test = (table["split"] == "test").to_numpy()
    said = weak[~test[weak["index"].to_numpy(dtype=int)]]
    said = said.assign(file=[Path(table["image"].iloc[row]).name for row in said["index"]])
    columns = ["file", "finding", "side", "score"]
    text = said.to_csv(columns=columns, index=False, float_format="%.2f", lineterminator="\n")
    write_atomic(args.out, text.encode())

    # The threshold was set on train and val; test is where it is checked.
    checked = table.where(table["split"] == "test") if test.any() else table
    counts = agreement(checked, weak)
    right, said, known = (sum(c[key] for c in counts.values()) for key in ("right", "said", "known"))
    print(f"{args.out}: of {known} known sides {said} are named, {right} of them rightly")
    if args.result is not None and said:
        context = Context(
            extractor=f"{NAME}.lung_asymmetry",
            resize="centre square, 64 px",
            settings={"threshold": THRESHOLD, "rows": ROWS, "columns": COLUMNS},
            inputs={"manifest": args.manifest.name},
            command=f"python -m {NAME} --manifest MANIFEST --out sides.csv --result RESULT",
        )
        write_result(
            args.result,
            metric="accuracy of weak side labels",
            value=right / said,
            ci=wilson_interval(right, said),
            ci_method="Wilson",
            n=said,
            context=context,
            warnings=["most of the checked images are lung opacity; only a few are effusions"],
            details={"per_finding": counts, "share_named": said / known},
        )
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog=f"python -m {NAME}"))
