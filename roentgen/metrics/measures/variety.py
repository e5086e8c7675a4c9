"""Diversity: how alike images of one prompt, of different prompts, and all generated images are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from roentgen.images import read_image
from roentgen.metrics import pairing
from roentgen.metrics.bootstrap import cluster_weights, percentile_interval
from roentgen.metrics.diversity import grouping as diversity
from roentgen.metrics.diversity import ms_ssim
from roentgen.metrics.diversity import repeats as duplicates
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet, look
from roentgen.metrics.measure import PIXELS, Case, Found, Unavailable, one_seed, pixels, prompt_keys
from roentgen.prompts import labels_from_row

PAIRS = 400
"""Pairs of different prompts for MS-SSIM."""
GROUPS = 100
"""Prompts at most for MS-SSIM within a prompt."""


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
