"""Real images through a model's autoencoder and back: the best that a model which paints with it can do.

Reconstructions are kept as PNG files, named by the content of the real image, and are an image set like any other: the
extractors read them in the same pass, and a measure that can say something of them gives ``Result.reconstructed``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from roentgen.files import files_sha256
from roentgen.images import marks_of, read_image, resize_center_crop, save_image
from roentgen.metrics.image_set import ImageSet

if TYPE_CHECKING:
    from roentgen.generators.base import Generator

NAME = "reconstructed"
ORIGINAL = "original"
"""Column of the set: path of the real image."""
AT_ONCE = 8


def reconstructed_set(real: ImageSet, folder: Path, *, count: int, seed: int, workers: int = 2) -> ImageSet:
    """``count`` images of ``real`` at most, drawn by ``seed``, as their reconstructions in ``folder`` are named."""
    rows = np.sort(np.random.default_rng([seed, 3]).permutation(len(real))[:count])
    chosen = real.take(rows)
    names = [f"{digest[:16]}.png" for digest in files_sha256(chosen.paths, workers=workers)]
    table = chosen.table.assign(**{ORIGINAL: chosen.table["image"], "image": [str(folder / name) for name in names]})
    return replace(chosen, name=NAME, table=table, source=None, bad=[])


def write_reconstructions(images: ImageSet, model: Generator) -> None:
    """Make what ``images`` (of ``reconstructed_set``) names and is not there yet from this model.

    Raises:
        UserError: the model has no autoencoder of grey images, or a real image cannot be read.
    """
    from tqdm import tqdm

    marks = {
        "model": model.info.name if "/" not in model.info.name else Path(model.info.name).name,
        "model_hash": model.info.hash,
        "content": "a real image through the model's autoencoder and back",
    }
    pairs = zip(images.paths, images.table[ORIGINAL], strict=True)
    missing = [(path, original) for path, original in pairs if marks_of(path).get("model_hash") != model.info.hash]
    for start in tqdm(range(0, len(missing), AT_ONCE), desc="reconstructing", file=sys.stderr, leave=False):
        part = missing[start : start + AT_ONCE]
        pixels = np.stack([resize_center_crop(read_image(Path(original)), model.pixels) for _, original in part])
        for (path, _), image in zip(part, model.reconstruct(pixels), strict=True):
            save_image(image, path, format="png", provenance=marks, overwrite=True)


def rows_of_originals(reconstructed: ImageSet, real: ImageSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (n,) of ``reconstructed`` whose original is in ``real``, and the rows (n,) of those originals."""
    place = {image: row for row, image in enumerate(real.table["image"])}
    both = [(row, place[image]) for row, image in enumerate(reconstructed.table[ORIGINAL]) if image in place]
    rows = np.array(both, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]
