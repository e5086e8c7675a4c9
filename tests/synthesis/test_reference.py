"""roentgen.synthesis.filters.reference and train/reference.py: what the filter compares with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from roentgen.errors import UserError
from roentgen.synthesis.filters import load_filter
from roentgen.synthesis.filters.reference import ARRAYS, JSON, SHIPPED, load_reference, save_reference

MAX_BYTES = 12_000_000


def test_the_reference_that_ships_is_small_and_of_the_classifier_that_ships() -> None:
    found = load_reference()
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= MAX_BYTES
    assert found.arrays["thumbnails"].shape == (found.info["images"]["train"], 1024)
    assert len(found.hash) == 16


def test_what_is_saved_is_loaded_and_the_same_again_gives_the_same_hash(tmp_path: Path) -> None:
    found = load_reference()
    info = {key: value for key, value in found.info.items() if key not in ("version", "arrays_sha256")}
    save_reference(tmp_path, info, found.arrays)
    again = load_reference(tmp_path)
    assert again.hash == found.hash and again.arrays.keys() == found.arrays.keys()
    save_reference(tmp_path, {**info, "images": {**info["images"], "train": 1}}, found.arrays)
    assert load_reference(tmp_path).hash != found.hash


def damaged_json(folder: Path) -> None:
    (folder / JSON).write_text("{")


def foreign_json(folder: Path) -> None:
    (folder / JSON).write_text('{"version": 1}')


def other_version(folder: Path) -> None:
    (folder / JSON).write_text(json.dumps({**json.loads((folder / JSON).read_text()), "version": 99}))


def cut_arrays(folder: Path) -> None:
    (folder / ARRAYS).write_bytes((folder / ARRAYS).read_bytes()[:-1])


def other_classifier(folder: Path) -> None:
    info = json.loads((folder / JSON).read_text())
    (folder / JSON).write_text(json.dumps({**info, "classifier": {**info["classifier"], "hash": "0" * 16}}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / JSON).unlink(), "reference.json is missing"),
        (lambda folder: (folder / ARRAYS).unlink(), "reference.safetensors is missing"),
        (damaged_json, "reference.json is damaged"),
        (foreign_json, "reference.json is damaged"),
        (other_version, "of version 99"),
        (cut_arrays, "reference.safetensors is damaged"),
        (other_classifier, "another classifier"),
    ],
)
def test_a_bad_reference_is_one_sentence_with_the_mend(
    harm: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "reference")
    harm(tmp_path / "reference")
    with pytest.raises(UserError, match=words) as caught:
        load_filter(("real",), reference=tmp_path / "reference")
    assert str(caught.value).startswith("--reference ") and "train reference" in str(caught.value)


def test_a_stage_without_a_predictor_is_refused_with_the_reason(tmp_path: Path) -> None:
    found = load_reference()
    info = {key: value for key, value in found.info.items() if key not in ("version", "arrays_sha256")}
    thresholds = {**info["thresholds"], "sex": {"why": "AUROC 0.60 on real images is below 0.85"}}
    arrays = {name: value for name, value in found.arrays.items() if name != "head_sex"}
    save_reference(tmp_path, {**info, "thresholds": thresholds}, arrays)
    assert load_filter(("view",), reference=tmp_path).stages == ("broken", "view")
    with pytest.raises(UserError, match=r"--filter sex: .*AUROC 0.60 .*leave sex out"):
        load_filter(("sex",), reference=tmp_path)
