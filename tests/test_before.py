"""What the version before wrote opens with this one: a fine-tuned folder, a run that goes on, LoRA, export, evaluation.

``tests/files/before`` was made by the commit before the recipes moved into the package, from ``base``, a tiny pipeline:
``run`` is a run of train/finetune.py after 8 of 16 images, ``tuned`` its result where nothing interrupted it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from recipe import few_rows, good, part

from roentgen import generate, load_model
from roentgen.images import read_image, read_provenance

BEFORE = Path(__file__).parent / "files" / "before"
FLAGS = [
    *("--images", 16, "--batch_size", 4, "--precision", "no", "--steps", 2, "--sample_every", 10**6, "--log_every", 4),
    *("--warmup", 4, "--rate", 1e-3, "--text_rate", 1e-3, "--composed", 0.5),
]


@pytest.mark.slow
def test_a_run_goes_on_to_the_result_that_it_had(tmp_path: Path) -> None:
    manifest = few_rows(tmp_path / "few", train=6, val=2)
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    said = good(*FLAGS, "--manifest", manifest, "--model", BEFORE / "base", "--out", tmp_path / "run").out
    assert "continuing at 8 images" in said
    for name in ("unet", "text_encoder"):
        folders = (BEFORE / "base", tmp_path / "run" / "pipeline", BEFORE / "tuned")
        start, ours, theirs = (part(folder, name) for folder in folders)
        moved = max(np.abs(theirs[key] - start[key]).max() for key in theirs)
        assert moved > 1e-3
        assert all(np.allclose(ours[key], theirs[key], atol=moved / 100) for key in theirs)


def test_a_tuned_folder_and_adapters_generate() -> None:
    base = load_model(str(BEFORE / "base"), device="cpu")
    tuned = load_model(str(BEFORE / "tuned"), device="cpu")
    adapted = load_model(str(BEFORE / "base"), device="cpu", lora=BEFORE / "lora")
    assert "effusion" in (tuned.info.vocabulary or ())
    images = [next(generate(model, "left pleural effusion", steps=2)).image for model in (base, tuned, adapted)]
    assert all(image.std() > 1 for image in images)
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_an_export_holds_the_images_that_are_made_today() -> None:
    from roentgen.metrics.image_set import open_set

    files = sorted((BEFORE / "export" / "images").rglob("*.png"))
    model = load_model(str(BEFORE / "base"), device="cpu", dtype="bfloat16")  # as its plan.json says
    for file in files:
        marks = read_provenance(file)
        sample = next(generate(model, marks["prompt"], seed=int(marks["seed"]), steps=int(marks["steps"])))
        assert marks["model_hash"] == model.info.hash
        # Another processor may round otherwise; another image would be far off.
        assert np.abs(sample.image.astype(int) - read_image(file)).mean() < 2
    assert len(open_set(BEFORE / "export", name="synthetic").paths) == len(files) == 6


def test_an_evaluation_is_read(run_cli, tmp_path: Path) -> None:
    out, again = tmp_path / "compared", shutil.copytree(BEFORE / "evaluation", tmp_path / "again")
    code, said, err = run_cli("eval", "--compare", BEFORE / "evaluation", again, "--out", out, "--resamples", 20)
    assert code == 0, err
    assert Path(said.strip().splitlines()[-1]).is_file()
