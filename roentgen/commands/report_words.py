"""``roentgen report --words``: a second, independent hint at the places in a generated image: its generator's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from roentgen.errors import UserError

if TYPE_CHECKING:
    from roentgen.reports import Report
    from roentgen.reports.base import Image

SHORTEST = 4  # letters of a word that says something: not of, the, is


def marks_of(path: Path) -> dict[str, str]:
    """What a generated image says of how it was made; UserError where it is not one that can be made again."""
    from roentgen.images import read_provenance

    marks = read_provenance(path)
    missing = [key for key in ("prompt", "seed", "model", "model_hash", "steps", "guidance") if key not in marks]
    # An edited image and a picture of how one came about carry the same marks, and cannot be made again from them.
    if missing or marks.get("synthetic") != "true" or "edited" in marks or "shows" in marks:
        raise UserError(f"--words: {path} is no image that roentgen generated alone, with its marks; leave --words out")
    return marks


def words_picture(path: Path, image: Image, found: Report, *, title: str) -> tuple[Any, dict[str, float]]:
    """The picture of a report on the image as its generator lit it, and how much more attention lies in the boxes.

    The image of ``path`` is made again, and lit where the generator looked those words of its prompt up which the
    report says too (all its words where it says none). The figures are, by finding, the mean attention inside of its
    boxes over that of the whole image: 1 by chance.

    Raises:
        UserError: no generated image; its model is not the one of that name, or cannot say.
    """
    from roentgen.generators.generate import word_maps
    from roentgen.images import lit
    from roentgen.reports.overlay import draw_report

    marks = marks_of(path)
    model = _model(marks["model"])
    if model.info.hash != marks["model_hash"]:
        raise UserError(f"--words: {path} was made by another {marks['model']} than the one on this machine")
    maps = word_maps(
        model, marks["prompt"], int(marks["seed"]), steps=int(marks["steps"]), guidance=float(marks["guidance"]),
        sampler=marks.get("sampler"), negative_prompt=marks.get("negative_prompt"),
        guided_share=float(marks.get("guided_share", 1)), guided_from=float(marks.get("guided_from", 0)),
    )  # fmt: skip
    said = [finding for finding in found.findings if finding.present]
    total = _sum(maps, " ".join(finding.text for finding in said))
    ratios = {
        finding.label: round(_inside(_sum(maps, finding.text), finding.boxes), 4)
        for finding in said
        if finding.label and finding.boxes
    }
    return draw_report(lit(image, total), found, title=f"{title}; lit: {marks['prompt']}"), ratios


@lru_cache(maxsize=1)
def _model(name: str) -> Any:
    from roentgen.generators.generate import load_model

    return load_model(name, device="cpu")


def _sum(maps: dict[str, np.ndarray], text: str) -> np.ndarray:
    """The maps of the words that ``text`` says too, added up; of all words where it says none of them."""
    from roentgen.generators.base import words

    shared = [maps[word] for word in words(text) if word in maps and len(word) >= SHORTEST]
    return np.sum(shared or list(maps.values()), axis=0)


def _inside(map: np.ndarray, boxes: Any) -> float:
    """Mean of a map (h, w) inside of boxes in fractions, over its mean."""
    height, width = map.shape
    inside = np.zeros(map.shape, bool)
    for x1, y1, x2, y2 in boxes:
        rows = slice(int(y1 * height), max(int(y1 * height) + 1, round(y2 * height)))
        inside[rows, int(x1 * width) : max(int(x1 * width) + 1, round(x2 * width))] = True
    return float(map[inside].mean() / map.mean())
