"""What only a GPU can show; run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipe import ROOT, few_rows, good, part

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_same_seed_gives_the_same_image_as_on_the_cpu(tiny_pipeline) -> None:
    from roentgen import generate, load_model

    images = [
        next(generate(load_model(str(tiny_pipeline), device=device, dtype="float32"), ["left pleural effusion"])).image
        for device in ("cpu", "cuda")
    ]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 2


def test_mini_in_half_precision_is_close_to_single() -> None:
    from roentgen import generate, load_model

    images = [
        next(generate(load_model("mini", device="cuda", dtype=dtype), ["cardiomegaly"], steps=5)).image
        for dtype in ("float16", "float32")
    ]
    assert np.abs(images[0].astype(int) - images[1]).mean() < 4


# ------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def flags(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("gpu")
    return [
        *("--manifest", few_rows(folder / "few"), "--model", make_pipeline(folder / "tiny", window=77)),
        *("--images", 32, "--batch_size", 8, "--steps", 2, "--log_every", 8, "--checkpoint_every", 16, "--warmup", 8),
        *("--rate", 1e-3, "--text_rate", 1e-3, "--cache", folder / "cache", "--prompts", '["left pleural effusion"]'),
    ]


def train(out: Path, *flags: object) -> list[float]:
    """Errors of the log lines of a run on the GPU, all of them numbers, with a result whose weights have moved."""
    said = good(*flags, "--out", out, cpu=False).out
    start = Path(str(flags[flags.index("--model") + 1]))
    for name in ("unet", "text_encoder"):
        before, after = part(start, name), part(out / "pipeline", name)
        assert all(np.isfinite(value).all() for value in after.values())
        assert any(not np.array_equal(before[key], value) for key, value in after.items())
    speed = json.loads((out / "training.json").read_text())["speed"]
    assert speed["peak_memory_bytes"] > 0 and "cpu" not in speed["device"].lower()
    return [float(found) for found in re.findall(r"error ([\d.]+), loss", said)]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_is_close_to_that_on_the_cpu(precision: str, flags: list[object], tmp_path: Path) -> None:
    said = good(*flags, "--precision", "no", "--out", tmp_path / "cpu").out
    expected = [float(found) for found in re.findall(r"error ([\d.]+), loss", said)]
    assert np.allclose(train(tmp_path / "gpu", *flags, "--precision", precision), expected, rtol=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_stopped_run_goes_on(precision: str, flags: list[object], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *flags, "--precision", precision)
    train(tmp_path / "parts", *flags, "--precision", precision, "--until", 16)
    rest = train(tmp_path / "parts", *flags, "--precision", precision)
    assert len(rest) == 2 and np.allclose(rest, whole[2:], rtol=0.02)


def test_eight_bit_optimiser(flags: list[object], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    train(tmp_path, *flags, "--optimizer", "adamw8bit", "--until", 16)
    assert len(train(tmp_path, *flags, "--optimizer", "adamw8bit")) == 2


def test_xformers(flags: list[object], tmp_path: Path) -> None:
    pytest.importorskip("xformers")
    train(tmp_path, *flags, "--xformers", "true")


@pytest.mark.slow
def test_compiled_training_is_the_same(flags: list[object], tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", *flags)
    compiled = train(tmp_path / "compiled", *flags, "--compile", "true", "--sample_every", 16, "--validate_every", 16)
    assert np.allclose(compiled, plain, rtol=0.02)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("config", ["ddp", "fsdp", "zero2", "zero3"])
def test_two_gpus_train_like_one(config: str, flags: list[object], tmp_path: Path) -> None:
    if config.startswith("zero"):
        pytest.importorskip("deepspeed")
    expected = train(tmp_path / "one", *flags)
    start = ["accelerate.commands.launch", "--config_file", ROOT / "train" / "accelerate" / f"{config}.yaml"]
    words = [sys.executable, "-m", *start, "--num_processes", 2, ROOT / "train" / "finetune.py", *flags]
    done = subprocess.run(
        [str(word) for word in [*words, "--out", tmp_path / "two"]],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(error) for error in re.findall(r"error ([\d.]+), loss", done.stdout)]
    assert np.allclose(found, expected, rtol=0.05)


def stable_diffusion(folder: Path) -> Path:
    """A pipeline of the sizes of Stable Diffusion 1.x with random weights; only the tokenizer is tiny."""
    from conftest import write_tokenizer
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder / "tokenizer", 77)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
    }
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(**blocks, layers_per_block=2, latent_channels=4, sample_size=512),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_stable_diffusion_with_its_text_encoder_fits_24_gigabytes(optimizer: str, tmp_path: Path) -> None:
    """U-Net and CLIP, 512 px, batch 8, bf16, weight average, gradient checkpointing."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    out = tmp_path / "out"
    good(
        *("--manifest", few_rows(tmp_path / "few", train=16, val=8), "--model", stable_diffusion(tmp_path / "sd")),
        *("--images", 32, "--batch_size", 8, "--gradient_checkpointing", "true", "--optimizer", optimizer),
        *("--log_every", 8, "--sample_every", 10**6, "--validate_every", 10**6, "--out", out),
        cpu=False,
    )
    speed = json.loads((out / "training.json").read_text())["speed"]
    assert speed["peak_memory_bytes"] < 24e9
