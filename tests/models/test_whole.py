"""Weight files that lack tensors: a sentence that names the folder, for every part that is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from roentgen import load_model
from roentgen.errors import UserError
from roentgen.generators.diffusion.build import _new
from roentgen.generators.masked.tokenizer import load_autoencoder
from roentgen.models.loading import check_folder, load_components, load_vae


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
