"""The recipes run for real: launched, killed, resumed, in two processes, and what they save is loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample" / "manifest.csv"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
ENV["ACCELERATE_USE_CPU"] = "true"


def command(script: str, *flags: object, processes: int = 1) -> list[str]:
    # `accelerate launch --cpu` starts one process whatever it is told; several CPU processes are torchrun's.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start = [sys.executable] if processes == 1 else launch
    return [*start, str(ROOT / "train" / script), *(str(flag) for flag in flags)]


def run(script: str, *flags: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *flags, processes=processes), env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 training and 8 validation images of the sample, with absolute paths."""
    import pandas as pd

    table = pd.read_csv(SAMPLE, dtype=str, keep_default_na=False)
    table["image"] = [str(SAMPLE.parent / name) for name in table["image"]]
    rows = pd.concat([table[table["split"] == "train"][:24], table[table["split"] == "val"][:8]])
    path = tmp_path_factory.mktemp("few") / "manifest.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def finetune_flags(few: Path, make_pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    # The window must hold the sample's texts, or most of them would be cut.
    model = make_pipeline(tmp_path_factory.mktemp("model") / "tiny", window=77)
    return [
        *("--manifest", few, "--model", model, "--batch_size", 4, "--precision", "no", "--steps", 2),
        *("--composed", 0.5, "--balance", 0.5, "--rate", 1e-3, "--text_rate", 1e-3, "--warmup", 8),
        *("--sample_every", 10**6, "--validate_every", 10**6, "--log_every", 4),
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    parts = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    return {f"{part}:{k}": v for part in parts for k, v in load_file(out / "pipeline" / part).items()}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(finetune_flags, tmp_path: Path) -> None:
    flags = [*finetune_flags, "--images", 16 * 4, "--checkpoint_every", 8]
    whole = run("finetune.py", *flags, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command("finetune.py", *flags, "--out", broken), env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list((broken / "checkpoints").glob("state-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (broken / "pipeline").exists(), "it was done before it could be killed: use more images"
    resumed = run("finetune.py", *flags, "--out", broken)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing at" in resumed.stdout
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(broken)[key]), key


@pytest.mark.slow
def test_two_processes_train_like_one(finetune_flags, tmp_path: Path) -> None:
    flags = [*finetune_flags, "--images", 16, "--checkpoint_every", 16]
    one = run("finetune.py", *flags, "--out", tmp_path / "one")
    two = run("finetune.py", *flags, "--out", tmp_path / "two", processes=2)
    accumulated = run("finetune.py", *flags, "--out", tmp_path / "parts", "--accumulate", 4)
    for result in (one, two, accumulated):
        assert result.returncode == 0, result.stderr[-2000:]
    assert "on 1 process(es)" in one.stdout and "on 2 process(es)" in two.stdout
    first = weights(tmp_path / "one")
    start = load_file(Path(str(finetune_flags[3])) / "unet" / "diffusion_pytorch_model.safetensors")
    moved = max((v - start[k.split(":")[1]]).abs().max().item() for k, v in first.items() if k.startswith("unet"))
    assert moved > 1e-3
    for other in ("two", "parts"):
        for key, value in weights(tmp_path / other).items():
            assert torch.allclose(value, first[key], atol=moved / 50), (other, key)


@pytest.mark.slow
def test_the_tuned_pipeline_runs_in_roentgen_and_in_stock_diffusers(finetune_flags, tmp_path: Path) -> None:
    result = run("finetune.py", *finetune_flags, "--images", 8, "--out", tmp_path, "--sample_every", 8)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(str(tmp_path / "pipeline"))
    assert list((tmp_path / "samples").glob("*.png"))
    from diffusers import DiffusionPipeline

    from roentgen import generate, load_model

    model = load_model(str(tmp_path / "pipeline"), device="cpu")
    assert next(generate(model, ["left pleural effusion"], steps=2)).image.shape == (32, 32)
    assert "effusion" in model.vocabulary
    stock = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert stock("left pleural effusion", num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.slow
def test_resuming_with_another_rate_says_so(finetune_flags, tmp_path: Path) -> None:
    flags = [*finetune_flags, "--images", 8, "--out", tmp_path]
    assert run("finetune.py", *flags).returncode == 0
    again = run("finetune.py", *flags, "--rate", 0.5)
    assert again.returncode == 2
    assert "rate (0.001 there, 0.5 now)" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--images", "0"], "--images"),
        (["--batch_size", "3", "--accumulate", "2"], "--batch_size"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--prediction_type", "sample"], "--prediction_type"),
        (["--no_such_key", "1"], "no_such_key"),
        (["--rate", "fast"], "rate"),
    ],
)
@pytest.mark.slow
def test_bad_settings_are_one_sentence(flags, word, finetune_flags, tmp_path: Path) -> None:
    result = run("finetune.py", *finetune_flags, "--out", tmp_path, *flags)
    assert result.returncode == 2
    assert word in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_unknown_yaml_key_and_missing_manifest(few: Path, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("imges: 3\n")
    result = run("finetune.py", "--config", config, "--manifest", few, "--out", tmp_path / "run")
    assert result.returncode == 2 and "imges" in result.stderr and "Traceback" not in result.stderr
    result = run("finetune.py", "--manifest", tmp_path / "none.csv", "--model", "mini", "--out", tmp_path / "run")
    assert result.returncode == 2 and "none.csv" in result.stderr


@pytest.mark.slow
def test_dry_run_writes_nothing(finetune_flags, tmp_path: Path) -> None:
    result = run("finetune.py", *finetune_flags, "--out", tmp_path / "run", "--dry-run")
    assert result.returncode == 0 and "24 training" in result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["pca", "learned"])
def test_autoencoder_then_text_then_a_model_from_nothing(encoder: str, few: Path, tmp_path: Path) -> None:
    vae, text, out = tmp_path / "vae", tmp_path / "text", tmp_path / "model"
    shape = ["--size", 32, "--crop", 16, "--channels", "[8, 16, 64]", "--groups", 4, "--latent_channels", 4]
    steps = ["--images", 16, "--batch_size", 4, "--precision", "no"]
    flags = [*shape, *steps, "--encoder", encoder, "--out", vae, "--manifest", few]
    made = run("autoencoder.py", *flags)
    assert made.returncode == 0, made.stderr
    made = run(
        "text_encoder.py", "--manifest", few, "--out", text, "--width", 32, "--layers", 1, "--texts", 128,
        "--corpus", 200, "--window", 77,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    unet = {
        "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    made = run(
        "finetune.py", "--manifest", few, "--vae", vae / "vae", "--text", text, "--unet", json.dumps(unet),
        "--images", 8, "--batch_size", 4, "--composed", 1, "--steps", 2, "--sample_every", 10**6, "--out", out,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    from roentgen import generate, load_model

    assert next(generate(load_model(str(out / "pipeline"), device="cpu"), ["cardiomegaly"])).image.shape == (32, 32)


@pytest.mark.slow
def test_classifier_learns_scores_and_rewards(few: Path, finetune_flags, tmp_path: Path) -> None:
    import numpy as np

    from roentgen.models.classifier import load_classifier

    flags = ["--manifest", few, "--images", 16, "--batch_size", 8, "--min_positive", 2, "--precision", "no"]
    made = run("classifier.py", *flags, "--size", 64, "--out", tmp_path / "pixels")
    assert made.returncode == 0, made.stderr
    judge = load_classifier(tmp_path / "pixels")
    images = np.zeros((3, 256, 256), np.uint8)
    assert judge.predict(images).shape == (3, len(judge.findings))
    assert judge.predict_sides(images).shape == (3, len(judge.findings), 2)
    made = run("classifier.py", *flags, "--size", 32, "--out", tmp_path / "small")
    assert made.returncode == 0, made.stderr
    made = run(
        "finetune.py", *finetune_flags, "--images", 8, "--out", tmp_path / "rewarded", "--reward", tmp_path / "small",
        "--reward_weight", 0.1,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
