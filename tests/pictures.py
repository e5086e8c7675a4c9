"""Manifests of random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_manifest(folder: Path, count: int, *, size: int = 20) -> Path:
    """A manifest of ``count`` random pictures, alternating PNG and JPEG, two of three in train."""
    (folder / "images").mkdir(parents=True)
    lines = ["image,text,patient_id,split,sex,age,Effusion,Effusion_side,note"]
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size + index % 5, size + 3), dtype=np.uint8)
        name = f"images/{index}.{'png' if index % 2 else 'jpg'}"
        Image.fromarray(pixels).save(folder / name)
        split = "train" if index % 3 else "val"
        lines.append(f'{name},"naïve text, {index}",p{index},{split},,{40 + index},{index % 2},,001')
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.csv"
