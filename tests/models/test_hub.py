"""Weights: found on this disk or in the Hugging Face cache, picked by name, hashed, and loaded without running code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from roentgen.errors import UserError
from roentgen.generators.generate import generate, load_model
from roentgen.models import hub, loading

PROMPTS = ["left pleural effusion"]


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_variant_alone_is_found_and_named(tiny_pipeline, tmp_path, capsys, variant):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "half")
    for name in ("vae", "unet"):
        file = folder / name / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / f"model.{variant}.safetensors")
    assert hub.weights(folder / "unet").variant == variant
    model = load_model(str(folder), device="cpu")
    assert next(generate(model, PROMPTS[0])).image.shape == (32, 32)
    assert ("its weights are the variant non_ema" in capsys.readouterr().err) == (variant == "non_ema")


def test_weights_are_picked_by_name():
    """Safetensors first, the whole before a variant, all parts of one set, and no other framework's or training's."""
    both = ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "training_args.bin", "flax_model.bin"]
    assert hub.pick_weights(both) == (["model.safetensors"], None)
    assert hub.pick_weights(both[1:]) == (["model.fp16.safetensors"], "fp16")
    assert hub.pick_weights(both[2:]) == (["pytorch_model.bin"], None)
    assert hub.pick_weights(both[3:]) == ([], None)
    name = "diffusion_pytorch_model"
    parts = [f"{name}-0000{part}-of-00002.safetensors" for part in (1, 2)]
    halves = [f"{name}.bf16-0000{part}-of-00002.safetensors" for part in (1, 2)]
    assert hub.pick_weights([*halves, *parts]) == (parts, None)
    assert hub.pick_weights([f"{name}.non_ema.safetensors", *halves]) == (halves, "bf16")
    names = ["model_index.json", "README.md", "safety_checker/model.safetensors", "tokenizer/vocab.json"]
    names += ["unet/config.json", f"unet/{name}.bin", f"unet/{name}.safetensors", "unet/evil.py"]
    wanted = ["model_index.json", "unet/config.json", f"unet/{name}.safetensors", "tokenizer/vocab.json"]
    assert hub.pipeline_files(names) == wanted


def test_a_model_folder_runs_no_code(tiny_pipeline, tmp_path, monkeypatch):
    """Code beside the weights, named wherever diffusers and transformers look for it; nothing may be asked on stdin."""
    folder = shutil.copytree(tiny_pipeline, tmp_path / "evil")
    ran = tmp_path / "ran"
    for place in (".", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        for name in ("evil", "unet", "pipeline", "modeling_evil"):
            (folder / place / f"{name}.py").write_text(
                f"open({str(ran)!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n"
            )
    for file in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "unet/config.json"):
        values = json.loads((folder / file).read_text())
        names = {name: "evil.Evil" for name in ("AutoModel", "CLIPTextModel", "AutoConfig")}
        (folder / file).write_text(json.dumps({**values, "auto_map": {**names, "AutoTokenizer": ["evil.Evil", None]}}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert next(generate(load_model(str(folder), device="cpu"), PROMPTS[0])).image.shape == (32, 32)
    index = json.loads((folder / "model_index.json").read_text())
    for name, entry in (
        ("unet", ["diffusers", "DiffusionPipeline"]),
        ("unet", ["evil", "Evil"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "pipeline"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("vae", ["pipelines", "AutoencoderKL"]),
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, name: entry}))
        with pytest.raises(UserError, match=f"{name} comes from '{entry[0]}'.*which is not loaded"):
            load_model(str(folder), device="cpu")
    assert not ran.exists()


def test_no_home_folder_is_no_crash(tmp_path):
    """A service's user often has none: the shipped model is found all the same, and ``~`` is one sentence."""
    code = (
        "import os, pwd; pwd.getpwuid = lambda *_: {}['nobody']; os.environ.pop('HOME', None)\n"
        "from roentgen.models import hub\n"
        "print(hub.resolve('mini').folder.name, [hub.on_disk(model) is not None for model in hub.NAMED.values()][0])\n"
        "from roentgen.errors import UserError\n"
        "try: hub.resolve('~/model')\n"
        "except UserError as error: print(error)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "mini True\n~/model: the home folder is not known here; write the whole path\n", done.stderr


def test_the_caches_place_is_asked_of_the_hub_library(tiny_pipeline, hub_cache, tmp_path):
    """Every variable that it knows; the copy that ``main`` names, not the newest."""
    old = hub_cache("someone/cxr", tiny_pipeline)
    shutil.copytree(old, old.with_name("4567"))
    places = {"HF_HUB_CACHE": ".", "HUGGINGFACE_HUB_CACHE": ".", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}
    for name, below in places.items():
        root = tmp_path / name
        shutil.copytree(tmp_path / "hub", root / below, dirs_exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in places} | {name: str(root)}
        code = "from roentgen.models import hub; print(hub.snapshot('someone/cxr'), hub.snapshot('someone/else'))"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found = (root / below).resolve() / "models--someone--cxr" / "snapshots" / "0123"
        assert done.stdout == f"{found} None\n", name


def test_model_hash_follows_the_weights(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "copy")
    before = hub.model_hash(folder)
    assert before == hub.model_hash(tiny_pipeline)
    (folder / "roentgen.json").unlink()
    assert hub.model_hash(folder) == before
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert hub.model_hash(folder) != before


def test_hub_cache_is_used_without_network(tiny_pipeline, hub_cache, monkeypatch):
    snapshot = hub_cache("someone/cxr", tiny_pipeline)
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("went to the hub"))
    assert hub.find_folder(hub.resolve("someone/cxr"), check=loading.check_folder) == snapshot
    assert load_model("someone/cxr", device="cpu").info.name == "someone/cxr"


@pytest.mark.usefixtures("hub_cache")
def test_second_hub_id_is_tried(tiny_pipeline, monkeypatch):

    def download(hub_id, choose):
        if hub_id.startswith("stabilityai/"):
            raise OSError("gone")
        return tiny_pipeline

    monkeypatch.setattr(hub, "fetch", download)
    assert hub.find_folder(hub.resolve("sd-2.1-base"), check=loading.check_folder) == tiny_pipeline
