"""Weak severities of effusions and enlarged hearts, measured on images, for ``roentgen data prepare --sides``.

    python train/weak_severity.py --manifest MANIFEST --openchest2 openchest2 --sides runs/sides.csv \\
        --out data/openchest_sides.csv --result eval/results/severity.json

- **Effusion**: the white share of the lower lung zone on the side of the effusion (of both where that is not known),
  in thirds of the training images of the same view: small, moderate, large.
- **Cardiomegaly**: the cardiothoracic ratio, regressed (ridge) from a frozen ImageNet network's features on the images
  of openchest2 that have it measured; its error there by cross-validation goes into the result file. Words by the
  bounds of ``roentgen.data.sources.openchest.RATIO_BOUNDS``. Where a ratio was measured it is used as it is, and no
  weak word is written.

The CSV holds the lines of ``--sides``, with the severities beside them.
"""

from __future__ import annotations

import argparse
import bisect
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from roentgen import errors
from roentgen.data.manifest import SIDE_SUFFIX, read_manifest
from roentgen.data.sources.openchest import RATIO, RATIO_BOUNDS
from roentgen.images import read_image, resize_center_crop, to_autoencoder
from roentgen.models.autoencoder.perceptual import FrozenFeatures
from roentgen.prompts import FINDINGS

FEATURE_SIZE, GRID, RIDGE = 224, 7, 1e3


def white_share(pixels: NDArray[np.uint8], side: str) -> NDArray[np.float64]:
    """Share of the lower lung zone that is as white as the mediastinum, (N,) in [0, 1].

    ``pixels`` is uint8 (N, H, W); ``side`` the patient's left, right, or "" for both. White is above the middle between
    the dark of the lungs (10th percentile of both zones) and the mediastinum (median of the central strip).
    """
    n, height, width = pixels.shape
    x = pixels.astype(np.float64)
    rows, half = slice(round(0.45 * height), round(0.8 * height)), width // 2
    inner, outer = round(0.2 * half), round(0.8 * half)
    zones = {"left": x[:, rows, half + inner : half + outer], "right": x[:, rows, half - outer : half - inner]}
    strip = x[:, round(0.3 * height) : round(0.6 * height), half - inner // 2 : half + inner // 2]
    white = np.median(strip.reshape(n, -1), axis=1)
    dark = np.percentile(np.concatenate([z.reshape(n, -1) for z in zones.values()], axis=1), 10, axis=1)
    bound = (0.5 * (white + dark))[:, None, None]
    looked_at = zones.values() if side == "" else [zones[side]]
    return np.mean([(z > bound).mean((1, 2)) for z in looked_at], axis=0)


@torch.inference_mode()
def features(images: Sequence[str]) -> NDArray[np.float32]:
    """The deepest map of ``FrozenFeatures`` pooled to 7 x 7, (N, D)."""
    network, found = FrozenFeatures(), []
    for image in images:
        x = to_autoencoder(resize_center_crop(read_image(image), FEATURE_SIZE)[None])
        found.append(F.adaptive_avg_pool2d(network(x)[-1], GRID)[0].flatten().numpy())
    return np.stack(found)


def effusion_words(table: pd.DataFrame) -> dict[int, str]:
    """Row -> small, moderate or large, for the rows with an effusion of one side or of no known side."""
    words: dict[int, str] = {}
    listed = table[table["Effusion"] == 1]
    side = listed["Effusion" + SIDE_SUFFIX].where(listed["Effusion" + SIDE_SUFFIX].isin(["left", "right"]), "")
    pixels = np.stack([resize_center_crop(read_image(image), 128) for image in listed["image"]])
    share = np.zeros(len(listed))
    for which in ("left", "right", ""):
        chosen = (side == which).to_numpy()
        if chosen.any():
            share[chosen] = white_share(pixels[chosen], which)
    for view in ("PA", "AP"):
        for known in (True, False):  # one zone of one side and the mean of both are not comparable
            chosen = ((listed["view"] == view) & ((side != "") == known)).to_numpy()
            train = chosen & (listed["split"] == "train").to_numpy()
            if train.sum() < 30:
                continue
            bounds = np.quantile(share[train], [1 / 3, 2 / 3]).tolist()
            for row, value in zip(listed.index[chosen], share[chosen], strict=True):
                words[row] = FINDINGS["Effusion"].qualifiers[bisect.bisect(bounds, value)]
    return words


def heart_words(table: pd.DataFrame, openchest2: Path) -> tuple[dict[int, str], dict[str, float]]:
    """Row -> mild, moderate or severe, for adults with cardiomegaly; and how well the ratio is told where measured."""
    from scipy.stats import pearsonr
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cells = pd.read_csv(openchest2 / "metadata.csv", dtype=str, keep_default_na=False)
    cells = cells[cells["expert"].str.contains("ctr:") & (cells["split"] != "test")]
    ratio = cells["expert"].str.extract(RATIO, expand=False).astype(float).to_numpy()
    seen = features([str(openchest2 / file) for file in cells["file"]])
    model = make_pipeline(StandardScaler(), Ridge(RIDGE))
    told = cross_val_predict(model, seen, ratio, cv=10)
    figures = {
        "measured": float(len(ratio)),
        "correlation": float(pearsonr(told, ratio).statistic),
        "mean_error": float(np.abs(told - ratio).mean()),
    }
    model.fit(seen, ratio)
    measured = {Path(file).name for file in cells["file"]}
    names = table["image"].map(lambda image: Path(image).name)
    adults = table[(table["Cardiomegaly"] == 1) & ~(table["age"] < 16) & ~names.isin(measured)]
    values = model.predict(features(adults["image"].tolist()))
    words = FINDINGS["Cardiomegaly"].qualifiers
    return {row: words[bisect.bisect(RATIO_BOUNDS, v)] for row, v in zip(adults.index, values, strict=True)}, figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train/weak_severity.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True, help="prepared with the sides of --sides")
    parser.add_argument("--openchest2", type=Path, required=True, help="the collection with measured ratios")
    parser.add_argument("--sides", type=Path, required=True, help="CSV of weak sides whose lines are taken over")
    parser.add_argument("--out", type=Path, required=True, help="CSV for `roentgen data prepare --sides`")
    parser.add_argument("--result", type=Path, help="JSON with the regression's error where ratios were measured")
    args = parser.parse_args(argv)

    table = read_manifest(args.manifest, allow_empty_text=True)
    sides = pd.read_csv(args.sides, dtype=str, keep_default_na=False).assign(severity="")
    hearts, figures = heart_words(table, args.openchest2)
    words = {**{(row, "Effusion"): word for row, word in effusion_words(table).items()},
             **{(row, "Cardiomegaly"): word for row, word in hearts.items()}}  # fmt: skip
    place = {(file, finding): i for i, (file, finding) in enumerate(zip(sides["file"], sides["finding"], strict=True))}
    more = []
    for (row, finding), word in sorted(words.items()):
        if table.at[row, "split"] == "test":
            continue
        name = Path(table.at[row, "image"]).name
        if (name, finding) in place:
            sides.at[place[name, finding], "severity"] = word
        else:
            more.append({"file": name, "finding": finding, "side": "", "severity": word, "score": ""})
    whole = pd.concat([sides, pd.DataFrame(more)]).drop_duplicates(["file", "finding"])
    whole[["file", "finding", "side", "severity", "score"]].to_csv(args.out, index=False, lineterminator="\n")
    said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"{args.out}: {(whole['severity'] != '').sum()} severities; cardiothoracic ratio: {said}")
    if args.result is not None:
        import json

        args.result.write_text(json.dumps({"metric": "cardiothoracic ratio by regression", **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/weak_severity.py"))
