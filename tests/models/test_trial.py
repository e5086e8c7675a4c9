"""Configurations that are sound value by value and describe networks that do not work: a sentence about the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe import few_rows, refused
from safetensors.torch import load_file, save_file

from roentgen import generate, load_model
from roentgen.errors import UserError, is_fault
from roentgen.models import hub, loading
from roentgen.models.text_encoders import load_text_encoder
from roentgen.models.trial import blamed, tried
from roentgen.reports.labels import load_labels
from roentgen.reports.load import MINI_REPORT, find_reporter

TEXT = "left pleural effusion"


def changed(folder: Path, file: str, key: str, value: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("text_encoder/config.json", "num_attention_heads", 0),
        ("unet/config.json", "attention_head_dim", -1),
        ("unet/config.json", "attention_head_dim", -(10**30)),
        ("unet/config.json", "norm_eps", ""),
        ("unet/config.json", "norm_eps", {"": {}}),
        ("unet/config.json", "sample_size", []),
        ("unet/config.json", "sample_size", -(10**30)),
        ("unet/config.json", "downsample_padding", []),
        ("vae/config.json", "norm_num_groups", -1),
    ],
)
def test_a_pipeline_whose_networks_do_not_work(
    tiny_pipeline: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    folder = changed(shutil.copytree(tiny_pipeline, tmp_path / "tiny"), file, key, value)
    with pytest.raises(UserError, match="tiny"):
        list(generate(load_model(str(folder), device="cpu"), TEXT, steps=1))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("text_encoder/config.json", "eos_token_id", -(10**30)),
        ("text_encoder/config.json", "eos_token_id", []),
        ("roentgen.json", "defaults", {"guidance": [[]]}),
        ("roentgen.json", "defaults", {"temperature": "x"}),
        ("roentgen.json", "family", [[]]),
    ],
)
def test_a_masked_transformer_whose_networks_do_not_work(tmp_path: Path, file: str, key: str, value: Any) -> None:
    folder = shutil.copytree(hub.MINI.parent / "mini-masked", tmp_path / "tiny")
    with pytest.raises(UserError, match=r"tiny|roentgen\.json"):
        list(generate(load_model(str(changed(folder, file, key, value)), device="cpu"), TEXT, steps=1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", -1),
        ("size", "x"),
        ("places", None),
        ("places", 1e308),
        ("thresholds", []),
        ("calibration", {}),
    ],
)
def test_a_reporter_whose_settings_do_not_work(tmp_path: Path, key: str, value: Any) -> None:
    folder = shutil.copytree(find_reporter(MINI_REPORT), tmp_path / "reporter")
    image = np.random.default_rng(0).integers(0, 256, (90, 80)).astype(np.uint8)
    with pytest.raises(UserError, match="reporter"):
        reporter = load_labels(changed(folder, "config.json", key, value))
        reporter.strange = None  # noise is no radiograph, and would not be read
        reporter.report(image)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reporter_whose_network_gives_no_numbers(tmp_path: Path, value: float) -> None:
    folder = shutil.copytree(find_reporter(MINI_REPORT), tmp_path / "reporter")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "edge.bias": weights["edge.bias"] * 0 + value}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_labels(folder).report(np.zeros((90, 80), np.uint8))


def test_a_training_of_networks_that_do_not_work(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = changed(shutil.copytree(tiny_pipeline, tmp_path / "tiny"), "unet/config.json", "attention_head_dim", -1)
    manifest = few_rows(tmp_path / "few")
    flags = ("--images", 4, "--batch-size", 2, "--precision", "no", "--sample-every", 100, "--out", tmp_path / "out")
    assert "tiny: its networks fail" in refused("--manifest", manifest, "--model", folder, *flags)


def test_a_panic_in_a_tokenizer(tiny_pipeline: Path, tmp_path: Path) -> None:
    """A panic of a library in Rust is no Exception of Python."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    path = folder / "tokenizer" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("transformers 4 writes vocab.json and merges.txt alone")
    said = json.loads(path.read_text())
    said["model"]["continuing_subword_prefix"] = "../../etc/passwd"
    path.write_text(json.dumps(said))
    try:
        model = load_model(str(folder), device="cpu")
    except UserError as error:
        assert "token" in str(error)
    else:
        list(generate(model, TEXT, steps=1))


@pytest.mark.parametrize("value", [10**30, -(10**30), float("nan"), 1e308])
def test_networks_that_nobody_has_are_not_begun(tiny_pipeline: Path, tmp_path: Path, value: float) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    with pytest.raises(UserError, match="layers_per_block"):
        loading.load_vae(changed(folder, "vae/config.json", "layers_per_block", value) / "vae")
    with pytest.raises(UserError, match="num_hidden_layers"):
        load_text_encoder(str(changed(folder, "text_encoder/config.json", "num_hidden_layers", value)))


def test_faults_that_are_not_the_folders_stay_what_they_are() -> None:
    def fails() -> None:
        raise ValueError("again")

    with pytest.raises(KeyError), blamed(Path("m"), lambda: None):
        raise KeyError("ours")
    with pytest.raises(UserError, match="m: its networks fail"), blamed(Path("m"), fails):
        raise KeyError("theirs")
    for stays in (MemoryError(), KeyboardInterrupt(), UserError("said"), RuntimeError("DefaultCPUAllocator: no")):
        with pytest.raises(type(stays)), blamed(Path("m"), fails):
            raise stays
    assert is_fault(ValueError()) and not is_fault(SystemExit())


def test_generators_stay_generators() -> None:
    class Made:
        info = type("Info", (), {"folder": Path("m")})

        def trial(self) -> None:
            raise ValueError("no heads")

        @tried
        def sample(self, count: int) -> Any:
            yield from range(count)
            raise KeyError("then")

    made = Made().sample(2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(UserError, match="no heads"):
        next(made)
