"""Masked transformers: what is masked when, sampling, folders; the recipes are in test_masked_recipes.py."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked import Tiny, make_tiny
from recipe import good

from roentgen import load_model
from roentgen.errors import UserError
from roentgen.generators.generate import generate
from roentgen.generators.masked import process as P
from roentgen.generators.masked.sampling import Sampling
from roentgen.generators.masked.tokenizer import ImageTokenizer, use


@pytest.fixture(scope="module")
def tiny(make_pipeline: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("masked"), make_pipeline)


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has been trained for four steps."""
    out = tmp_path_factory.mktemp("trained")
    good(*tiny.flags, "--out", out, "--name", "tiny-masked", "--rate", 0.01, "--composed", 0.5, name="masked")
    return out / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(str(folder), device="cpu")


# ------------------------------------------------------------------------------------------- process


@pytest.mark.parametrize("schedule", sorted(P.SCHEDULES))
@pytest.mark.parametrize("lag", [0.0, 0.15, 0.5])
def test_everything_is_masked_first_and_nothing_last_and_group_0_is_ahead(schedule: Any, lag: float) -> None:
    way = P.Process(schedule, lag).count(torch.linspace(0, 1, 33), 256, 4)
    assert way[0].tolist() == [256] * 4 and way[-1].tolist() == [0] * 4
    assert (way[1:] <= way[:-1]).all()
    assert (way[:, :-1] <= way[:, 1:]).all()
    assert (lag == 0) == bool((way[16] == way[16, 0]).all())


def test_a_mask_has_as_many_sites_as_the_process_says() -> None:
    process, progress = P.Process(), torch.tensor([0.0, 0.3, 0.6, 0.99])
    mask = P.random_mask(process, progress, torch.rand(4, 64, 3))
    assert torch.equal(mask.sum(1), process.count(progress, 64, 3))


def test_halton_order_is_a_permutation_that_covers_the_picture_early() -> None:
    order = P.halton_order(16, 16)
    assert sorted(order.tolist()) == list(range(256))
    quarters = [(int(p) // 128, int(p) % 16 // 8) for p in order[:24]]
    assert all(5 <= quarters.count((row, column)) <= 7 for row in (0, 1) for column in (0, 1))


def test_codes_are_drawn_in_proportion() -> None:
    chances = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = P.pick(chances.expand(1000, 4), (torch.arange(1000) + 0.5) / 1000)
    assert torch.bincount(drawn, minlength=4).tolist() == [100, 0, 600, 300]


def test_top_k_keeps_a_share_of_the_codes() -> None:
    kept = P.keep_top(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 0.5)
    assert kept.isfinite().tolist() == [[False, True, False, True]]


def test_fill_takes_the_best_of_the_masked_sites() -> None:
    codes, proposed = torch.tensor([[5], [-1], [-1], [-1]]), torch.tensor([[0], [1], [2], [3]])
    filled = P.fill(codes, proposed, torch.tensor([[9.0], [0.1], [0.3], [0.2]]), [2])
    assert filled[:, 0].tolist() == [5, -1, 2, 3]


# --------------------------------------------------------------------------------------- tokenizer


def test_codes_are_the_nearest_centres(tiny: Tiny) -> None:
    made = ImageTokenizer.load(tiny.tokenizer)
    assert made.sizes == (8, 16) and made.channels == (1, 3)
    values = torch.randn(2, 4, 8, 8)
    codes = made.quantise(values)
    assert codes.shape == (2, 64, 2)
    wanted = torch.cdist(values[1, 1:, 2, 3][None], made.centres[1]).argmin()
    assert codes[1, 2 * 8 + 3, 1] == wanted
    back = made.dequantise(codes, 8)
    assert torch.equal(back[1, 1:, 2, 3], made.centres[1][wanted])
    assert torch.equal(made.quantise(back), codes)


def test_a_decoder_may_change_and_an_encoder_may_not(tiny: Tiny, tmp_path: Path) -> None:
    made = ImageTokenizer.load(tiny.tokenizer)
    made.autoencoder.decoder.conv_out.bias.add_(0.1)
    made.autoencoder.save_pretrained(tmp_path / "vae")
    shutil.copytree(tiny.tokenizer / "codes", tmp_path / "codes")
    assert ImageTokenizer.load(tmp_path).hash == made.hash
    made.autoencoder.encoder.conv_in.bias.add_(0.1)
    made.autoencoder.save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="another autoencoder"):
        ImageTokenizer.load(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_loads_in_any_precision(folder: Path, model: Any, dtype: str, tmp_path: Path) -> None:
    """What it was trained on is told by the weights as they are stored: float16 is what a GPU loads."""
    other = load_model(str(folder), device="cpu", dtype=dtype)
    assert other.info.dtype == dtype and other.codes.hash == model.codes.hash and other.info.hash == model.info.hash
    one, two = (next(generate(each, "left", steps=2, seed=3)).image.astype(int) for each in (model, other))
    assert one.shape == two.shape
    other.codes.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "codes" / "config.json").read_text())["latents"] == model.codes.key


def test_perplexity_is_the_number_of_codes_in_equal_use() -> None:
    assert use(torch.tensor([0, 1, 2, 3]), 8) == (0.5, pytest.approx(4.0))
    assert use(torch.tensor([0, 0, 0, 0]), 8) == (0.125, pytest.approx(1.0))


# ------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("sampler", ["halton", "confidence"])
def test_an_image_depends_on_its_text_and_seed_and_not_on_its_batch(model: Any, sampler: str) -> None:
    def images(texts: list[str], seeds: list[int], batch_size: int) -> list[np.ndarray]:
        made = generate(model, texts, seeds=seeds, batch_size=batch_size, steps=3, guidance=3, sampler=sampler)
        return [sample.image for sample in made]

    texts = ["left pleural effusion", "heart is normal in size", "left pleural effusion"]
    together = images(texts, [1, 2, 3], 3)
    for text, seed, image in zip(texts, [1, 2, 3], together, strict=True):
        assert np.abs(images([text], [seed], 1)[0].astype(int) - image).max() <= 1  # the decoder's rounding
    assert np.abs(together[0].astype(int) - together[2]).max() > 10


@pytest.mark.parametrize("setting", [{"guidance": 5.0}, {"temperature": 0.2}, {"top_k": 0.2}, {"steps": 5},
                                     {"sampler": "confidence"}, {"negative_prompt": "heart"},
                                     {"guidance_schedule": "linear"}])  # fmt: skip
def test_every_setting_matters(model: Any, setting: dict[str, Any]) -> None:
    # The text must matter for guidance to: a network of four steps hardly reads.
    usual = {"steps": 4, "guidance": 3.0}
    plain, other = (
        torch.cat([*model.fill(["left effusion"], [0], model.sampling(**{**usual, **given}))][-1:])
        for given in ({}, setting)
    )
    assert (plain >= 0).all() and (other >= 0).all()
    assert not torch.equal(plain, other)


def test_each_step_fills_more_and_keeps_what_it_has(model: Any) -> None:
    states = [*model.fill(["left effusion"], [0], model.sampling(steps=4))]
    assert len(states) == 4 and not (states[-1] < 0).any()
    for before, after in itertools.pairwise(states):
        assert (after < 0).sum() < (before < 0).sum()
        assert torch.equal(after[before >= 0], before[before >= 0])


def test_padding_of_a_text_is_not_read(model: Any) -> None:
    text, other = model.encode_text("left effusion"), model.encode_text("no acute process heart is normal in size")
    assert len(text) < len(other)
    codes = torch.full((1, 64, 2), -1)
    padded = torch.zeros(1, len(other), text.shape[1])
    padded[0, : len(text)] = text
    seen = torch.arange(len(other))[None] < len(text)
    with torch.no_grad():
        alone = model.transformer(codes, text[None], torch.ones(1, len(text), dtype=torch.bool))
        first = model.transformer(codes, padded, seen)
        second = model.transformer(codes, torch.where(seen[..., None], padded, 7.0), seen)
    assert torch.allclose(alone, first, atol=1e-5) and torch.allclose(first, second, atol=1e-6)


def test_it_is_marked_and_says_its_settings(model: Any) -> None:
    (sample,) = generate(model, "left effusion", steps=3, temperature=1.2)
    said = sample.provenance
    assert said["synthetic"] == "true" and said["model"] == "model" and said["temperature"] == "1.2"
    assert said["steps"] == "3" and said["sampler"] == "halton"


@pytest.mark.parametrize(
    ("setting", "flag"),
    [({"steps": 65}, "--steps 65"), ({"sampler": "dpm++"}, "--sampler"), ({"top_k": 0}, "--top-k"),
     ({"temperature": -1}, "--temperature"), ({"colour": 1}, "--colour")],
)  # fmt: skip
def test_settings_out_of_range_are_named(model: Any, setting: dict[str, Any], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        model.sampling(**setting)


def test_guidance_and_temperature_follow_their_schedules() -> None:
    ramp = Sampling(steps=5, guidance=3, guidance_schedule="linear", temperature=1.3, temperature_end=0.3)
    assert ramp.guidance_at(0) == 1 and ramp.guidance_at(0.5) == 2
    assert ramp.temperature_at(0) == 1.3 and ramp.temperature_at(0.8) == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------- folders


def test_a_damaged_or_mixed_folder_is_one_sentence(folder: Path, tiny: Tiny, tmp_path: Path, run_cli: Any) -> None:
    def broken(change: Callable[[Path], None], word: str) -> None:
        other = tmp_path / word.replace("/", "-")
        shutil.copytree(folder, other)
        change(other)
        code, out, err = run_cli("generate", "effusion", "--model", other, "-o", tmp_path / "out")
        assert code == 2 and word in err and "Traceback" not in err and not out, err

    def other_codes(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = path / "codes" / "model.safetensors"
        save_file({key: value + 1 for key, value in load_file(file).items()}, file)

    broken(other_codes, "another image tokenizer")
    broken(lambda path: shutil.rmtree(path / "transformer"), "without a transformer")
    broken(lambda path: (path / "transformer" / "model.safetensors").write_bytes(b"cut"), "model.safetensors")
    broken(lambda path: shutil.rmtree(path / "text_encoder"), "text_encoder")
    code, _, err = run_cli("generate", "effusion", "--model", tiny.tokenizer, "-o", tmp_path / "out")
    assert code == 2 and "without a transformer" in err


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("process", "lag", [0.1]), ("process", "schedule", "square root"), ("process", "lag", 7), ("shape", "heads", "x"),
     ("shape", "width", None), ("fit", "codes", 5), ("fit", "side", -1), ("fit", "more", 1)],
)  # fmt: skip
def test_each_value_of_a_transformers_config_is_checked(
    folder: Path, section: str, key: str, value: Any, tmp_path: Path, run_cli: Any
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    said = json.loads((other / "transformer" / "config.json").read_text())
    said[section][key] = value
    (other / "transformer" / "config.json").write_text(json.dumps(said))
    code, out, err = run_cli("generate", "effusion", "--model", other, "-o", tmp_path / "out")
    assert code == 2 and not out and key in err and "transformer" in err, err


def test_a_lora_is_refused_in_a_sentence(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    from safetensors.torch import save_file

    save_file({"unet.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "pytorch_lora_weights.safetensors")
    code, _, err = run_cli("generate", "effusion", "--model", folder, "--lora", tmp_path, "-o", tmp_path / "out")
    assert code == 2 and "--lora" in err


def test_the_commands_take_it_as_any_model(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    flags = ("--model", folder, "--steps", 3, "-o", tmp_path / "out")
    code, out, err = run_cli("generate", "left effusion", "--json", "--seed", 4, "--sampler", "confidence", *flags)
    assert code == 0, err
    said = json.loads(out)
    assert said["sampler"] == "confidence" and said["steps"] == 3 and said["width"] == 32
    code, out, _ = run_cli("info", said["path"])
    assert code == 0 and "sampler: confidence" in out and "synthetic: true" in out


# ---------------------------------------------------------------------------------------- show steps


@pytest.mark.parametrize("family", ["diffusion", "masked"])
def test_steps_end_with_the_image_and_are_marked(
    family: str, folder: Path, tiny_pipeline: Path, tmp_path: Path, run_cli: Any
) -> None:
    from PIL import Image

    name = folder if family == "masked" else tiny_pipeline
    code, out, err = run_cli(
        "generate", "left effusion", "--model", name, "--steps", 4, "--show-steps", "-o", tmp_path, "--seed", 3
    )
    assert code == 0, err
    image, strip, film = map(Path, out.split())
    assert (strip.name, film.name) == (f"{image.stem}_steps.png", f"{image.stem}_steps.gif")
    with Image.open(film) as frames:
        assert frames.n_frames == 4
        first = np.asarray(frames.convert("L")).astype(int)
        frames.seek(3)
        assert np.abs(np.asarray(frames.convert("L")).astype(int) - np.asarray(Image.open(image))).max() <= 2
        assert np.abs(first - np.asarray(frames.convert("L"))).max() > 5
    for path in (strip, film):
        code, out, _ = run_cli("info", path)
        assert code == 0 and "synthetic: true" in out and "prompt: left effusion" in out
    code, _, err = run_cli("generate", "left effusion", "--model", name, "--show-steps", "-o", tmp_path, "--seed", 3)
    assert code == 2 and "--overwrite" in err


def test_a_familys_own_settings_are_given_by_name(
    folder: Path, tiny_pipeline: Path, tmp_path: Path, run_cli: Any
) -> None:
    def run(model: Path, *settings: str) -> tuple[int, str, str]:
        return run_cli("generate", "effusion", "--model", model, "-o", tmp_path, "--overwrite", "--setting", *settings)

    code, out, err = run(folder, "temperature=1.2", "top-k=0.5")
    assert code == 0, err
    assert "temperature: 1.2\n" in run_cli("info", out.strip())[1]
    assert "--top-k" in run(folder, "top_k=0")[2]
    assert run(folder, "temperature")[0] == 2 and run(folder, "colour=red")[0] == 2
    code, _, err = run(tiny_pipeline, "temperature=1.2")
    assert code == 2 and "temperature" in err and len(err.splitlines()) == 1
