"""Shared fixtures: a tiny random Stable Diffusion pipeline on disk, made from configs, no download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Forks
from recipe import load_script

from roentgen import errors

# What the tiny model "has seen in training".
WORDS = [
    "left",
    "right",
    "pleural",
    "effusion",
    "no",
    "acute",
    "process",
    "heart",
    "is",
    "normal",
    "in",
    "size",
    "pa",
    "view",
    "small",
    "large",
]
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_tokenizer(folder: Path, window: int = 24) -> None:
    """A CLIP byte-pair tokenizer that knows ``WORDS`` whole and every other ASCII text by characters."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = ["".join(pieces[:2])]
            vocabulary.append(pieces[0])
    merges = list(dict.fromkeys(merges))
    vocabulary = [*dict.fromkeys(vocabulary), *SPECIAL]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": window,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "unk_token": SPECIAL[1],
        "pad_token": SPECIAL[1],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_pipeline(folder: Path, *, channels: int = 1, window: int = 24, prediction: str = "v_prediction") -> Path:
    """Save a random StableDiffusionPipeline that makes 32 x 32 images, with a ``roentgen.json``."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_tokenizer(folder / "tokenizer", window)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        sample_size=32,
    )
    with torch.no_grad():  # a random decoder makes even grey: stretch it, so that comparisons see differences
        vae.decoder.conv_out.weight.mul_(4)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=window,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            prediction_type=prediction, clip_sample=False, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    settings = {
        "name": "tiny",
        "version": "0",
        "licence": "Apache-2.0",
        "defaults": {"steps": 3, "guidance": 3.0, "sampler": "dpm++"},
        "vocabulary": WORDS,
    }
    (folder / "roentgen.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Path]:
    """``write_pipeline``, for tests that need their own folder."""
    return write_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny one-channel pipeline; read-only by agreement: copy it before changing it."""
    return write_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_pipeline: Path) -> Any:
    """The tiny pipeline, loaded on the CPU in float32."""
    from roentgen import load_model

    return load_model(str(tiny_pipeline), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def trainable_model(tiny_pipeline: Path) -> Any:
    """The tiny pipeline as diffusers' and transformers' own modules, on the CPU in float32."""
    from roentgen import load_model

    return load_model(str(tiny_pipeline), device="cpu", dtype="float32", trainable=True)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs Python programs in processes of their own, without the seconds in which other packages are imported."""
    with Forks() as server:
        yield server


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line as the console script does; returns exit code, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        from roentgen import cli

        capsys.readouterr()
        code = errors.run(lambda: cli.main([str(word) for word in argv]), prog="roentgen")
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def grey() -> np.ndarray:
    """A uint8 [37, 41] picture with every grey level and no symmetry."""
    return (np.arange(37 * 41).reshape(37, 41) % 256).astype(np.uint8)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Path]:
    """An empty Hugging Face cache; call it with a hub id and a folder to put a copy of the folder there."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))

    def put(hub_id: str, folder: Path) -> Path:
        place = root / f"models--{hub_id.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0123")
        return shutil.copytree(folder, place / "snapshots" / "0123")

    return put


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic set in all formats, as the engine leaves them: without the work folder. Read only."""
    from records import write_set

    out = write_set(tmp_path_factory.mktemp("whole") / "set")
    shutil.rmtree(out / ".work")
    return out


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's caches below the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Any:
    """The script of benchmarks that a module of tests is about, by its ``SCRIPT``."""
    return load_script(f"benchmarks/{request.module.SCRIPT}.py")
