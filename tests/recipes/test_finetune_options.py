"""Every option of the fine-tuning recipe, on a tiny pipeline, in this process; and what is refused, in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from recipe import changed, few_rows, finetune, good, part, refused, same
from tiny import write_bert

from roentgen.folders import hold_folder

pytestmark = pytest.mark.slow
PROMPT = "left pleural effusion"


@dataclass(frozen=True)
class Base:
    """A tiny pipeline and what every run here is given."""

    model: Path
    manifest: Path
    flags: tuple[object, ...]


@pytest.fixture(scope="module")
def base(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("options")
    model, manifest = make_pipeline(folder / "tiny", window=77), few_rows(folder / "few")
    flags = [
        *("--manifest", manifest, "--model", model, "--cache", folder / "cache", "--images", 16, "--batch_size", 4),
        *("--precision", "no", "--steps", 2, "--sample_every", 10**6, "--log_every", 4, "--warmup", 4),
        *("--rate", 1e-3, "--text_rate", 1e-3, "--decoder_rate", 1e-3),
    ]
    return Base(model, manifest, tuple(flags))


@pytest.fixture(scope="module")
def plain(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run without further options: its folder and what it said."""
    out = tmp_path_factory.mktemp("plain")
    return out, good(*base.flags, "--out", out).out


def errors_of(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"error ([\d.]+), loss", said)]


def stock(folder: Path, lora: Path | None = None) -> np.ndarray:
    """Latents by stock diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    generator = torch.Generator().manual_seed(0)
    made = pipeline(PROMPT, num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="latent")
    return made.images.numpy()


# ------------------------------------------------------------------------------------- what is trained


def test_unet_alone(base: Base, tmp_path: Path) -> None:
    good(*base.flags, "--out", tmp_path, "--train.text_encoder", "false")
    result = tmp_path / "pipeline"
    assert changed(base.model, result, "unet")
    assert not changed(base.model, result, "text_encoder") and not changed(base.model, result, "vae")


@pytest.mark.parametrize("only, layers", [("crossattn_kv", "k v"), ("crossattn", "q k v out")])
def test_cross_attention_alone(only: str, layers: str, base: Base, tmp_path: Path) -> None:
    good(*base.flags, "--out", tmp_path, "--train.text_encoder", "false", "--train.unet-only", only)
    moved = changed(base.model, tmp_path / "pipeline", "unet")
    assert moved and all(".attn2.to_" in name for name in moved)
    assert {name.split(".attn2.to_")[1].split(".")[0] for name in moved} == set(layers.split())
    assert not changed(base.model, tmp_path / "pipeline", "text_encoder")


@pytest.mark.parametrize("without", [["--no-train.unet"], ["--lora.rank", 2]], ids=["frozen", "adapters"])
def test_a_choice_among_weights_that_are_not_trained_is_refused(without: list, base: Base, tmp_path: Path) -> None:
    said = refused(*base.flags, "--out", tmp_path, "--train.unet-only", "crossattn", *without)
    assert "--train.unet-only" in said


def test_text_encoder_alone(base: Base, tmp_path: Path) -> None:
    good(*base.flags, "--out", tmp_path, "--train.unet", "false")
    result = tmp_path / "pipeline"
    assert changed(base.model, result, "text_encoder")
    assert not changed(base.model, result, "unet") and not changed(base.model, result, "vae")


def test_decoder_alone_leaves_latents_as_they_are(base: Base, tmp_path: Path) -> None:
    off = ["--train.unet", "false", "--train.text_encoder", "false", "--train.vae_decoder", "true"]
    good(*base.flags, *off, "--out", tmp_path)
    result = tmp_path / "pipeline"
    assert not changed(base.model, result, "unet") and not changed(base.model, result, "text_encoder")
    moved = changed(base.model, result, "vae")
    assert {name.split(".")[0] for name in moved} == {"decoder", "post_quant_conv"}


def test_the_decoder_beside_the_others_changes_nothing_for_them(
    base: Base, plain: tuple[Path, str], tmp_path: Path
) -> None:
    """Gradients are clipped together, so training is compared by its first loss, and by what moves."""
    said = good(*base.flags, "--train.vae_decoder", "true", "--out", tmp_path).out
    assert errors_of(said)[0] == errors_of(plain[1])[0]
    assert all(changed(base.model, tmp_path / "pipeline", name) for name in ("unet", "text_encoder", "vae"))


# ---------------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("both", [True, False], ids=["both", "unet"])
def test_lora_in_stock_diffusers_in_roentgen_and_merged_agree(both: bool, base: Base, tmp_path: Path, run_cli) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "run"
    flags = [*base.flags, "--out", out, "--lora.rank", 2, "--lora.alpha", 8, "--rate", 0.02, "--text_rate", 0.02]
    flags += [] if both else ["--train.text_encoder", "false"]
    good(*flags, "--until", 8)
    assert "continuing at 8" in good(*flags).out
    merged = out / "pipeline"
    adapted = changed(base.model, merged, "unet")
    assert adapted and all(re.search(r"to_(q|k|v|out\.0)\.weight$", name) for name in adapted)
    assert bool(changed(base.model, merged, "text_encoder")) == both
    assert set(part(merged, "unet")) == set(part(base.model, "unet"))  # an ordinary module, nothing of peft in it
    ours, start = stock(merged), stock(base.model)
    assert np.abs(ours - start).max() > 0.02
    assert np.allclose(stock(base.model, out / "lora"), ours, atol=1e-4)
    images, same_for_both = [], ["--steps", 3, "--guidance", 3, "--sampler", "ddim"]
    for name, model in (("merged", [merged]), ("adapters", [base.model, "--lora", out / "lora"])):
        code, _, err = run_cli("generate", PROMPT, "--model", *model, "--out", tmp_path / name, *same_for_both)
        assert code == 0, err
        (png,) = (tmp_path / name).glob("*.png")
        images.append(read(png))
    assert np.abs(images[0] - images[1]).max() <= 1


def read(png: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(png)).astype(int)


# ------------------------------------------------------------------------------------- text encoders


@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_bert_of_equal_width(layer: str, base: Base, tmp_path: Path) -> None:
    bert, out = write_bert(tmp_path / "bert", width=16, window=64), tmp_path / "run"
    good(*base.flags, "--text_encoder", bert, "--text_layer", layer, "--train.text_encoder", "false", "--out", out)
    result, start = part(out / "pipeline", "text_encoder"), part(bert, ".")
    for name, value in result.items():
        assert np.array_equal(value, start[name]), name
    layers = {name.split(".")[2] for name in result if name.startswith("encoder.layer")}
    assert layers == ({"0", "1"} if layer == "last" else {"0"})
    assert changed(base.model, out / "pipeline", "unet") <= set(part(base.model, "unet"))  # no projection
    assert stock(out / "pipeline").shape == (1, 4, 8, 8)


def test_bert_of_another_width_gets_a_trained_projection(base: Base, tmp_path: Path, run_cli) -> None:
    bert, out = write_bert(tmp_path / "bert", width=24, window=64), tmp_path / "run"
    flags = [*base.flags, "--text_encoder", bert, "--train.text_encoder", "false", "--out", out]
    good(*flags, "--rate", 0, "--schedule", "constant")
    untouched = part(out / "pipeline", "unet")
    new = {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    assert changed(base.model, out / "pipeline", "unet") == new  # every other weight starts from the pipeline's
    shutil.rmtree(out)
    good(*flags)
    trained = part(out / "pipeline", "unet")
    assert all(not np.array_equal(untouched[name], trained[name]) for name in new)
    assert stock(out / "pipeline").shape == (1, 4, 8, 8)
    images = tmp_path / "images"
    code, _, err = run_cli("generate", PROMPT, "--model", out / "pipeline", "--out", images)
    assert code == 0 and list(images.glob("*.png")), err


def test_the_projection_alone_can_be_trained(base: Base, tmp_path: Path) -> None:
    """With nothing else of the U-Net trained, what is new still learns."""
    flags = [*base.flags, "--text_encoder", write_bert(tmp_path / "bert", width=24, window=64), "--train.unet", "false"]
    good(*flags, "--rate", 0, "--out", tmp_path / "untouched")
    good(*flags, "--out", tmp_path / "run")
    moved = changed(tmp_path / "untouched" / "pipeline", tmp_path / "run" / "pipeline", "unet")
    assert moved == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}


def test_long_texts_in_chunks_are_counted(base: Base, tmp_path: Path) -> None:
    flags = [*base.flags, "--text_window", 24, "--out", tmp_path]
    said = good(*flags, "--text_chunks", 3).out
    told = json.loads((tmp_path / "training.json").read_text())["text"]
    assert told["total"] == 24 and told["chunked"] > 0 and told["cut"] > 0
    assert f"{told['chunked']} of 24 ({told['chunked'] / 24:.1%}) take more than one window" in said
    assert f"{told['cut']} ({told['cut'] / 24:.1%}) are cut" in said and "warning: cut texts" in said
    assert json.loads((tmp_path / "pipeline" / "roentgen.json").read_text())["text"] == {"chunks": 3}
    assert "text_chunks" in refused(*flags, "--text_chunks", 2)


def test_a_hub_encoder_without_network_names_files_and_command(base: Base, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    said = refused(*base.flags, "--text_encoder", "radbert", "--out", tmp_path / "run")
    for word in ("StanfordAIMI/RadBERT", "hf download", "vocab.txt", "config.json", "--text-encoder FOLDER"):
        assert word in said


def test_tokenizer_and_encoder_that_do_not_belong_together(base: Base, tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert", width=16, window=64)
    with (bert / "vocab.txt").open("a") as file:
        file.write("".join(f"word{n}\n" for n in range(50)))
    said = refused(*base.flags, "--text_encoder", bert, "--out", tmp_path / "run")
    assert "tokenizer" in said and "do not belong together" in said


# ---------------------------------------------------------------------------------------------- loss


def test_zero_terminal_snr_is_trained_and_saved(base: Base, tmp_path: Path, plain: tuple[Path, str]) -> None:
    flags = [*base.flags, "--loss.zero_terminal_snr", "true", "--out", tmp_path]
    assert "--loss.min-snr-gamma null" in refused(*flags)
    said = good(*flags, "--loss.min_snr_gamma", "null").out
    config = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert config["rescale_betas_zero_snr"] is True and config["timestep_spacing"] == "trailing"
    assert errors_of(said) != errors_of(plain[1])
    assert np.isfinite(stock(tmp_path / "pipeline")).all()
    other = ["--prediction_type", "epsilon", "--loss.min_snr_gamma", "null", "--out", tmp_path / "epsilon"]
    assert "v_prediction" in refused(*flags, *other)


def test_noise_offset_and_balance_change_the_loss(base: Base, tmp_path: Path, plain: tuple[Path, str]) -> None:
    offset = errors_of(good(*base.flags, "--loss.noise_offset", 0.5, "--out", tmp_path / "offset").out)
    assert offset[0] != errors_of(plain[1])[0]
    balanced = good(*base.flags, "--loss.balance", 1, "--out", tmp_path / "balance").out
    assert errors_of(balanced)[0] == errors_of(plain[1])[0]  # the same error, weighted otherwise
    totals = [re.findall(r"loss ([\d.]+), reward", said) for said in (balanced, plain[1])]
    assert totals[0][0] != totals[1][0]


# ------------------------------------------------------------------------------------- caches and data


def test_latents_online_are_those_of_the_cache(base: Base, tmp_path: Path, plain: tuple[Path, str]) -> None:
    online = good(*base.flags, "--latents", "online", "--out", tmp_path)
    assert "latents" not in online.err  # none were computed ahead
    assert np.allclose(errors_of(online.out), errors_of(plain[1]), atol=3e-3)


def test_text_states_online_are_those_of_the_cache(base: Base, tmp_path: Path) -> None:
    flags = [*base.flags, "--train.text_encoder", "false", "--cache", tmp_path / "new"]
    cached = good(*flags, "--out", tmp_path / "cache")
    online = good(*flags, "--text_states", "online", "--out", tmp_path / "online")
    assert "text states" in cached.err and "text states" not in online.err
    assert np.allclose(errors_of(online.out), errors_of(cached.out), atol=3e-3)
    ours, theirs = (part(tmp_path / name / "pipeline", "unet") for name in ("cache", "online"))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


def test_shards_train_resume_and_hold_the_same_data(base: Base, tmp_path: Path, run_cli) -> None:
    shards = tmp_path / "shards"
    code, _, err = run_cli("data", "shard", base.manifest, "--out", shards, "--shard-mb", 1)
    assert code == 0, err
    flags = [*base.flags, "--manifest", shards]
    for latents in ("cache", "online"):
        mine = [*flags, "--latents", latents]
        good(*mine, "--out", tmp_path / f"{latents}-whole")
        good(*mine, "--out", tmp_path / latents, "--until", 8)
        assert "continuing at 8" in good(*mine, "--out", tmp_path / latents).out
        assert same(tmp_path / latents / "pipeline", tmp_path / f"{latents}-whole" / "pipeline")
    assert changed(base.model, tmp_path / "cache" / "pipeline", "unet")


def test_parts_of_a_batch_train_like_the_whole(base: Base, plain: tuple[Path, str], tmp_path: Path) -> None:
    good(*base.flags, "--accumulate", 4, "--out", tmp_path)
    for name in ("unet", "text_encoder"):
        whole, parts, start = (part(x, name) for x in (plain[0] / "pipeline", tmp_path / "pipeline", base.model))
        moved = max(np.abs(whole[key] - start[key]).max() for key in whole)
        assert moved > 1e-3
        assert all(np.allclose(whole[key], parts[key], atol=moved / 50) for key in whole)


def test_options_that_only_cost_time_change_nothing(base: Base, plain: tuple[Path, str], tmp_path: Path) -> None:
    good(*base.flags, "--workers", 5, "--validate_every", 4, "--sample_every", 8, "--out", tmp_path)
    assert same(plain[0] / "pipeline", tmp_path / "pipeline")
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2


def test_checkpointed_gradients_are_the_same(base: Base, plain: tuple[Path, str], tmp_path: Path) -> None:
    said = good(*base.flags, "--gradient_checkpointing", "true", "--out", tmp_path).out
    assert errors_of(said) == errors_of(plain[1])


def test_training_json_tells_the_run(plain: tuple[Path, str]) -> None:
    told = json.loads((plain[0] / "training.json").read_text())
    assert told["images"] == 16 and told["training_images"] == 24 and told["settings"]["rate"] == 1e-3
    speed = told["speed"]
    assert speed["images"] == 12 and speed["images_per_second"] > 0 and 0 <= speed["data_wait_share"] <= 1
    assert speed["processes"] == 1 and speed["peak_memory_bytes"] > 10**7
    card = (plain[0] / "pipeline" / "README.md").read_text()
    assert "16 images seen, of 24 training images" in card and str(plain[0].parent) not in card
    assert list((plain[0] / "log").glob("events.*"))


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--precision", "fp8"], "--precision fp8"),
        (["--schedule", "linear"], "--schedule linear"),
        (["--optimizer", "sgd"], "--optimizer sgd"),
        (["--latents", "disk"], "--latents disk"),
        (["--text_states", "disk"], "--text_states disk"),
        (["--text_layer", "third"], "--text_layer third"),
        (["--sampler", "euler9"], "--sampler euler9"),
        (["--prediction_type", "sample"], "--prediction_type"),
        (["--text_encoder", "radbrt"], "did you mean radbert"),
        (["--text_chunks", "0"], "--text_chunks"),
        (["--text_window", "999"], "--text_window"),
        (["--optimizer", "adamw8bit"], "--optimizer adamw8bit"),
        (["--xformers", "true"], "--xformers"),
        (["--images", "0"], "--images"),
        (["--checkpoint_every", "0"], "--checkpoint_every"),
        (["--batch_size", "3", "--accumulate", "2"], "--batch_size"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--no_such_key", "1"], "no_such_key"),
        (["--rate", "fast"], "rate"),
        (["--lora.rank", "-1"], "--lora.rank"),
        (["--lora.rank", "2", "--lora.unet", "false", "--lora.text_encoder", "false"], "--lora.rank"),
        (["--train.unet", "false", "--train.text_encoder", "false"], "nothing to train"),
        (["--caption_dropout", "1"], "--caption_dropout"),
        (["--vae", "somewhere"], "--vae somewhere"),
    ],
)
def test_bad_settings_are_one_sentence(flags: list[str], word: str, base: Base, tmp_path: Path) -> None:
    assert word.replace("_", "-") in refused(*base.flags, "--out", tmp_path / "run", *flags).replace("_", "-")
    assert not (tmp_path / "run" / "pipeline").exists()


def test_lora_on_a_bert_is_refused(base: Base, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    bert = write_bert(tmp_path / "bert", width=16, window=64)
    flags = ["--text_encoder", bert, "--lora.rank", 2, "--out", tmp_path / "run"]
    assert "--lora.text-encoder false" in refused(*base.flags, *flags)


def test_manifests_that_cannot_be_trained_on(base: Base, tmp_path: Path) -> None:
    empty = few_rows(tmp_path / "empty", text="")
    assert "text" in (said := refused(*base.flags, "--manifest", empty, "--out", tmp_path / "run")) and "empty" in said
    alone = few_rows(tmp_path / "alone", train=0)
    assert "split train" in refused(*base.flags, "--manifest", alone, "--out", tmp_path / "run")
    assert "none.csv" in refused(*base.flags, "--manifest", tmp_path / "none.csv", "--out", tmp_path / "run")


@pytest.mark.parametrize("place", ["folder", "webdataset", "webdataset/webdataset"])
def test_exported_sets_are_trained_on(base: Base, tmp_path: Path, run_cli: Callable, place: str) -> None:
    """By their manifest or by their tars; they have no rows in val, so nothing is validated."""
    format, _, inner = place.partition("/")
    flags = ["--per-finding", "2", "--findings", "Effusion,Edema", "--filter", "none", "--steps", "1"]
    code, _, err = run_cli("export", *flags, "--model", base.model, "--format", format, "-o", tmp_path / "set")
    assert code == 0, err
    done = good(*base.flags, "--manifest", tmp_path / "set" / inner, "--out", tmp_path / "run", "--images", 4)
    assert "4 training and 0 validation images" in done.out and "nothing is validated" in done.out
    if format == "webdataset":
        tar = next((tmp_path / "set").rglob("*.tar"))
        tar.write_bytes(tar.read_bytes()[:5000])
        assert "shard-000000.tar" in refused(*base.flags, "--manifest", tmp_path / "set", "--out", tmp_path / "again")


def test_another_number_of_threads_is_said(base: Base, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "run"
    good(*base.flags, "--out", out, "--until", 4, "--checkpoint_every", 4)
    (file,) = (out / "checkpoints").glob("state-*.pt")
    state = torch.load(file, weights_only=True)
    assert state["threads"] == 1
    torch.save(state | {"threads": 64}, file)
    assert "begun with 64 thread(s) and continued with 1" in good(*base.flags, "--out", out).err


def test_unknown_yaml_key(base: Base, tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("imges: 3\n")
    assert "imges" in refused("--config", config, *base.flags, "--out", tmp_path / "run")


def test_two_runs_in_one_folder(base: Base, tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    lock = hold_folder(tmp_path / "run", "--out")
    assert "another run is writing there" in refused(*base.flags, "--out", tmp_path / "run")
    lock.close()
    good(*base.flags, "--out", tmp_path / "run")


def test_dry_run_writes_nothing(base: Base, tmp_path: Path) -> None:
    said = finetune(*base.flags, "--out", tmp_path / "run", "--dry-run").out
    for word in ("24 training", "epochs", "are cut", "M trained", "memory", "disk"):
        assert word in said
    assert not (tmp_path / "run").exists()
