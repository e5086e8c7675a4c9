"""A user's mistakes with generate: one sentence naming flag or file, exit code 2, what is made is kept."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from tiny import write_clip_text

from roentgen import generate, images, load_model
from roentgen.errors import UserError
from roentgen.models import hub


@pytest.fixture
def fails(run_cli, tiny_pipeline, tmp_path):
    """Run generate; assert exit code 2 and one line that matches ``pattern``; return the images kept."""

    def run(pattern, *argv, model=tiny_pipeline):
        arguments = [*argv, *([] if "--out" in argv else ["--out", tmp_path / "out"])]
        code, _, err = run_cli("generate", *arguments, *([] if model is None else ["--model", model]))
        # The progress bar, if the run got so far, redraws itself with carriage returns.
        lines = [line for line in err.splitlines() if line.startswith("roentgen: error:")]
        assert code == 2, err
        assert "Traceback" not in err
        assert len(lines) == 1, err
        assert re.search(pattern, lines[0]), lines[0]
        return sorted((tmp_path / "out").glob("*")) if (tmp_path / "out").is_dir() else []

    return run


@pytest.mark.parametrize(
    ("pattern", "argv"),
    [
        (r"no prompt.*--prompts", []),
        (r"prompt is empty", [""]),
        (r"prompt is empty", ["left effusion", " \n\t"]),
        (r"'123 \?!' has no words", ["123 ?!"]),
        (r"'small .*'\.\.\. has \d+ tokens.*at most 24", ["small left pleural effusion " * 9]),
        (r"--negative-prompt '.*\d+ tokens", ["left", "--negative-prompt", "heart " * 40]),
        (r"--steps 0: must be at least 1", ["left", "--steps", "0"]),
        (r"--steps -3: must be at least 1", ["left", "--steps", "-3"]),
        (r"--steps 1001: must be at most", ["left", "--steps", "1001"]),
        (r"--steps: expected a whole number, got 'many'", ["left", "--steps", "many"]),
        (r"--num-images: expected a whole number", ["left", "--num-images", "1.5"]),
        (r"--guidance -1(\.0)?: must be 0 or more", ["left", "--guidance", "-1"]),
        (r"--guidance: expected a number, got 'nan'", ["left", "--guidance", "nan"]),
        (r"--guidance inf: must be", ["left", "--guidance", ".inf"]),
        (r"--num-images 0: must be at least 1", ["left", "--num-images", "0"]),
        (r"--batch-size 0: must be at least 1", ["left", "--batch-size", "0"]),
        (r"--seed -1: must be", ["left", "--seed", "-1"]),
        (r"--sampler euler: unknown.*dpm\+\+, dpm\+\+-karras, unipc, .*pndm", ["left", "--sampler", "euler"]),
        (r"--format tiff: unknown.*png, jpeg, dicom", ["left", "--format", "tiff"]),
        (r"--dtype int8: unknown", ["left", "--dtype", "int8"]),
        (r"--device tpu7: unknown device", ["left", "--device", "tpu7"]),
        (r"unknown flag '--stepz'; did you mean --steps\?", ["left", "--stepz", "3"]),
        (r"--out .*a\.png is one file, but 2 images", ["left", "--out", "a.png", "--num-images", "2"]),
        (r"--format png does not fit --out a\.dcm", ["left", "--out", "a.dcm", "--format", "png"]),
        (r"two images would be written to .*left_0\.png", ["left", "left"]),
        (r"nowhere\.csv", ["--prompts", "nowhere.csv"]),
    ],
)
def test_bad_settings(fails, pattern, argv):
    assert fails(pattern, *argv) == []


def test_gpu_where_there_is_none(fails, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fails(r"--device cuda: no CUDA GPU.*--device cpu", "left", "--device", "cuda")


def test_gpu_number_that_does_not_exist(fails, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    fails(r"--device cuda:3: there are 1 GPUs", "left", "--device", "cuda:3")


def test_unknown_yaml_key(fails, tmp_path):
    (tmp_path / "c.yaml").write_text("stepz: 3\n")
    fails(r"'stepz'", "left", "--config", tmp_path / "c.yaml")


def test_yaml_that_is_none(fails, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: [1\n")
    fails(r"c\.yaml|[Yy][Aa][Mm][Ll]|config", "left", "--config", tmp_path / "c.yaml")
    fails(r"missing\.yaml", "left", "--config", tmp_path / "missing.yaml")


# ------------------------------------------------------------------------------------------ models


def test_unknown_model(fails):
    fails(r"--model mimi: unknown model; did you mean mini\?.*roentgen-v2", "left", model="mimi")


def test_shipped_model_missing(fails, monkeypatch, tmp_path):
    import dataclasses

    lost = dataclasses.replace(hub.NAMED["mini"], folder=tmp_path / "mini")
    monkeypatch.setitem(hub.NAMED, "mini", lost)
    fails(r"--model mini: its weights are missing.*--model PATH", "left", model=None)


def test_folder_that_is_no_pipeline(fails, tmp_path):
    fails(r"not a diffusers pipeline \(no model_index\.json\)", "left", model=tmp_path)
    (tmp_path / "file").write_text("x")
    fails(r"is a file; pass the folder", "left", model=tmp_path / "file")


def test_pipeline_of_another_kind(fails, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    fails(r"model_index\.json: not a Stable Diffusion pipeline \(no unet\)", "left", model=folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["os", "system"]}))
    fails(r"unet comes from 'os'", "left", model=folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "NoSuchUNet"]}))
    fails(r"unet comes from 'diffusers' as 'NoSuchUNet', which is not loaded", "left", model=folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "NoSuchScheduler"]}))
    fails(r"needs diffusers\.NoSuchScheduler", "left", model=folder)
    (folder / "model_index.json").write_text("{")
    fails(r"model_index\.json: cannot be read as JSON", "left", model=folder)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_missing_truncated_or_pointer(fails, tiny_pipeline, tmp_path, part):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    file = next((folder / part).glob("*.safetensors"))
    whole = file.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 20, 0):
        file.write_bytes(whole[:cut])
        fails(rf"{part}/.*safetensors: truncated or damaged", "left", model=folder)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    fails(r"Git LFS pointer.*git lfs pull", "left", model=folder)
    file.unlink()
    fails(rf"{part} has no weights; fetch the model again", "left", model=folder)
    shutil.rmtree(folder / part)
    fails(rf"the folder {part} is missing", "left", model=folder)


def test_weights_of_another_shape(fails, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "block_out_channels": [16, 16]}))
    fails(r"m/unet: cannot be loaded as UNet2DConditionModel", "left", model=folder)


def test_damaged_tokenizer(fails, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    for file in (folder / "tokenizer").iterdir():
        file.write_text("{")
    fails(r"m/tokenizer: cannot be loaded as CLIPTokenizer", "left", model=folder)


@pytest.mark.usefixtures("hub_cache")
def test_hub_without_network(fails, monkeypatch):
    def download(hub_id, choose):
        raise OSError("network is unreachable")

    monkeypatch.setattr(hub, "fetch", download)
    fails(r"--model sd-1\.4: CompVis/.*cannot be reached.*hf download CompVis/", "left", model="sd-1.4")


@pytest.mark.usefixtures("hub_cache")
def test_hub_gated_or_absent(monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None)
    for error, pattern in (
        (errors.GatedRepoError, "gated; accept its terms"),
        (errors.RepositoryNotFoundError, "no public model nobody/nothing"),
    ):

        def download(hub_id, choose, error=error):
            raise error("no", response=response)

        monkeypatch.setattr(hub, "fetch", download)
        with pytest.raises(UserError, match=pattern):
            load_model("nobody/nothing", device="cpu")


def test_text_settings_and_encoder_that_do_not_fit(fails, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    settings = json.loads((folder / "roentgen.json").read_text())
    (folder / "roentgen.json").write_text(json.dumps({**settings, "text": {"chunks": 0}}))
    fails(r"roentgen\.json: text\.chunks is 0; it must be a whole number from 1", "left", model=folder)
    (folder / "roentgen.json").write_text(json.dumps({**settings, "text": "long"}))
    fails(r"roentgen\.json: text is no table", "left", model=folder)

    folder = write_clip_text(tmp_path / "other", layers=1, vocabulary=40)
    whole = shutil.copytree(tiny_pipeline, tmp_path / "mismatched")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, whole / "text_encoder" / name)
    fails(r"--model .*mismatched: the tokenizer has \d+ tokens but its text encoder knows 40", "left", model=whole)


def test_text_encoder_lacks_weights(fails, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "m")
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 2}))
    fails(r"m/text_encoder: 16 weights of CLIPTextModel are missing", "left", model=folder)


# -------------------------------------------------------------------------------------------- LoRA


def test_lora_that_is_not_there_or_damaged(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("roentgen.models.loading.load_components", lambda *_: pytest.fail("loaded"))
    fails(r"--lora nowhere: no such file.*pytorch_lora_weights\.safetensors", "left", "--lora", "nowhere")
    fails(r"--lora .*: no such file, and no folder with", "left", "--lora", tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    fails(r"weights\.bin: not a \.safetensors file", "left", "--lora", tmp_path / "weights.bin")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 40)
    fails(r"cut\.safetensors: truncated or damaged", "left", "--lora", tmp_path / "cut.safetensors")


def test_lora_of_another_model(fails, tmp_path):
    import torch
    from safetensors.torch import save_file

    file, query = tmp_path / "x.safetensors", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

    def pair(module, width):
        shapes = {"lora_A": (2, width), "lora_B": (width, 2)}
        return {f"{module}.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}

    for state, pattern in (
        ({"weight": torch.ones(1)}, r"does not fit this model \(weight\)"),
        (pair("transformer.blocks.0.to_q", 8), r"does not fit this model \(transformer\."),
        (pair("text_encoder_2.layers.0.q_proj", 8), r"does not fit this model \(text_encoder_2\."),
        (pair("unet.mid_block.attentions.9.to_q", 8), r"does not fit this model"),
        (pair(query, 320), r"does not fit this model"),
        (pair(query, 8) | pair("unet.mid_block.attentions.9.to_q", 8), r"4 of its tensors are for the unet.*takes 2"),
        (pair("text_encoder.text_model.encoder.layers.7.self_attn.q_proj", 16), r"does not fit this model"),
    ):
        save_file(state, file)
        fails(pattern, "left", "--lora", file)


def test_lora_without_peft(fails, tmp_path, monkeypatch):
    import sys

    import torch
    from safetensors.torch import save_file

    save_file({"unet.x.lora_A.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    fails(
        r"--lora needs the package peft; install it with `pip install peft`",
        "left",
        "--lora",
        tmp_path / "x.safetensors",
    )


# ------------------------------------------------------------------------------------------ output


def test_existing_file_stops_before_the_model_is_loaded(fails, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left_1.png").write_text("mine")
    monkeypatch.setattr("roentgen.generators.generate.load_model", lambda *_, **__: pytest.fail("loaded"))
    kept = fails(r"left_1\.png exists already; pass --overwrite", "left", "--num-images", "3")
    assert [path.read_text() for path in kept] == ["mine"]


def test_existing_grid_counts(fails, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "grid.png").write_text("mine")
    fails(r"grid\.png exists already", "left", "--grid")


def test_output_below_a_file(fails, tmp_path):
    (tmp_path / "file").write_text("x")
    fails(r"--out .*file/sub: cannot write there", "left", "--out", tmp_path / "file" / "sub")
    fails(r"--out .*effusion\.tif: \.tif cannot be written", "left", "--out", tmp_path / "effusion.tif")
    fails(r"--out .*file is a file", "left", "--out", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_is_read_only(fails, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    fails(r"--out .*locked: cannot write there", "left", "--out", tmp_path / "locked")


def test_disk_full_keeps_what_is_made(fails, monkeypatch, tmp_path):
    written = []

    def fsync(handle):
        written.append(handle)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images.os, "fsync", fsync)
    kept = fails(r"left_2\.png: no space left on the disk", "left", "--num-images", "4")
    assert [path.name for path in kept] == ["left_0.png", "left_1.png"]
    assert not list((tmp_path / "out").glob(".*"))
    assert all(images.read_image(path).size for path in kept)


def test_nan_image_keeps_what_is_made(fails, monkeypatch):
    from roentgen.generators.diffusion.model import Diffusion

    decode = Diffusion.decode

    def spoiled(model, latents):
        pixels = decode(model, latents)
        pixels[2, 0, 4, 4] = float("nan")
        return pixels

    monkeypatch.setattr(Diffusion, "decode", spoiled)
    kept = fails(r"--dtype: the image of 'left', seed 2, came out as NaN", "left", "--num-images", "4")
    assert [path.name for path in kept] == ["left_0.png", "left_1.png"]


def test_compile_that_does_not_work(tiny_model, monkeypatch):
    import dataclasses

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler")

    model = dataclasses.replace(tiny_model, unet=broken, compiled=True)
    model.unet.config = tiny_model.unet.config
    with pytest.raises(UserError, match=r"--compile: .*no C\+\+ compiler"):
        next(generate(model, "left effusion"))


# ------------------------------------------------------------------------------------- Python API


@pytest.mark.parametrize("prompt", [None, 3, b"left", np.nan, ["left"]])
def test_prompt_that_is_no_text(tiny_model, prompt):
    with pytest.raises(UserError, match="is not text"):
        generate(tiny_model, [prompt])


def test_api_checks_before_the_first_image(tiny_model):
    for settings in ({"steps": 0}, {"guidance": -1.0}, {"num_images": 0}, {"seeds": [1, 2]}, {"seeds": [-1]}):
        with pytest.raises(UserError):
            generate(tiny_model, ["left"], **settings)
    with pytest.raises(UserError, match="no prompt"):
        generate(tiny_model, [])


def test_unknown_commands(run_cli):
    for argv, pattern in (
        (["generat"], "unknown command 'generat'; choose one of generate"),
        (["data", "x"], "choose data prepare or data check"),
        (["info"], "no image"),
        (["info", "none.png"], "none.png: no such image file"),
    ):
        code, out, err = run_cli(*argv)
        assert (code, out) == (2, "")
        assert pattern in err.replace("`", "")
