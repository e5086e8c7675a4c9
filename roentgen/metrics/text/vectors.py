"""Image and text vectors of the dual encoder, for the measures that compare images with words."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.errors import UserError
from roentgen.images import read_image
from roentgen.metrics.image_set import ImageSet
from roentgen.metrics.measure import EvaluationInputs, Unavailable
from roentgen.metrics.reading import texts_of
from roentgen.models.dual_encoder import ShippedEncoder, load_dual_encoder


@lru_cache(maxsize=1)
def dual_encoder(name: str, device: str) -> Any:
    """The dual encoder ``name``; Unavailable where it is not there."""
    try:
        return load_dual_encoder(name, device=device)
    except UserError as error:
        raise Unavailable(str(error)) from None


def by_dual_encoder(inputs: EvaluationInputs) -> tuple[str, str]:
    encoder = dual_encoder(inputs.dual_encoder, inputs.device)
    return f"dual encoder {encoder.name}, sha256 {encoder.hash}", encoder.chain


def vectors(
    inputs: EvaluationInputs, images: ImageSet
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Image and text vectors (n, D) of the dual encoder for the rows (n,) that have a text."""
    encoder = dual_encoder(inputs.dual_encoder, inputs.device)
    texts = texts_of(images)
    rows = np.array([row for row, text in enumerate(texts) if text])
    judge = next((extractor for extractor in inputs.extractors if extractor.name == "classifier"), None)
    if judge is not None and isinstance(encoder, ShippedEncoder):
        of_images = encoder.from_features(inputs.of(images.name, judge)[rows])
    else:
        paths = images.paths
        of_images = encoder.images([read_image(paths[row]) for row in rows])
    return of_images, encoder.texts([texts[row] for row in rows]), rows
