"""The recipes as users start them, each launcher in a process of its own once, and what they save is loaded.

Options, resuming and many processes of train/finetune.py have files of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import CPU, ENVIRON, Forks
from recipe import ROOT, few_rows, finetune, good
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 training and 8 validation images of the sample, with absolute paths."""
    return few_rows(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def finetune_flags(few: Path, make_pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    # The window must hold the sample's texts, or most of them would be cut.
    model = make_pipeline(tmp_path_factory.mktemp("model") / "tiny", window=77)
    return [
        *("--manifest", few, "--model", model, "--batch_size", 4, "--precision", "no", "--steps", 2),
        *("--composed", 0.5, "--balance", 0.5, "--rate", 1e-3, "--text_rate", 1e-3, "--warmup", 8),
        *("--sample_every", 10**6, "--validate_every", 10**6, "--log_every", 4),
    ]


@pytest.mark.slow
def test_the_tuned_pipeline_runs_in_roentgen_and_in_stock_diffusers(finetune_flags, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    words += [ROOT / "train" / "finetune.py", *finetune_flags, "--images", 8, "--out", tmp_path, "--sample_every", 8]
    environ = os.environ | ENVIRON | CPU
    result = subprocess.run(
        [str(word) for word in words], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(str(tmp_path / "pipeline"))
    assert list((tmp_path / "samples").glob("*.png"))
    from diffusers import DiffusionPipeline

    from roentgen import generate, load_model

    model = load_model(str(tmp_path / "pipeline"), device="cpu")
    assert next(generate(model, ["left pleural effusion"], steps=2)).image.shape == (32, 32)
    assert "effusion" in model.info.vocabulary
    stock = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert stock("left pleural effusion", num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["pca", "learned"])
def test_autoencoder_then_text_then_a_model_from_nothing(encoder: str, few: Path, forks: Forks, tmp_path: Path) -> None:
    def launched(*flags: object, name: str) -> None:
        """A recipe's launcher in a process of its own, which must end well."""
        made = forks(ROOT / "train" / f"{name}.py", *flags)
        assert made.code == 0, made.err

    vae, text, out = tmp_path / "vae", tmp_path / "text", tmp_path / "model"
    shape = ["--size", 32, "--crop", 16, "--channels", "[8, 16, 64]", "--groups", 4, "--latent_channels", 4]
    steps = ["--images", 16, "--batch_size", 4, "--precision", "no"]
    flags = [*shape, *steps, "--encoder", encoder, "--out", vae, "--manifest", few]
    train = launched if encoder == "pca" else good  # once as users start them: the launchers are the same
    train(*flags, name="autoencoder")
    if encoder == "pca":  # the decoder goes on, on the same projection with its channels rescaled
        flags[flags.index("pca")], flags[flags.index("--out") + 1] = "start", tmp_path / "next"
        more = ["--consistency_weight", 0.5, "--latent_noise", 0.1, "--gain_jitter", 0.1, "--whitening", 1]
        good(*flags, "--start", vae / "vae", *more, name="autoencoder")
        vae = tmp_path / "next"
    train(
        "--manifest", few, "--out", text, "--width", 32, "--layers", 1, "--texts", 128, "--corpus", 200,
        "--window", 77, name="text_encoder",
    )  # fmt: skip
    unet = {
        "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    train(
        "--manifest", few, "--vae", vae / "vae", "--text", text, "--unet", json.dumps(unet), "--images", 8,
        "--batch_size", 4, "--composed", 1, "--steps", 2, "--sample_every", 10**6, "--out", out, name="finetune",
    )  # fmt: skip
    from roentgen import generate, load_model

    assert next(generate(load_model(str(out / "pipeline"), device="cpu"), ["cardiomegaly"])).image.shape == (32, 32)
    if encoder == "pca":  # the end of the decoder goes on alone, on what the model draws as well
        flags[flags.index("--out") + 1] = tmp_path / "end"
        more = [
            "--decoder-from",
            1,
            "--no-finest-band",
            "--spectrum-weight",
            0.1,
            "--spike-weight",
            0.1,
            "--whitening",
            0,
        ]
        more += ["--generator", out / "pipeline", "--generator-images", 20, "--consistency-weight", 0.5]
        good(*flags, "--start", vae / "vae", *more, name="autoencoder")
        before, after = (
            load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (vae, tmp_path / "end")
        )
        learned = {name for name in before if not before[name].equal(after[name])}
        ends = ("decoder.up_blocks.1", "decoder.up_blocks.2", "decoder.conv_norm_out", "decoder.conv_out")
        assert learned == {name for name in before if name.startswith(ends)}
        flags[flags.index("--out") + 1] = tmp_path / "wrong"
        for wrong, flag in ((["--decoder-from", 3], "--decoder-from"), (["--generator", "mini"], "--generator")):
            result = finetune(*flags, "--start", vae / "vae", *wrong, name="autoencoder")
            assert result.code == 2 and flag in result.err


@pytest.mark.slow
def test_classifier_learns_scores_and_rewards(few: Path, finetune_flags, forks: Forks, tmp_path: Path) -> None:
    import numpy as np

    from roentgen.models.classifier import load_classifier

    flags = ["--manifest", few, "--images", 16, "--batch_size", 8, "--min_positive", 2, "--precision", "no"]
    made = forks(ROOT / "train" / "classifier.py", *flags, "--size", 64, "--out", tmp_path / "pixels")
    assert made.code == 0, made.err
    judge = load_classifier(tmp_path / "pixels")
    images = np.zeros((3, 256, 256), np.uint8)
    assert judge.predict(images).shape == (3, len(judge.findings))
    assert judge.predict_sides(images).shape == (3, len(judge.findings), 2)
    good(*flags, "--size", 32, "--out", tmp_path / "small", name="classifier")
    good(
        *finetune_flags, "--images", 8, "--out", tmp_path / "rewarded", "--reward", tmp_path / "small",
        "--reward_weight", 0.1,
    )  # fmt: skip
