"""A fine-tune and an adapter, as this version writes them, give the same picture with every allowed version of others.

`tests/files/lowest/` was made by ``python tests/test_lowest.py``; continuous integration runs this file with the lowest
versions of pyproject.toml as well.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from roentgen import generate, load_model
from roentgen.images import read_image

DATA = Path(__file__).parent / "files" / "lowest"
PROMPT = "left pleural effusion"


def picture(lora: Path | None) -> np.ndarray:
    model = load_model(str(DATA / "pipeline"), device="cpu", dtype="float32", lora=lora)
    return next(generate(model, PROMPT, seed=3, steps=3, sampler="ddim")).image


@pytest.mark.parametrize("name", ["pipeline", "lora", "kohya"])
def test_pictures_are_those_of_the_newest_versions(name: str) -> None:
    files = {"lora": "pytorch_lora_weights.safetensors", "kohya": "kohya/lora.safetensors"}
    lora = DATA / "lora" / files[name] if name in files else None
    stored = read_image(DATA / ("pipeline.png" if lora is None else "lora.png")).astype(int)
    assert np.abs(picture(lora).astype(int) - stored).max() <= 1


def test_the_pictures_differ() -> None:
    one, other = (read_image(DATA / f"{name}.png").astype(int) for name in ("pipeline", "lora"))
    assert np.abs(one - other).max() > 5


def make() -> None:
    """Write the folder anew: a tiny pipeline with random weights, saved as a fine-tune is, and an adapter for it."""
    import torch
    from conftest import write_pipeline

    from roentgen.generators.diffusion.build import start
    from roentgen.models.lora import add_lora, save_lora

    shutil.rmtree(DATA, ignore_errors=True)
    write_pipeline(DATA / "raw")
    start(model=str(DATA / "raw")).save(DATA / "pipeline", {"name": "tiny"})
    shutil.rmtree(DATA / "raw")
    model = start(model=str(DATA / "pipeline"))
    add_lora(model.unet, model.text_encoder, rank=2, alpha=6)
    torch.manual_seed(0)
    for module in (model.unet, model.text_encoder):
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.15)  # larger ones amplify what a processor rounds
    save_lora(DATA / "lora", model.unet, model.text_encoder)
    for name in ("pipeline", "lora"):
        from PIL import Image

        lora = None if name == "pipeline" else DATA / "lora"
        Image.fromarray(picture(lora)).save(DATA / f"{name}.png")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    make()
