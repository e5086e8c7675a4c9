"""What a training run refuses before it begins, what it does not tell others, and models as people have them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from forks import Forks
from recipe import few_rows, finetune, refused
from tiny import write_clip_text

from roentgen import generate, load_model
from roentgen.errors import UserError
from roentgen.generators.diffusion.sampling import PREDICTION_TYPES, make_solver
from roentgen.prompts import Labels
from roentgen.training.batches import MIN_PATIENTS, batch_texts, shareable_words


@pytest.fixture(scope="module")
def flags(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    manifest = few_rows(tmp_path_factory.mktemp("guards") / "few", train=8, val=2)
    return [*("--manifest", manifest, "--model", tiny_pipeline, "--images", 4, "--batch_size", 4, "--precision", "no")]


# ------------------------------------------------------------------------------- before anything is written


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--accumulate 1"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "--precision no"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "--compile"),
    ],
)
def test_environment_and_flags_must_agree(
    name: str, value: str, word: str, flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    said = refused(*flags, "--out", tmp_path / "run")
    assert name in said and word in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--prompts", "left pleural effusion " * 12], "--prompts"),
        (["--prompts", "[]"], "--prompts"),
        (["--prompts", ""], "--prompts"),
        (["--prompts", "123"], "--prompts"),
        (["--steps", "0"], "--steps"),
        (["--guidance", "-1"], "--guidance"),
    ],
)
def test_what_is_used_late_is_checked_early(more: list[str], word: str, flags: list[object], tmp_path: Path) -> None:
    assert word in refused(*flags, "--out", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_grid_is_drawn_with_the_sampler_that_is_asked_for(
    flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from roentgen.generators.diffusion import model

    used: list[str] = []
    make = model.make_solver
    monkeypatch.setattr(model, "make_solver", lambda s, sampler, name: used.append(sampler) or make(s, sampler, name))
    done = finetune(*flags, "--out", tmp_path / "run", "--steps", 2, "--sampler", "unipc", "--prompts", "left")
    assert done.code == 0, done.err
    assert used and set(used) == {"unipc"}


# ------------------------------------------------------------------------------------- texts and their words


def test_texts_are_composed_only_where_labels_name_a_finding() -> None:
    rows, texts = [Labels(sex="F"), Labels(findings=("Effusion",), sex="F")], ["as written", "as written"]
    made = batch_texts(rows, texts, [0, 1] * 8, seeds=range(16), composed=1.0, dropout=0.0)
    assert set(made[::2]) == {"as written"} and "as written" not in made[1::2]


def test_no_rare_word_and_no_number_is_told() -> None:
    many = [f"p{number}" for number in range(MIN_PATIENTS)]
    table = pd.DataFrame(
        {
            "text": ["Stable granuloma 20531234"] * MIN_PATIENTS + ["Effusion, Mr. Zebulon, MRN 4711"] * 30,
            "patient_id": [*many, *["one"] * 30],
        }
    )
    told = shareable_words(table, [], 0.0)
    assert {"granuloma", "effusion"} <= set(told)  # of many patients; of the shipped vocabulary
    assert not {"zebulon", "mrn", "4711", "20531234"} & set(told)
    few = table[table["patient_id"] != "p0"]
    assert "granuloma" not in shareable_words(few, [], 0.0)


# --------------------------------------------------------------------------------------------------- adapters


def test_adapters_carry_no_path_and_are_read_under_both_names(tiny_pipeline: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors import safe_open

    from roentgen.generators.diffusion.build import start
    from roentgen.models.lora import KOHYA_FILE, LORA_FILE, add_lora, save_lora

    model = start(model=str(tiny_pipeline))
    add_lora(model.unet, model.text_encoder, rank=2, alpha=6)
    torch.manual_seed(0)
    for module in (model.unet, model.text_encoder):
        for name, p in module.named_parameters():
            if "lora_" in name:
                p.data.normal_(std=0.5)
    save_lora(tmp_path / "lora", model.unet, model.text_encoder)
    images = []
    for name in (LORA_FILE, KOHYA_FILE):
        file = tmp_path / "lora" / name
        assert str(tiny_pipeline).encode() not in file.read_bytes()
        loaded = load_model(str(tiny_pipeline), device="cpu", lora=file)
        images.append(next(generate(loaded, "left", steps=2)).image.astype(int))
    plain = next(generate(load_model(str(tiny_pipeline), device="cpu"), "left", steps=2)).image
    assert np.abs(images[0] - images[1]).max() <= 1 and np.abs(images[0] - plain).max() > 5
    with safe_open(tmp_path / "lora" / LORA_FILE, "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
        assert {key.split(".")[1] for key in told} == {
            "r",
            "lora_alpha",
            "target_modules",
            "rank_pattern",
            "alpha_pattern",
        }
        assert all(".text_model." in key for key in file.keys() if key.startswith("text_encoder"))  # noqa: SIM118
    with safe_open(tmp_path / "lora" / KOHYA_FILE, "pt") as file:
        names = set(file.keys())
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in names
        assert all(name.startswith(("lora_unet_", "lora_te_")) for name in names)


# ----------------------------------------------------------------------------------- models as people have them


def test_a_trained_text_encoder_beside_the_base_one_is_used_and_said(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "v2")
    before = load_model(str(folder), device="cpu")
    write_clip_text(folder / "text_encoder_and_tokenizer")
    capsys.readouterr()
    after = load_model(str(folder), device="cpu")
    assert "text_encoder_and_tokenizer/" in capsys.readouterr().err
    assert after.info.hash != before.info.hash
    images = [next(generate(model, "left", steps=2)).image.astype(int) for model in (before, after)]
    assert np.abs(images[0] - images[1]).max() > 1


@pytest.mark.parametrize("sampler", PREDICTION_TYPES)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample", "flow_prediction", "noise"])
def test_a_sampler_fits_the_prediction_type_or_is_refused(tiny_model: Any, sampler: str, predicts: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(tiny_model.scheduler.config, prediction_type=predicts)
    model = dataclasses.replace(tiny_model, scheduler=scheduler)
    if predicts in PREDICTION_TYPES[sampler]:
        assert next(generate(model, "left", steps=2, sampler=sampler)).image.shape == (32, 32)
    else:
        with pytest.raises(UserError, match=f"--sampler {sampler.replace('+', '.')} does not fit .* {predicts}"):
            generate(model, "left", steps=2, sampler=sampler)


def test_a_scheduler_without_betas_and_strange_networks_are_one_sentence(trainable_model: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    from roentgen.generators.diffusion.parts import check_parts

    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no noise schedule"):
        make_solver(FlowMatchEulerDiscreteScheduler(), "dpm++", "tiny")
    parts = {"vae": trainable_model.vae, "unet": trainable_model.unet}
    check_parts("tiny", parts)
    for changes, word in (({"in_channels": 8}, "a model that edits"), ({"out_channels": 8}, "a learned variance")):
        config = type("Config", (), {**dict(trainable_model.unet.config), **changes})
        with pytest.raises(UserError, match=word):
            check_parts("tiny", {**parts, "unet": type("Net", (), {"config": config})})


# ---------------------------------------------------------------------------------------------- roentgen train


def test_recipes_are_listed_and_named(run_cli: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from roentgen.commands.train import RECIPES
    from roentgen.recipes import CONFIGS

    root = Path(__file__).parents[2]
    assert (root / "train" / "configs").resolve() == CONFIGS.resolve()
    for name in (recipe.replace("-", "_") for recipe in RECIPES):
        assert (CONFIGS.parent / f"{name}.py").is_file() and (root / "train" / f"{name}.py").is_file()
    with pytest.raises(SystemExit):
        run_cli("train", "--list")
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in RECIPES) and "quickstart" in said
    code, _, err = run_cli("train", "fintune")
    assert code == 2 and "did you mean finetune" in err
    code, _, err = run_cli("train", "finetune", "--config", "quickstrt")
    assert code == 2 and "did you mean quickstart" in err


def test_under_a_quiet_launcher_a_users_error_is_one_sentence(forks: Forks, tmp_path: Path) -> None:
    words = ["--manifest", tmp_path / "nowhere.csv", "--out", tmp_path / "run"]
    start = ["-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    recipe = Path(__file__).parents[2] / "train" / "finetune.py"
    done = forks(*start, recipe, *words, "--model", "mini")  # the launcher starts the recipe anew
    assert done.code != 0 and "nowhere.csv" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "run").exists()
