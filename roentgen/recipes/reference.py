"""Make the reference of `roentgen export`'s quality filter from real images: what it compares with, and thresholds.

    roentgen train reference --manifest data/openchest/manifest.csv --out runs/reference
    roentgen train reference --manifest MANIFEST --classifier runs/classifier --out runs/reference --dry-run

What real images look like is fitted on `train`; every threshold is a quantile of images that were not used for a fit:
`val`, and those training patients whom the classifier has not seen (its `part`). Give the manifest that the generator
was trained on: its `train` images are those of which near-copies are rejected. Writes ``OUT/reference.json`` and
``OUT/reference.safetensors``; thumbnails of 32 x 32 pixels of all training images are in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from roentgen.cache import kept_in_batches
from roentgen.config import Count, InnerShare, parse_settings, require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import read_manifest
from roentgen.files import file_sha256, require_writable, sha256
from roentgen.metrics.diversity.repeats import difference_hash
from roentgen.metrics.extractor import Extractor
from roentgen.metrics.extractors import classifier_extractor
from roentgen.metrics.neighbours import thumbnails
from roentgen.models.classifier import inside_part, load_classifier
from roentgen.prompts import labels_from_row
from roentgen.recipes import CONFIGS, Basics
from roentgen.synthesis.filters import copies, demographics, load_filter, prompt, real
from roentgen.synthesis.filters.appearance import fit_appearance
from roentgen.synthesis.filters.reference import save_reference
from roentgen.synthesis.filters.repeats import pair_counts


@dataclass(frozen=True, kw_only=True)
class Settings(Basics):
    """Settings of the reference."""

    classifier: Annotated[
        Path | None, "folder made by roentgen train classifier, copied into the reference (default: the one that ships)"
    ] = None
    sensitivity: Annotated[
        InnerShare, "share of real images with a finding, a view or a sex that pass the threshold of it"
    ] = 0.85
    specificity: Annotated[
        InnerShare, "share of real normal images in which no finding is above its highest probability"
    ] = 0.95
    least_auroc: Annotated[InnerShare, "a finding that the classifier tells less well on real images is not judged"] = (
        0.65
    )
    least_cases: Annotated[Count, "nor one with fewer positives or negatives"] = 20
    real: Annotated[InnerShare, "share of real images that pass as chest radiographs"] = 0.995
    copies: Annotated[
        InnerShare, "share of real images of other patients that count as near-copies of a training image"
    ] = 0.01
    fit_images: Annotated[Count, "training images at most from which it is learned what real images look like"] = 2500


def main(argv: Sequence[str] | None = None) -> int:
    s = parse_settings(Settings, argv, prog="roentgen train reference", about=__doc__, configs=CONFIGS)
    judge = load_classifier(s.classifier)
    extractor = classifier_extractor(s.classifier)
    size = judge.size
    require(size % 32 == 0, f"--classifier: its images of {size} pixels must have sides that are a multiple of 32")

    table = read_manifest(s.manifest, splits=["train", "val"], allow_empty_text=True)
    is_train = (table["split"] == "train").to_numpy()
    unseen = ~inside_part(table["patient_id"].tolist(), str(judge.info.get("part", "0-1")), "--classifier: its part")
    held = np.flatnonzero(~is_train | unseen)
    inside = np.flatnonzero(is_train & ~unseen)
    fit = np.sort(np.random.default_rng(s.seed).permutation(inside)[: s.fit_images])
    require(is_train.any() and not is_train.all(), f"--manifest {s.manifest}: needs images in train and in val")
    require(len(fit) >= 200, f"--manifest {s.manifest}: needs 200 training images at least, not {len(fit)}")
    print(
        f"{is_train.sum()} training images, {len(fit)} of them for the fit; {len(held)} that no fit has seen for the "
        "thresholds",
        flush=True,
    )
    if s.dry_run:
        return 0
    require_writable(s.out, "--out")
    cache = s.cache or s.out / "cache"
    pixels = load_pixels(table["image"].tolist(), size=size, cache=cache).pixels

    # What real images look like, from the training images of the fit.
    fitted = outputs(extractor, pixels[fit], cache)
    appearance = fit_appearance(fitted["features"], pixels[fit])

    # Thresholds, from images that no fit has seen.
    found, held_pixels = outputs(extractor, pixels[held], cache), pixels[held]
    held_table = table.iloc[held].reset_index(drop=True)
    prompt_rules = prompt.prompt_rules(
        held_table, found, extractor.findings, sensitivity=s.sensitivity, specificity=s.specificity,
        least_auroc=s.least_auroc, least_cases=s.least_cases,
    )  # fmt: skip
    measures = appearance.measure(found["features"], held_pixels)
    small = np.rint(thumbnails(np.asarray(pixels[is_train])) * 255).astype(np.uint8)
    print("looking for the nearest training images of val", flush=True)
    nearest = copies.nearest_view(np.asarray(pixels[~is_train]), copies.thumbnail_views(small))
    heads, head_rules = demographics.heads(
        appearance.coordinates(fitted["features"], pixels[fit]), table.iloc[fit],
        appearance.coordinates(found["features"], held_pixels), held_table,
        sensitivity=s.sensitivity, least_cases=s.least_cases,
    )  # fmt: skip
    thresholds = {
        "prompt": prompt_rules,
        **head_rules,
        "real": real.real_rule(measures, s.real),
        "copies": copies.copies_rule(nearest, s.copies),
    }

    print("comparing the hashes of all pairs", flush=True)
    hashes = np.packbits(difference_hash(list(pixels)), axis=1)
    info = {
        "manifest": {"name": s.manifest.name, "sha256": file_sha256(s.manifest)},
        "classifier": {"hash": extractor.hash, "size": size},
        "images": {"train": int(is_train.sum()), "val": int((~is_train).sum()), "fit": len(fit), "held_out": len(held)},
        "thresholds": thresholds,
    }
    arrays = {
        **{name: value.astype(np.float16 if value.size > 50_000 else np.float32)
           for name, value in appearance.arrays.items()},
        **heads,
        "thumbnails": small,
        "pair_counts": pair_counts(hashes, table["patient_id"].tolist()),
    }  # fmt: skip
    if s.classifier is not None:
        shutil.copytree(s.classifier, s.out / "classifier", dirs_exist_ok=True)
    save_reference(s.out, info, arrays)

    # How the filter treats val images with their own labels, through the code that an export runs.
    val = table[~is_train]
    stages = ["prompt", *(name for name in ("view", "sex", "age") if f"head_{name}" in arrays), "real", "copies"]
    print(f"{'stage':<10}share of {len(val)} val images that pass it alone")
    labels = [labels_from_row(row) for row in val.to_dict("records")]
    for name in stages:
        verdicts = load_filter([name], reference=s.out).judge(np.asarray(pixels[~is_train]), labels)
        print(f"{name:<10}{np.mean([not verdict.stage for verdict in verdicts]):.3f}", flush=True)
    written = sum(path.stat().st_size for path in s.out.glob("reference.*"))
    print(f"{s.out}: {written / 1e6:.1f} MB")
    return 0


def outputs(extractor: Extractor, images: NDArray[np.uint8], cache: Path) -> dict[str, NDArray[np.float32]]:
    """The classifier's outputs of uint8 images (N, H, W), kept in ``cache`` by content."""
    key = sha256(f"{extractor.key} {images.shape}", np.ascontiguousarray(images))
    return kept_in_batches(cache, "outputs", key, lambda part: extractor(list(images[part])), count=len(images))
