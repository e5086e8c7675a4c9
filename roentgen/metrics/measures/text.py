"""Images and words: retrieval, alignment by a dual encoder, and what an image-to-text model says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image
from roentgen.metrics.extractors import Extractor
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import Case, Found, Unavailable, labels_of, texts_of
from roentgen.metrics.text import alignment, retrieval
from roentgen.models.alignment import ShippedEncoder
from roentgen.provenance import portable


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


def by_describer(case: Case) -> tuple[str, str]:
    if case.image_to_text is None:
        raise Unavailable("no image-to-text model was given (--image-to-text)")
    return str(portable(f"image-to-text {case.image_to_text}")), "the model's own image processor"


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


def measure_text_scores(case: Case, extractor: Extractor) -> Found:
    """An image-to-text model's words for each image against the prompt, beside its words for real images."""
    from roentgen.metrics.text.report_scores import Described, load_image_to_text, text_scores

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
