"""Sets of painted chests, real and generated, and the sentence with which a command is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from roentgen.images import save_image

MARKS = {"model": "made", "model_hash": "0" * 16, "steps": "1", "guidance": "1", "sampler": "ddim"}


def chest(rng: np.random.Generator, side: str | None, size: int = 176) -> np.ndarray:
    """Two dark lungs on grey, with a white base on ``side``."""
    image = rng.normal(120, 12, (size, size))
    lung = slice(size // 6, size * 5 // 6)
    image[lung, size // 6 : size * 5 // 12] -= 60
    image[lung, size * 7 // 12 : size * 5 // 6] -= 60
    if side is not None:
        columns = slice(size * 7 // 12, size * 5 // 6) if side == "left" else slice(size // 6, size * 5 // 12)
        image[size * 7 // 12 : size * 5 // 6, columns] += 90
    return np.clip(image, 0, 255).astype(np.uint8)


def write_set(
    folder: Path, counts: dict[str, int], seed: int, *, draw: Callable[..., np.ndarray] = chest,
    text: str = "patient {number}. {says}", patient: int = 1, run: int = 1, **columns: str,
) -> Path:  # fmt: skip
    """A manifest of images with and without a sided effusion, in several splits.

    ``patient``: images of each; ``run``: images of one side in a row; ``columns``: the same in all rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for split, count in counts.items():
        for number in range(count):
            side = (None, "left", None, "right")[number // run % 4]
            name = f"{split}_{number}.png"
            Image.fromarray(draw(rng, side)).save(folder / name)
            rows.append(
                {
                    "image": name,
                    "text": text.format(number=number, says=f"{side} pleural effusion" if side else "no acute process"),
                    "patient_id": f"{split}{number // patient}",
                    "split": split,
                    "view": "PA",
                    "No Finding": int(side is None),
                    "Effusion": int(side is not None),
                    "Effusion_side": side or "",
                    **columns,
                }
            )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def write_generated(folder: Path, real: Path, seed: int, *, count: int = 24) -> Path:
    """Images for the texts of the real test rows, with roentgen's marks."""
    table = pd.read_csv(real, keep_default_na=False)
    rng = np.random.default_rng(seed)
    for number, row in enumerate(table[table["split"] == "test"].head(count).itertuples()):
        image = chest(rng, row.Effusion_side or None)
        marks = {**MARKS, "prompt": str(row.text), "seed": str(number)}
        save_image(image, folder / f"{number:03d}.png", format="png", provenance=marks)
    return folder


def sentence(run_cli: Callable[..., tuple[int, str, str]], *words: object) -> str:
    """Run, expect a refusal in one sentence, and return it."""
    code, _, said = run_cli(*words)
    assert code == 2 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("roentgen: error: ")
    return last
