"""What the folder of a masked transformer has to hold. Light at import: no torch."""

from __future__ import annotations

from pathlib import Path

from roentgen.errors import UserError
from roentgen.models import loading
from roentgen.models.hub import weights

ADVICE = "fetch the model again"
PARTS = ("codes", "transformer", "text_encoder")  # with weights; vae or vq besides, unless it is that of mini


def check_folder(folder: Path) -> None:
    """UserError if ``folder`` is no whole masked transformer; looks at files only."""
    if not (folder / "transformer" / "config.json").is_file():
        if (folder / "codes").is_dir():
            raise UserError(
                f"--model {folder}: an image tokenizer without a transformer; train one on it with train/masked.py"
            )
        raise UserError(f"--model {folder}: no transformer/config.json; {ADVICE}")
    for part in ("codes", "text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise UserError(f"--model {folder}: the folder {part} is missing; {ADVICE}")
    for part in PARTS:
        for file in weights(folder / part).files:
            if file.suffix == ".safetensors":
                loading.check_safetensors(file)
