"""Parts of models, reporters and published folders that are damaged: a sentence that names the file; siblings of what
the harness of ``fuzz/`` found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import reporters
from masked import Tiny, make_tiny
from PIL import Image

from roentgen import load_model
from roentgen.commands.push import check_folder, files_of
from roentgen.data.leaks import find_leaks
from roentgen.errors import UserError
from roentgen.files import new_folder, reason
from roentgen.reports import load_reporter
from roentgen.reports.captioners import open_captioner
from roentgen.reports.labels import SCREEN, load_labels
from roentgen.reports.load import MINI_REPORT, find_reporter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Path]) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"), make_pipeline)


def changed(file: Path, key: str, value: Any) -> None:
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, key: value}))


@pytest.mark.parametrize("said", [[["left"]], "left", {"left": 1}, [1.5]])
def test_a_vocabulary_is_a_list_of_words(tiny_pipeline: Path, tmp_path: Path, said: Any) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    (folder / "roentgen.json").write_text(json.dumps({"name": "tiny", "vocabulary": said}))
    with pytest.raises(UserError, match=r"roentgen\.json"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("said", [[1.0], "0.2", 0, -1.0, None, float("inf"), True])
def test_a_scaling_factor_is_a_number(tiny_pipeline: Path, tmp_path: Path, said: Any) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    changed(folder / "vae" / "config.json", "scaling_factor", said)
    with pytest.raises(UserError, match="tiny"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("said", ["x", [], {}, -(10**30)])
def test_settings_of_a_tokenizer(tiny_pipeline: Path, tmp_path: Path, said: Any) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    changed(folder / "tokenizer" / "tokenizer_config.json", "model_max_length", said)
    try:
        load_model(str(folder), device="cpu")
    except UserError as error:
        assert "class" not in str(error)


@pytest.mark.parametrize("key", ["image_mean", "image_std", "size", "crop_size", "resample", "rescale_factor"])
@pytest.mark.parametrize("said", ["x", [None], {"height": "../x"}, [[1]]])
def test_settings_of_an_image_processor(tmp_path: Path, key: str, said: Any) -> None:
    folder = reporters.git(tmp_path / "git")
    changed(folder / "preprocessor_config.json", key, said)
    try:
        open_captioner(folder)
    except UserError as error:
        assert str(folder) in str(error)


def test_settings_of_generation(tmp_path: Path) -> None:
    folder = reporters.git(tmp_path / "git")
    changed(folder / "generation_config.json", "bos_token_id", "x")
    with pytest.raises(UserError, match=r"generation_config\.json"):
        load_reporter(str(folder)).report(np.random.default_rng(0).integers(0, 255, (80, 70)).astype(np.uint8))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\0" * 300])
def test_the_screen_of_a_reporter(tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(find_reporter(MINI_REPORT), tmp_path / "labels")
    (folder / SCREEN).write_bytes(content)
    with pytest.raises(UserError, match=SCREEN):
        load_labels(folder)


@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.json", "a.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\0" * 2000, b"PAR1PAR1", b"\xff{"])
def test_what_is_published_is_readable(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        find_leaks(tmp_path, [tmp_path / name])
    except UserError as error:
        assert name in str(error)


@pytest.mark.parametrize("target", ["a", "nowhere", "/proc/self/mem"])
def test_links_among_what_is_published(tmp_path: Path, target: str) -> None:
    (tmp_path / "a").symlink_to(target)
    with pytest.raises(UserError, match=str(tmp_path / "a")):
        check_folder(tmp_path, files_of(tmp_path))


@pytest.mark.parametrize("name", ["", ".", "..", "x/.."])
def test_a_folder_one_works_in_is_not_replaced(name: str) -> None:
    with pytest.raises(UserError, match="replaced"), new_folder(Path(name)):
        pass


def test_no_folder_takes_the_place_of_a_file_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "pipe"):
        with pytest.raises(UserError, match=name), new_folder(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_types_have_the_users_names() -> None:
    assert reason(TypeError("got <class 'int'>, not <class 'numpy.ndarray'>")) == "got int, not ndarray"


def test_shipping_what_no_recipe_made(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "tiny")
    (folder / "roentgen.json").write_text('{"name": "tiny"}')
    said = recipe.refused("--pipeline", folder, "--out", tmp_path / "out", name="ship")
    assert "defaults" in said and "--images-seen" in said


def test_sizes_that_an_autoencoder_cannot_halve(tiny: Tiny, tmp_path: Path) -> None:
    start = ("--manifest", tiny.manifest, "--out", tmp_path / "out", "--vae", tiny.pipeline)
    said = recipe.refused(*start, "--groups", "1,3", "--codes", "8,16", "--size", 33, name="tokenizer")
    assert "--size" in said and not (tmp_path / "out").exists()


def test_an_autoencoder_of_few_validation_images(tmp_path: Path) -> None:
    """Its checkpoint comes before its pictures."""
    table = recipe.few_rows(tmp_path / "few", train=4, val=2)
    shape = ("--size", 32, "--crop", 32, "--channels", "8,8", "--groups", 4, "--latent-channels", 4)
    counts = ("--images", 4, "--batch-size", 2, "--warmup", 0, "--sample-every", 4, "--checkpoint-every", 4)
    out = tmp_path / "out"
    recipe.good("--manifest", table, "--out", out, *shape, *counts, "--precision", "no", name="autoencoder")
    with Image.open(out / "samples" / "00000004.png") as grid:
        assert grid.size[0] > 2 * 32 and grid.size[1] > 2 * 32
