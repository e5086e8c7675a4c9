"""What a generated image's marks say of how it was made, so that it can be made again. Light at import: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.images import marks_of

NEEDED = ("prompt", "seed", "model", "model_hash", "steps", "guidance")


def origin_of(path: Path, flag: str) -> dict[str, str]:
    """Marks of an image that can be made again; UserError, which begins with ``flag``, where ``path`` is none."""
    marks = marks_of(path)
    missing = [key for key in NEEDED if key not in marks]
    # An edited image and a picture of how one came about carry the same marks, and cannot be made again from them.
    if missing or marks.get("synthetic") != "true" or "edited" in marks or "shows" in marks:
        raise UserError(f"{flag}: {path} is no image that roentgen generated alone, with its marks; leave {flag} out")
    return marks


def settings_of(marks: Mapping[str, str]) -> dict[str, Any]:
    """The settings of sampling in an image's marks, as ``Generator.sampling`` takes them."""
    return {
        "steps": int(marks["steps"]),
        "guidance": float(marks["guidance"]),
        "sampler": marks.get("sampler"),
        "negative_prompt": marks.get("negative_prompt"),
        "guided_share": float(marks.get("guided_share", 1)),
        "guided_from": float(marks.get("guided_from", 0)),
    }
