"""Weight files that lack tensors: a sentence that names the folder, for every part that is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reporters
from tiny import write_whole_clip

from roentgen import load_model
from roentgen.errors import UserError
from roentgen.generators.base import roentgen_json
from roentgen.generators.diffusion.build import _new
from roentgen.generators.masked.tokenizer import load_autoencoder
from roentgen.metrics.extractors import load_extractor
from roentgen.models.dual_encoder import load_dual_encoder
from roentgen.models.loading import check_folder, load_components, load_vae
from roentgen.recipes.report_settings import XreportRecipe
from roentgen.reports import xreport
from roentgen.reports.captioners import open_captioner, write_texts


def without(file: Path, part: str) -> None:
    """Write ``file`` again, whole in itself, without the tensors whose names have ``part``."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "file", "part"),
    [
        ("vae", "diffusion_pytorch_model", "encoder.conv_in"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_out"),
        ("unet", "diffusion_pytorch_model", "conv_in.weight"),
        ("text_encoder", "model", "final_layer_norm"),
    ],
)
def test_parts_of_a_pipeline(tiny_pipeline: Path, tmp_path: Path, name: str, file: str, part: str) -> None:
    import torch

    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    without(folder / name / f"{file}.safetensors", part)
    with pytest.raises(UserError, match=str(folder / name)):
        load_components(folder, check_folder(folder), torch.float32)
    if name == "vae":
        with pytest.raises(UserError, match=str(folder / name)):
            load_vae(folder / name)
        with pytest.raises(UserError, match=str(folder / name)):
            load_model(str(folder), device="cpu").whole_vae  # noqa: B018
    if name == "text_encoder":
        with pytest.raises(UserError, match=str(folder / name)):
            _new(tiny_pipeline / "vae", folder, {})


def test_a_tokenizer_of_images(tmp_path: Path) -> None:
    from diffusers import VQModel

    options = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    sizes = {"block_out_channels": [8], "norm_num_groups": 4, "num_vq_embeddings": 4}
    VQModel(**options, **sizes).save_pretrained(tmp_path / "vq")
    assert load_autoencoder(tmp_path)
    without(tmp_path / "vq" / "diffusion_pytorch_model.safetensors", "conv_out")
    with pytest.raises(UserError, match=str(tmp_path / "vq")):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("part", ["vision_model.encoder.layers.0.mlp", "text_model.embeddings", "visual_projection"])
def test_an_encoder_of_images_and_texts(tmp_path: Path, part: str) -> None:
    folder = write_whole_clip(tmp_path / "clip")
    assert load_dual_encoder(str(folder))
    without(folder / "model.safetensors", part)
    with pytest.raises(UserError, match=f"--dual-encoder {folder}: .* missing"):
        load_dual_encoder(str(folder))


def write_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **sizes)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_an_image_encoder_to_begin_with(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    without(folder / "model.safetensors", "pooler")  # a file of a classifier; nothing here reads it
    values = {**asdict(XreportRecipe()), "image_encoder": str(folder), "image_shape": 32}
    words = reporters.tokenizer(tmp_path / "words")
    assert xreport.build(values, words, max_tokens=20, flag="--image-encoder")
    without(folder / "model.safetensors", "patch_embeddings")
    with pytest.raises(UserError, match=f"--image-encoder {folder}: .* missing"):
        xreport.build(values, words, max_tokens=20, flag="--image-encoder")


def test_a_network_of_features(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "vit")
    image = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    pooled = load_extractor(str(folder))([image])["features"]
    without(folder / "model.safetensors", "pooler")
    one, other = (load_extractor(str(folder))([image])["features"] for _ in range(2))
    assert np.array_equal(one, other) and not np.allclose(
        one, pooled
    )  # the mean of the last states, not random numbers
    without(folder / "model.safetensors", "layernorm_before")
    with pytest.raises(UserError, match=r"extractor .*vit.* missing"):
        load_extractor(str(folder))


def test_a_reporter_of_transformers(tmp_path: Path) -> None:
    folder = reporters.git(tmp_path / "git")
    without(folder / "model.safetensors", "visual_projection")
    with pytest.raises(UserError, match=f"{folder}: .* missing"):
        open_captioner(folder)


@pytest.mark.parametrize("heads", [-1, 3])
def test_a_reporter_whose_shape_makes_no_sense(heads: int, tmp_path: Path) -> None:
    folder = reporters.git(tmp_path / "git")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "num_attention_heads": heads}))
    with pytest.raises(UserError, match=r"config\.json"):
        write_texts(open_captioner(folder), [np.zeros((32, 32), np.uint8)])


@pytest.mark.parametrize("chunks", [0, True, "1", {}, None])
def test_chunks_of_text_that_are_no_number(chunks: Any, tmp_path: Path) -> None:
    (tmp_path / "roentgen.json").write_text(json.dumps({"family": "masked", "text": {"chunks": chunks}}))
    with pytest.raises(UserError, match=r"roentgen\.json: text\.chunks"):
        roentgen_json(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("text_encoder", "layer_norm_eps", "x"), ("text_encoder", "layer_norm_eps", [1]),
     ("unet", "attention_head_dim", "x"), ("unet", "attention_head_dim", ["x", 1]),
     ("unet", "mid_block_scale_factor", "12"), ("unet", "resnet_out_scale_factor", {}),
     ("unet", "down_block_types", ["DownBlock2D"]),
     ("unet", "norm_num_groups", True), ("vae", "norm_num_groups", True)],
)  # fmt: skip
def test_a_value_of_another_type_in_a_configuration(
    part: str, key: str, value: Any, tiny_pipeline: Path, tmp_path: Path, run_cli: Any
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    said = json.loads((folder / part / "config.json").read_text())
    (folder / part / "config.json").write_text(json.dumps({**said, key: value}))
    code, out, err = run_cli("generate", "left", "--model", folder, "--steps", "1", "-o", tmp_path / "out")
    assert code == 2 and part in err and not out, err
