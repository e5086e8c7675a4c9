"""Edits: what must not change does not, what may change does, and the way back to noise comes back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from roentgen import Editing, edit, generate, images, load_model
from roentgen.errors import UserError
from roentgen.generators.diffusion import editing as latents
from roentgen.generators.diffusion.model import Diffusion
from roentgen.generators.diffusion.sampling import SAMPLERS, Sampling, make_solver
from roentgen.generators.edit import region_of

TEXT = "left pleural effusion"
QUICK: dict[str, Any] = {"steps": 3}


@pytest.fixture
def film() -> np.ndarray:
    """A uint8 (72, 90) picture that is bright in the middle, as a chest is, without symmetry."""
    y, x = np.mgrid[:72, :90]
    return (200 - np.abs(x - 45) * 3 + 20 * np.sin(y / 5 + x / 9)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def film_file(film: np.ndarray, tmp_path: Path) -> Path:
    Image.fromarray(film).save(tmp_path / "film.png")
    return tmp_path / "film.png"


@pytest.fixture(scope="module")
def inpainting_pipeline(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with a U-Net that reads mask and surroundings, too."""
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("inpainting") / "tiny")
    config = dict(UNet2DConditionModel.load_config(folder / "unet"))
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("invert", [True, False])
@pytest.mark.parametrize("region", ["left", (0.2, 0.3, 0.6, 0.9), "mask"])
def test_pixels_outside_the_region_are_those_of_the_input(
    tiny_model: Diffusion, film: np.ndarray, region: Any, invert: bool
) -> None:
    if region == "mask":
        region = np.zeros(film.shape, dtype=np.uint8)
        region[30:50, 20:60] = 255
    made = next(edit(tiny_model, film, TEXT, region=region, editing=Editing(1.0, invert), **QUICK))
    changed = made.image != film
    assert made.image.shape == film.shape and made.image.dtype == np.uint8
    assert not changed[~made.region].any()
    assert changed[made.region].mean() > 0.3


def test_the_patients_left_is_on_the_images_right() -> None:
    assert region_of((4, 6), "left").tolist() == [[False] * 3 + [True] * 3] * 4
    assert not (region_of((4, 6), "left") & region_of((4, 6), "right")).any()


def test_without_a_region_the_centre_square_changes(tiny_model: Diffusion, film: np.ndarray) -> None:
    made = next(edit(tiny_model, film, TEXT, **QUICK))
    changed = made.image != film
    assert not changed[:, :9].any() and not changed[:, -9:].any() and changed[:, 9:-9].any()
    square = next(edit(tiny_model, film[:, 9:81], TEXT, **QUICK))
    assert (square.image != square.before)[0].any()  # nothing to fade into at the edges of a square


def test_strength_says_how_much_changes(tiny_model: Diffusion, film: np.ndarray) -> None:
    little, much = (
        next(edit(tiny_model, film, TEXT, editing=Editing(strength), steps=10)).image.astype(int) - film
        for strength in (0.1, 1.0)
    )
    assert np.abs(little).mean() < np.abs(much).mean()


def test_seeds_matter_where_noise_is_drawn(tiny_model: Diffusion, film: np.ndarray) -> None:
    fresh = Editing(0.7, invert=False)
    made = list(edit(tiny_model, film, TEXT, editing=fresh, seed=4, num_images=2, **QUICK))
    again = next(edit(tiny_model, film, TEXT, editing=fresh, seed=5, **QUICK))
    assert [one.seed for one in made] == [4, 5]
    assert (made[0].image != made[1].image).any() and (made[1].image == again.image).all()
    with pytest.raises(UserError, match="--num-images 2"):
        edit(tiny_model, film, TEXT, num_images=2)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_inversion_comes_back(make_pipeline: Any, tmp_path: Path, prediction: str) -> None:
    """DDIM from the inverted noise, without a text, gives the latents that were inverted."""
    import torch

    model = load_model(str(make_pipeline(tmp_path / "tiny", prediction=prediction)), device="cpu", dtype="float32")
    assert isinstance(model, Diffusion)
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    solver = make_solver(model.scheduler, "ddim", "tiny")
    solver.set_timesteps(50)
    solver.set_begin_index(20)
    steps = solver.timesteps[20:]
    with torch.inference_mode():
        path = latents.invert(model, x0, steps, solver, beside=None, report=lambda: None)
        text = model.guided_text(["", ""], Sampling(guidance=1))
        back = path[0]
        for step in steps:
            output = model.guided(back, step, text, guidance=1, beside=None)
            back = solver.step(output, step, back, return_dict=False)[0]
    assert len(path) == 30 and (path[0] - x0).abs().mean() > 0.1
    assert (back - x0).abs().mean() < 0.02


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_starts_on_the_way(tiny_model: Diffusion, film: np.ndarray, sampler: str) -> None:
    shares: list[float] = []
    fresh = Editing(0.5, invert=False)
    made = next(edit(tiny_model, film, TEXT, editing=fresh, steps=4, sampler=sampler, on_step=shares.append))
    assert (made.image != film).any() and sum(shares) == pytest.approx(1)


def test_steps_of_the_inversion_count_as_work(tiny_model: Diffusion, film: np.ndarray) -> None:
    shares: list[float] = []
    next(edit(tiny_model, film, TEXT, on_step=shares.append, **QUICK))
    assert sum(shares) == pytest.approx(1) and len(shares) == 6


def test_detail_that_the_autoencoder_loses_stays(
    tiny_model: Diffusion, film: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model changes nothing, the image is the input although the random autoencoder knows no image."""
    true = Diffusion.edit

    def still(self: Diffusion, *rest: Any) -> Any:
        return ((same, same) for _, same in true(self, *rest))

    monkeypatch.setattr(Diffusion, "edit", still)
    kept = next(edit(tiny_model, film, TEXT, **QUICK)).image
    drawn = next(edit(tiny_model, film, TEXT, editing=Editing(detail=False), **QUICK)).image
    assert (kept == film).all() and (drawn != film).any()


@pytest.mark.parametrize("invert", [True, False])
def test_inpainting_models_read_mask_and_surroundings(
    inpainting_pipeline: Path, film: np.ndarray, invert: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(inpainting_pipeline), device="cpu", dtype="float32")
    seen: list[Any] = []
    call = Diffusion.call_unet
    monkeypatch.setattr(
        Diffusion, "call_unet", lambda self, inputs, *a, **k: seen.append(inputs) or call(self, inputs, *a, **k)
    )
    made = next(edit(model, film[:, 9:81], TEXT, region=(0, 0, 0.5, 1), editing=Editing(0.7, invert), **QUICK))
    assert not (made.image != made.before)[~made.region].any()
    mask = seen[0][:, 4]
    assert seen[0].shape[1:] == (9, 8, 8) and mask[..., :4].eq(1).all() and mask[..., 4:].eq(0).all()
    assert next(generate(model, TEXT, steps=1)).image.shape == (32, 32)
    assert seen[-1][:, 4].eq(1).all()


def test_inpainting_models_are_not_trained_here(inpainting_pipeline: Path) -> None:
    from roentgen.generators.diffusion.build import start

    with pytest.raises(UserError, match="an inpainting model"):
        start(model=str(inpainting_pipeline), vae=None, text=None, unet=None)


def test_removing_is_guidance_away_from_the_finding(tiny_model: Diffusion, film: np.ndarray) -> None:
    made = next(edit(tiny_model, film, remove=TEXT, **QUICK))
    assert made.provenance["negative_prompt"] == TEXT and "no acute" in made.prompt
    plain = next(edit(tiny_model, film, made.prompt, **QUICK))
    assert (plain.image != made.image).any()


def test_provenance_says_edited_and_of_what(tiny_model: Diffusion, film: np.ndarray, film_file: Path) -> None:
    of_file = next(edit(tiny_model, film_file, TEXT, region="left", **QUICK))
    of_pixels = next(edit(tiny_model, film, TEXT, region="left", **QUICK))
    import hashlib

    assert of_file.provenance["source_sha256"] == hashlib.sha256(film_file.read_bytes()).hexdigest()
    assert of_file.provenance["source_pixels_sha256"] == of_pixels.provenance["source_pixels_sha256"]
    assert of_pixels.provenance["edited"] == "true" and "film" not in json.dumps(of_file.provenance)
    assert of_file.strip().shape[1] > 3 * film.shape[1]


@pytest.mark.parametrize("ending", ["png", "jpg", "dcm"])
def test_files_do_not_say_of_nobody(run_cli: Any, film_file: Path, tiny_pipeline: Path, ending: str) -> None:
    out = film_file.parent / f"made.{ending}"
    code, said, err = run_cli(
        "edit", film_file, TEXT, "--lung", "left", "--model", tiny_pipeline, "--steps", 2, "--out", out, "--strip"
    )
    assert code == 0, err
    assert said.splitlines() == [str(out), str(out.with_name("made_strip.png"))]
    marks = images.read_provenance(out)
    assert (marks["edited"], marks["synthetic"], marks["prompt"]) == ("true", "true", TEXT)
    assert b"not of a patient" not in out.read_bytes() and b"no person" not in out.read_bytes()
    assert (images.read_image(out.with_name("made_strip.png")).shape[1]) > 3 * 90
    if ending == "dcm":  # PS3.5 6.2
        assert max(len(str(one.value)) for one in pydicom.dcmread(out) if one.VR == "LO") <= 64


def test_json_line(run_cli: Any, film_file: Path, tiny_pipeline: Path) -> None:
    words = ("--model", tiny_pipeline, "--steps", 2, "--json", "--out", film_file.parent / "out")
    code, said, err = run_cli("edit", film_file, "left zebra", "--no-invert", "-n", 2, *words)
    assert code == 0, err
    first, second = map(json.loads, said.splitlines())
    assert [Path(line["path"]).name for line in (first, second)] == ["film_left-zebra_0.png", "film_left-zebra_1.png"]
    assert first["warnings"] == ["word never seen in training: zebra"] and first["strength"] == "0.7"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["missing.png", TEXT], "missing.png"),
        (["film.png"], "no text"),
        ([], "no image"),
        (["film.png", "left", "effusion"], "'effusion'"),
        (["film.png", TEXT, "--strength", "0"], "--strength 0"),
        (["film.png", TEXT, "--strength", "1.5"], "--strength 1.5"),
        (["film.png", TEXT, "--box", "0.5", "0.5", "1.5", "1"], "--box"),
        (["film.png", TEXT, "--box", "0.5", "0.5"], "--box"),
        (["film.png", TEXT, "--box", "0.5", "0.5", "0.2", "1"], "--box"),
        (["film.png", TEXT, "--lung", "middle"], "--lung"),
        (["film.png", TEXT, "--lung", "left", "--box", "0", "0", "1", "1"], "--lung and --box"),
        (["film.png", TEXT, "--mask", "small.png"], "--mask"),
        (["film.png", TEXT, "--mask", "black.png"], "--mask"),
        (["film.png", TEXT, "--mask", "none.png"], "--mask none.png"),
        (["film.png", TEXT, "--sampler", "unipc"], "--sampler unipc"),
        (["film.png", TEXT, "-n", "2"], "--num-images 2"),
        (["film.png", "--remove", TEXT, "--negative-prompt", TEXT], "--negative-prompt"),
        (["film.png", TEXT, "--box", "0", "0", "0.05", "1"], "region"),
        (["film.png", TEXT, "--out", "film.png"], "film.png"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], named: str, run_cli: Any, film: np.ndarray, film_file: Path, tiny_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(film_file.parent)
    Image.fromarray(film[:50]).save("small.png")
    Image.fromarray(film * 0).save("black.png")
    code, out, err = run_cli("edit", *words, "--model", tiny_pipeline)
    said = [line for line in err.splitlines() if "warning" not in line and "%|" not in line]
    assert (code, out, len(said)) == (2, "", 1) and named in said[0]
    assert not list(Path("out").glob("*")) and (images.read_image("film.png") == film).all()


RAMP = np.tile(np.arange(96, dtype=np.uint8) * 2, (96, 1))
GRAIN = np.random.default_rng(0).integers(0, 255, (96, 96), dtype=np.uint8)


@pytest.mark.parametrize(("pixels", "said"), [(RAMP, "does not look frontal"), (GRAIN, "no X-ray")])
def test_an_image_that_is_no_chest_is_warned_of(
    run_cli: Any, tmp_path: Path, tiny_pipeline: Path, pixels: np.ndarray, said: str
) -> None:
    file = tmp_path / "other.png"
    Image.fromarray(pixels).save(file)
    code, _, err = run_cli("edit", file, TEXT, "--model", tiny_pipeline, "--steps", 1, "--out", tmp_path / "out")
    assert code == 0 and f"other.png: {said}" in err


def test_families_that_do_not_edit_say_so(tiny_model: Diffusion, film: np.ndarray) -> None:
    class Other:
        info = dataclasses.replace(tiny_model.info, name="other")

    with pytest.raises(UserError, match="--model other"):
        edit(Other(), film, TEXT)  # type: ignore[arg-type]
