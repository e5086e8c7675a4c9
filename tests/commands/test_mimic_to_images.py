"""From MIMIC-CXR-JPG as it is downloaded to generated images, in the three commands that the README shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from recipe import ROOT, good
from trees import mimic_tree

CONFIG = ROOT / "train" / "configs" / "roentgen" / "unet-clip-trained_1000-steps_5e-5.yaml"


@pytest.mark.slow
def test_mimic_to_images_in_three_commands(make_pipeline: Callable[..., Path], tmp_path: Path, run_cli) -> None:
    # No test can have Stable Diffusion 1.4: a tiny pipeline of the same classes stands in.
    tiny = make_pipeline(tmp_path / "tiny", channels=3, window=77, prediction="epsilon")
    root, manifest = mimic_tree(tmp_path), tmp_path / "data" / "manifest.csv"

    code, said, err = run_cli("data", "prepare", "mimic-cxr-jpg", "--root", root, "--out", manifest, "--val-share", 0.3)
    assert code == 0 and manifest.is_file(), said + err

    run = tmp_path / "run"
    small = ["--model", tiny, "--batch_size", 4, "--accumulate", 1, "--images", 8, "--warmup", 0]
    said = good("--config", CONFIG, "--manifest", manifest, "--out", run, *small).out
    assert "2 steps of 4" in said and (run / "pipeline" / "model_index.json").is_file()

    images = tmp_path / "images"
    code, _, err = run_cli(
        "generate", "Small left pleural effusion.", "--model", run / "pipeline", "--out", images, "--steps", 3,
        "--num-images", 2,
    )  # fmt: skip
    assert code == 0, err
    assert len(list(images.glob("*.png"))) == 2

    told = json.loads((run / "training.json").read_text())
    assert told["settings"]["name"] == CONFIG.stem and told["images"] == 8
    words = json.loads((run / "pipeline" / "roentgen.json").read_text())["vocabulary"]
    assert {"effusion", "cardiopulmonary"} <= set(words)  # of the impressions
