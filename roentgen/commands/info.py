"""``roentgen info``: what made an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from roentgen.commands.generate import dumps
from roentgen.config import Positional
from roentgen.errors import UserError


def info(image: Annotated[tuple[Path, ...], Positional()] = (), json: bool = False) -> int:
    """Print what made an image: prompt, seed, model, settings; exit code 2 if roentgen did not make it.

        roentgen info out/left-pleural-effusion_0.png
        roentgen info out/*.png --json

    Settings:
        image: PNG, JPEG or DICOM files.
        json: Print JSON lines.
    """
    from roentgen.images import read_provenance

    if not image:
        raise UserError("no image: name at least one file, as in roentgen info out/image.png")
    for number, path in enumerate(image):
        marks = read_provenance(path)
        if json:
            print(dumps({"path": str(path), **marks}))
        else:
            heading = [*([""] if number else []), *([str(path)] if len(image) > 1 else [])]
            print("\n".join(heading + [f"{key}: {value}" for key, value in marks.items()]))
    return 0
