"""``roentgen data shard``: what is written, that it can be broken off, and that damage never gets through."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from damaged import damage
from pictures import write_manifest
from PIL import Image

from roentgen.data import shard_source, shards
from roentgen.data.images import epoch_order, open_source
from roentgen.data.shard_source import ShardSource
from roentgen.data.shards import write_shards
from roentgen.errors import UserError
from roentgen.images import read_image, save_image

SMALL = 0.004  # megabytes of a shard: two or three of the test's images


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder and its sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "data", 15)


def test_webdataset_reads_the_shards(manifest: Path, tmp_path: Path, run_cli: Callable) -> None:
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "shards"
    code, printed, said = run_cli("data", "shard", manifest, "--out", out, "--shard-mb", SMALL)
    assert (code, printed) == (0, f"{out}\n")
    assert "train: 10 images" in said and "--seed 0" in said
    rows = pd.read_csv(manifest)
    seen = []
    tars = sorted(map(str, out.glob("*.tar")))
    assert len(tars) > 4
    for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("l8"):
        row = int(sample["__key__"])
        seen.append(row)
        ending = rows["image"][row][-3:]
        assert np.array_equal(sample[ending], read_image(manifest.parent / rows["image"][row]))
        assert sample["txt"] == rows["text"][row] == sample["json"]["text"]
        assert sample["json"]["Effusion"] == rows["Effusion"][row]
        assert sample["json"]["sex"] is None and sample["json"]["age"] == rows["age"][row]
        assert sample["json"]["note"] == "001"
        assert Path(sample["__url__"]).name.startswith(rows["split"][row])
    assert sorted(seen) == list(range(15))
    assert seen != sorted(seen)


def test_shards_give_the_pixels_of_the_files(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    files = open_source(manifest, splits=("train",), size=16)
    source = open_source(out, splits=("train",), size=16)
    assert isinstance(source, ShardSource) and isinstance(
        open_source(out / "manifest.parquet", splits=None, size=16), ShardSource
    )
    assert source.groups is not None and sorted(source.groups.tolist()) == source.groups.tolist()
    assert set(source.groups) == set(range(len(list(out.glob("train-*.tar")))))
    places = {name: place for place, name in enumerate(files.table["image"])}
    same = [places[str(manifest.parent / name)] for name in source.table["original_image"]]
    order = epoch_order(10, source.groups, seed=0, epoch=0).numpy()
    assert np.array_equal(source.read_many(order), files.read_many(np.array(same)[order]))
    columns = ["text", "patient_id", "split", "age", "Effusion", "Effusion_side", "note"]
    pd.testing.assert_frame_equal(
        source.table[columns], files.table[columns].iloc[same].reset_index(drop=True), check_dtype=True
    )
    copied = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copied.read(3), source.read(3))


def test_resized_shards_give_the_same_pixels_at_their_own_size(manifest: Path, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "small", size=12)
    write_shards(manifest, tmp_path / "whole")
    small = open_source(tmp_path / "small", splits=None, size=12)
    whole = open_source(tmp_path / "whole", splits=None, size=12)
    assert np.array_equal(small.read_many(range(15)), whole.read_many(range(15)))
    with pytest.raises(UserError, match="images of 12 pixels, but 16"):
        open_source(tmp_path / "small", splits=None, size=16)


def test_dicom_and_deep_png_are_decoded_from_memory_as_from_files(tmp_path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey.astype(np.uint16) << 4).save(tmp_path / "deep.png")
    save_image(grey, tmp_path / "a.dcm", format="dicom", provenance={})
    for path in (tmp_path / "deep.png", tmp_path / "a.dcm"):
        assert np.array_equal(read_image(path, data=path.read_bytes()), read_image(path))
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff: floating-point"):
        read_image("float.tiff", data=(tmp_path / "float.tiff").read_bytes())


KILLED = """
import os, sys
from pathlib import Path
from roentgen.data import shards
write, left = shards._write_tar, [3]
def dies(path, samples, *args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9) if sys.argv[3] == "before" else None
        list(zip(range(1), samples))
        write(path, iter(lambda: os.kill(os.getpid(), 9), 1), *args, **kwargs)
    return write(path, samples, *args, **kwargs)
shards._write_tar = dies
shards.write_shards(Path(sys.argv[1]), Path(sys.argv[2]), shard_mb=0.004)
"""


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_killed_run_is_taken_up_and_ends_with_the_same_bytes(
    manifest: Path, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(manifest, tmp_path / "unbroken", shard_mb=SMALL)
    out = tmp_path / "killed"
    killed = subprocess.run([sys.executable, "-c", KILLED, manifest, out, when], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    finished = sorted(path.name for path in out.glob("*.tar"))
    assert finished == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(UserError, match="unfinished"):
        open_source(out, splits=None, size=16)
    for left in out.glob(".*.tmp"):
        os.utime(left, (0, 0))  # long enough ago to be rubbish

    written = []
    write = shards._write_tar
    monkeypatch.setattr(shards, "_write_tar", lambda path, *a, **k: written.append(path.name) or write(path, *a, **k))
    write_shards(manifest, out, shard_mb=SMALL)
    assert contents(out) == contents(tmp_path / "unbroken")
    assert not set(written) & set(finished)


def test_other_manifests_and_options_are_refused(manifest: Path, tmp_path: Path, run_cli: Callable) -> None:
    out = tmp_path / "shards"
    flags = ("--out", out, "--shard-mb", SMALL)
    assert run_cli("data", "shard", manifest, *flags)[0] == 0
    before = contents(out)
    code, _, said = run_cli("data", "shard", manifest, "--out", out, "--size", 12)
    assert code == 2 and f"--shard-mb {SMALL}" in said and said.count("\n") == 1
    manifest.write_text(manifest.read_text().replace("text, 1", "other, 1"))
    code, _, said = run_cli("data", "shard", manifest, *flags)
    assert code == 2 and "another manifest" in said and said.count("\n") == 1
    assert contents(out) == before
    assert run_cli("data", "shard", manifest, "--out", out, "--size", 12, "--keep-order", "--overwrite")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.parquet", "shards.json", "train-000000.tar", "val-000000.tar",
    ]  # fmt: skip
    rows = [int(Path(image).stem) for image in open_source(out, splits=("train",), size=8).table["image"]]
    assert rows == sorted(rows)
    for flag in (("--size", 2), ("--shard-mb", 0)):
        code, _, said = run_cli("data", "shard", manifest, "--out", tmp_path / "other", *flag)
        assert code == 2 and flag[0] in said
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-000000.tar").write_bytes(b"someone's")
    code, _, said = run_cli("data", "shard", manifest, "--out", tmp_path / "other")
    assert code == 2 and "unknown origin" in said


def test_a_flipped_bit_is_noticed_and_mended(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL, size=14)
    before = contents(out)
    index = pd.read_parquet(out / "manifest.parquet")
    row = int(np.flatnonzero(index["split"] == "train")[4])
    damage(out / index["shard"][row], int(index["offset"][row]) + 50)
    source = open_source(out, splits=None, size=14)
    with pytest.raises(
        UserError, match=rf"{index['shard'][row]}: corrupt.*data shard manifest.csv .*--size 14 --shard"
    ):
        source.read_many(range(15))
    capsys.readouterr()
    write_shards(manifest, out, shard_mb=SMALL, size=14)
    assert f"{index['shard'][row]}: corrupt; written again" in capsys.readouterr().err
    assert contents(out) == before
    assert open_source(out, splits=None, size=14).read_many(range(15)).shape == (15, 14, 14)


def test_damaged_shards_between_sound_ones_get_their_own_rows(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    before = contents(out)
    damage(out / "train-000000.tar", 600)
    (out / "train-000002.tar").unlink()
    write_shards(manifest, out, shard_mb=SMALL)
    assert contents(out) == before


def test_mending_from_images_that_were_changed_keeps_every_row_once(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    for image in (manifest.parent / "images").iterdir():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(image)
    (out / "train-000000.tar").rename(out / "train-000099.tar")  # now a tar that no list names: kept
    write_shards(manifest, out, shard_mb=SMALL)
    source = open_source(out, splits=("train",), size=16)
    assert sorted(source.table["patient_id"]) == sorted(f"p{row}" for row in range(15) if row % 3)
    assert source.read_many(range(10)).shape == (10, 16, 16)
    listed = json.loads((out / "shards.json").read_text())["shards"].keys()
    assert {path.name for path in out.glob("*.tar")} == {*listed, "train-000099.tar"}


@pytest.mark.parametrize("name", ["manifest.parquet", "shards.json", "val-000001.tar"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_missing_and_cut_files_are_refused(manifest: Path, tmp_path: Path, name: str, how: str) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    before = contents(out)
    if how == "gone":
        (out / name).unlink()
    else:
        (out / name).write_bytes((out / name).read_bytes()[:100])
    with pytest.raises(UserError, match=r"roentgen data shard"):
        open_source(out, splits=None, size=16)
    if name == "shards.json":
        return  # nothing says any more what the tars are
    write_shards(manifest, out, shard_mb=SMALL)
    assert contents(out) == before


def test_a_shard_that_vanishes_while_reading_is_an_error(manifest: Path, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "shards")
    source = open_source(tmp_path / "shards", splits=("val",), size=16)
    (tmp_path / "shards" / "val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"val-000000\.tar: cannot be read"):
        source.read(0)


def test_an_unreadable_image_stops_the_writing(manifest: Path, tmp_path: Path, run_cli: Callable) -> None:
    (manifest.parent / "images" / "4.jpg").write_bytes(b"\xff\xd8\xffbroken")
    code, _, said = run_cli("data", "shard", manifest, "--out", tmp_path / "shards")
    assert code == 2 and "4.jpg" in said and said.strip().count("\n") == 0
    assert not list((tmp_path / "shards").glob("*.t*"))


def test_a_full_disk_keeps_finished_shards(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shards"
    member, calls = shards._Tar.member, []

    def full(self: shards._Tar, name: str, data: bytes) -> int:
        calls.append(name)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return member(self, name, data)

    monkeypatch.setattr(shards._Tar, "member", full)
    with pytest.raises(UserError, match=r"no space left on the disk.*already written is kept"):
        write_shards(manifest, out, shard_mb=SMALL)
    kept = contents(out)
    assert "train-000000.tar" in kept and not list(out.glob(".*.tmp"))
    monkeypatch.undo()
    write_shards(manifest, out, shard_mb=SMALL)
    assert contents(out)["train-000000.tar"] == kept["train-000000.tar"]


def test_few_files_stay_open(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(manifest, tmp_path / "shards", shard_mb=0.000001)
    source = open_source(tmp_path / "shards", splits=None, size=8)
    assert isinstance(source, ShardSource) and len(set(source.groups.tolist())) == 15  # type: ignore[union-attr]
    assert shard_source._opened.cache_info().maxsize == 16
    opened = functools.lru_cache(maxsize=2)(shard_source._opened.__wrapped__)
    monkeypatch.setattr(shard_source, "_opened", opened)
    whole = source.read_many(range(15), threads=8)
    assert opened.cache_info().currsize == 2
    assert np.array_equal(source.read_many(range(15), threads=1), whole)


def test_the_lists_say_what_is_there(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    about = json.loads((out / "shards.json").read_text())
    assert about["rows"] == {"train": 10, "val": 5, "test": 0}
    assert about["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    index = pd.read_parquet(out / "manifest.parquet")
    for row in index.itertuples():
        data = (out / row.shard).read_bytes()[row.offset :][: row.length]
        assert hashlib.sha256(data).hexdigest() == row.sha256
        assert data == (manifest.parent / row.original_image).read_bytes()


def test_shards_whose_options_are_damaged_are_of_other_options(manifest: Path, tmp_path: Path) -> None:
    write_shards(manifest, tmp_path / "shards", shard_mb=SMALL)
    about = json.loads((tmp_path / "shards" / "shards.json").read_text())
    for size in ("x", None, [1]):
        (tmp_path / "shards" / "shards.json").write_text(json.dumps({**about, "shard_mb": size}))
        with pytest.raises(UserError, match=r"shards.*options|shards written with"):
            write_shards(manifest, tmp_path / "shards", shard_mb=SMALL)


@pytest.mark.parametrize("tar", ["gone", {"start": False}, {"start": None}, {"size": "x"}, {"sha256": 1}, 1.5])
def test_damaged_lists_are_written_again(manifest: Path, tmp_path: Path, tar: Any) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out)
    about, whole = out / "shards.json", {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    said = json.loads(about.read_text())
    name = next(iter(said["shards"]))
    if tar == "gone":
        del said["shards"][name]
    else:
        said["shards"][name] = {**said["shards"][name], **tar} if isinstance(tar, dict) else tar
    about.write_text(json.dumps(said))
    write_shards(manifest, out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == whole


@pytest.mark.parametrize("shards", [1.5, [[]], "x", None])
def test_a_list_of_tars_that_is_none(manifest: Path, tmp_path: Path, shards: Any) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out)
    about = out / "shards.json"
    whole = about.read_bytes()
    about.write_text(json.dumps({**json.loads(whole), "shards": shards}))
    write_shards(manifest, out)
    assert about.read_bytes() == whole


def test_overwriting_keeps_the_old_shards_until_the_new_are_whole(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    before = contents(out)
    bad = manifest.parent / "images" / "4.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(b"\xff\xd8\xffbroken")
    with pytest.raises(UserError, match=r"4\.jpg"):
        write_shards(manifest, out, size=12, shard_mb=SMALL, overwrite=True)
    assert {name: data for name, data in contents(out).items() if name in before} == before
    assert len(open_source(out, splits=None, size=16).read_many(range(15))) == 15
    bad.write_bytes(whole)
    write_shards(manifest, out, size=12, shard_mb=SMALL, overwrite=True)
    write_shards(manifest, tmp_path / "fresh", size=12, shard_mb=SMALL)
    assert contents(out) == contents(tmp_path / "fresh")
    # Images that were changed under an unchanged manifest are what overwriting is for.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(bad)
    write_shards(manifest, out, size=12, shard_mb=SMALL, overwrite=True)
    assert contents(out) != contents(tmp_path / "fresh")


def test_an_overwrite_that_was_broken_off_goes_on(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    write, made = shards._write_tar, []

    def breaks(path: Path, *args: object, **kwargs: object) -> shards.Written:
        made.append(path.name)
        if len(made) == 3:
            raise KeyboardInterrupt
        return write(path, *args, **kwargs)

    monkeypatch.setattr(shards, "_write_tar", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_shards(manifest, out, shard_mb=SMALL, seed=5, overwrite=True)
    write_shards(manifest, out, shard_mb=SMALL, seed=5, overwrite=True)
    assert made.count("train-000000.tar") == made.count("train-000001.tar") == 1
    write_shards(manifest, tmp_path / "fresh", shard_mb=SMALL, seed=5)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("overwrite", [False, True])
def test_tars_of_others_are_kept(manifest: Path, tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "shards"
    write_shards(manifest, out, shard_mb=SMALL)
    (out / "train-000009.tar").write_bytes(b"someone's")
    write_shards(manifest, out, shard_mb=SMALL, overwrite=overwrite)
    assert (out / "train-000009.tar").read_bytes() == b"someone's"
    with pytest.raises(UserError, match=r"train-000009\.tar is no shard that this folder's lists name; move it away"):
        write_shards(manifest, out, shard_mb=0.000001, overwrite=True)
    assert (out / "train-000009.tar").read_bytes() == b"someone's"
    # More and larger shards: those of ours that are not needed any more go, whatever is left of the lists.
    (out / "shards.json").write_text("{}")
    write_shards(manifest, out, shard_mb=256, overwrite=True)
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar", "train-000009.tar", "val-000000.tar"]


def test_a_folder_without_lists_is_not_overwritten(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(b"someone's")
    with pytest.raises(UserError, match="move it away"):
        write_shards(manifest, tmp_path, shard_mb=SMALL, overwrite=True)
    assert (tmp_path / "train-000000.tar").read_bytes() == b"someone's"
