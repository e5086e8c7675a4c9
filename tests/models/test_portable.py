"""Pipeline folders that every allowed version of transformers and diffusers reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from forks import Forks

from roentgen.models.hub import MINI
from roentgen.models.portable import make_portable


@pytest.mark.slow
def test_a_saved_pipeline_has_the_files_of_old_and_new_versions(make_pipeline, tmp_path: Path) -> None:
    from safetensors import safe_open

    from roentgen import load_model

    model = load_model(str(make_pipeline(tmp_path / "tiny")), device="cpu", trainable=True)
    model.save(tmp_path / "saved", {"name": "saved"})
    with safe_open(tmp_path / "saved" / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 - no mapping
    vocabulary = json.loads((tmp_path / "saved" / "tokenizer" / "vocab.json").read_text())
    merges = (tmp_path / "saved" / "tokenizer" / "merges.txt").read_text().splitlines()[1:]
    if (whole := tmp_path / "saved" / "tokenizer" / "tokenizer.json").is_file():  # transformers 5 writes it
        told = json.loads(whole.read_text())["model"]
        assert vocabulary == told["vocab"] and len(merges) == len(told["merges"])
    assert len(vocabulary) > 20 and merges
    assert json.loads((tmp_path / "saved" / "text_encoder" / "config.json").read_text())["dtype"] == "float32"
    settings = json.loads((tmp_path / "saved" / "tokenizer" / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(settings)
    again = load_model(str(tmp_path / "saved"), device="cpu", trainable=True)
    for (name, one), (_, other) in zip(
        model.text_encoder.state_dict().items(), again.text_encoder.state_dict().items(), strict=True
    ):
        assert one.equal(other), name
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "saved").rglob("*") if p.is_file())
    make_portable(tmp_path / "saved")  # nothing is left to do
    assert before == sorted((p, p.read_bytes()) for p in (tmp_path / "saved").rglob("*") if p.is_file())


@pytest.mark.slow
def test_the_snippet_of_the_model_card_runs_as_it_stands(forks: Forks, tmp_path: Path) -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"((?:^    [^\n]*\n)*^    picture = [^\n]*\n)", card, flags=re.MULTILINE)
    code = "\n".join(line[4:] for line in snippet.splitlines())
    assert "from diffusers import DiffusionPipeline" in code and '"roentgen/models/mini"' in code
    script = f"{code}\nassert picture.size == (256, 256)\npicture.save({str(tmp_path / 'picture.png')!r})\n"
    ran = forks("-c", script)
    assert ran.code == 0, ran.err[-2000:]


@pytest.mark.slow
def test_stock_image_to_image_runs_on_mini_and_stock_inpainting_says_why_not() -> None:
    """As docs/edit.md says."""
    import numpy as np
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
    from PIL import Image

    xray = Image.open(MINI.parents[2] / "data" / "sample" / "images" / "nih_00001505_000.jpg").convert("RGB")
    stock = StableDiffusionImg2ImgPipeline.from_pretrained(MINI)
    picture = stock("left pleural effusion", image=xray.resize((256, 256)), strength=0.5, num_inference_steps=4)[0][0]
    assert picture.size == (256, 256) and np.ptp(np.asarray(picture).astype(int), axis=2).max() == 0  # grey
    inpaints = StableDiffusionInpaintPipeline.from_pretrained(MINI)
    with pytest.raises(ValueError, match="4 or 9 input channels, not 16"):
        inpaints("left pleural effusion", image=picture, mask_image=picture, num_inference_steps=2)
