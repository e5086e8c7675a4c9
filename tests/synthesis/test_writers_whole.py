"""The formats of a synthetic set: the same bytes each time, whole or not there, in little memory, with their sums."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from records import INFO, SHARDS, make_record, write_set

from roentgen.errors import UserError
from roentgen.synthesis.card import tally, write_card
from roentgen.synthesis.writers import FORMATS, check_sums, write_sums
from roentgen.synthesis.writers.parts import Part, Parts


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def finished(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(out).items() if not name.startswith(".work/")}


# ------------------------------------------------------------------------------------------- the same bytes each time


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_do_not_depend_on_order_or_tries(tmp_path, name):
    one = write_set(tmp_path / "one", formats=(name,))
    other = write_set(tmp_path / "other", formats=(name,), order=(2, 0, 1, 2, 0))
    assert finished(one) == finished(other)
    before = finished(one)
    writer = FORMATS[name](one, INFO)
    writer.write_shard(2, SHARDS[2])
    writer.finish(len(SHARDS))
    assert finished(one) == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_shard_is_noticed_and_written_again(tmp_path, name):
    out = write_set(tmp_path / "set", formats=(name,))
    writer = FORMATS[name](out, INFO)
    assert all(writer.is_written(shard) for shard in range(3)) and not writer.is_written(3)
    before = files_of(out)
    part = Parts(out, name).read(2)
    paths = [*part.files, f".work/parts/{name}/000002.json"]
    for path in paths:
        data = bytearray(before[path])
        for damaged in (bytes(data[:-1]), bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:]), b"", None):
            (out / path).unlink() if damaged is None else (out / path).write_bytes(damaged)
            assert not writer.is_written(2)
            assert writer.is_written(0)
            writer.write_shard(2, SHARDS[2])
            assert writer.is_written(2) and files_of(out) == before


@pytest.mark.parametrize("name", FORMATS)
def test_finish_wants_every_shard(tmp_path, name):
    writer = FORMATS[name](tmp_path, INFO)
    writer.write_shard(0, SHARDS[0])
    with pytest.raises(UserError, match=r"000001\.json: this shard is unfinished; run the same command again"):
        writer.finish(2)
    assert not finished(tmp_path).keys() & {"manifest.csv", "metadata.csv", "dicom/index.csv"}


@pytest.mark.parametrize("name", FORMATS)
def test_all_shards_empty(tmp_path, name):
    writer = FORMATS[name](tmp_path, INFO)
    for shard in range(2):
        writer.write_shard(shard, [])
        assert writer.is_written(shard)
    writer.finish(2)
    write_card(tmp_path, INFO, tally([]))
    write_sums(tmp_path)
    assert "0 images of the 9" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_fills_up_leaves_what_is_finished(tmp_path, name):
    """The kernel refuses to write on past a file's first kilobytes."""
    writer = FORMATS[name](tmp_path, INFO)
    writer.write_shard(0, SHARDS[0])
    before = files_of(tmp_path)
    large = [make_record(1000, size=16), make_record(1001, size=400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\); choose another --out"):
            writer.write_shard(1, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not writer.is_written(1) and writer.is_written(0)
    after = files_of(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if "scratch" in path or path.endswith(("1001.png", "01.parquet", "01.tar"))]
    writer.write_shard(1, large)
    assert writer.is_written(1)


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in FORMATS:
        with pytest.raises(UserError, match=r"no space left on the disk; free some or choose another --out"):
            FORMATS[name](tmp_path / name, INFO).write_shard(0, SHARDS[0])


def test_a_label_without_a_column_is_refused(tmp_path):
    info = replace(INFO, findings=("No Finding", "Effusion"))
    with pytest.raises(ValueError, match="slot 2 has the label 'Edema'"):
        FORMATS["folder"](tmp_path, info).write_shard(0, [make_record(2)])


@pytest.mark.parametrize("parts", [True, False], ids=["sums of the parts", "read again"])
def test_sums(tmp_path, parts):
    out = write_set(tmp_path / "set")
    for odd in ("images-x", "images/00000.txt", "images/a b", "Z"):
        (out / odd).write_text(odd)
    if not parts:
        shutil.rmtree(out / ".work")
    write_sums(out)
    lines = (out / "SHA256SUMS").read_text().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in finished(out).items() if name != "SHA256SUMS"}
    assert listed == expected and list(listed) == sorted(expected) and len(lines) == len(expected)
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out).returncode == 0


@pytest.mark.parametrize("lost", ["images/00000/cxr00000001.png", "webdataset/shard-000002.tar"])
def test_a_set_that_has_lost_a_file_gets_no_sums(tmp_path, lost):
    out = write_set(tmp_path / "set", card=False)
    (out / lost).unlink()
    with pytest.raises(UserError, match=rf"{lost} is gone; run the same command again"):
        write_sums(out)
    assert not (out / "SHA256SUMS").exists()


@pytest.mark.parametrize("harm", [b"", b"PAR1", b"\xff" * 60, "cut", "middle"])
def test_sums_that_lack_images_call_no_set_whole(tmp_path, harm):
    out = write_set(tmp_path / "set")
    write_sums(out)
    check_sums(out)
    (out / "images" / ".DS_Store").touch()
    (out / "notes.txt").touch()  # what somebody puts beside is not of the set
    check_sums(out)
    sums = out / "SHA256SUMS"
    lines = sums.read_bytes().splitlines(keepends=True)
    sums.write_bytes(
        {"cut": b"".join(lines[: len(lines) // 2]), "middle": b"".join(x for x in lines if b"images/00000" not in x)}[
            harm
        ]
        if isinstance(harm, str)
        else harm
    )
    with pytest.raises(UserError, match=r"is not whole: .*SHA256SUMS"):
        check_sums(out)


@pytest.mark.parametrize("harm", ["gone", "spoiled"])
def test_a_set_passes_its_own_check_only_if_whole(tmp_path, harm):
    out = write_set(tmp_path / "set")
    check_sums(out)
    path = out / "dicom/images/00001/cxr00001001/image.dcm"
    path.unlink() if harm == "gone" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"is not whole: 1 of its files are gone, damaged or not in SHA256SUMS, such as dicom/"
    ):
        check_sums(out)


def test_sums_tell_what_was_meant(tmp_path):
    """A file that the disk spoiled after its shard was finished must not get the sum of its spoiled bytes."""
    out = write_set(tmp_path / "set")
    (out / "images/00000/cxr00000001.png").write_bytes(b"spoiled")
    write_sums(out)
    assert subprocess.run(["sha256sum", "--check", "--status", "SHA256SUMS"], cwd=out).returncode == 1


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["folder", "dicom"])
def test_finish_does_not_grow_with_the_set(tmp_path, name):
    def peak(shards: int) -> int:
        out = tmp_path / str(shards)
        writer = FORMATS[name](out, INFO)
        writer.write_shard(0, [make_record(slot) for slot in range(20)])
        part = Parts(out, name).read(0)
        for shard in range(1, shards):
            Parts(out, name).write(shard, Part({}, part.rows))
        tracemalloc.start()
        writer.finish(shards)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        table = out / ("manifest.csv" if name == "folder" else "dicom/index.csv")
        assert len(pd.read_csv(table)) == 20 * shards
        return found

    few, many = peak(10), peak(400)
    assert many < few + 100_000, (few, many)


def test_sums_do_not_grow_with_the_set(tmp_path):
    def peak(files: int) -> int:
        out = tmp_path / str(files)
        for start in range(0, files, 100):
            names = [f"images/{start // 100:05d}/{slot:08d}.png" for slot in range(start, start + 100)]
            (out / names[0]).parent.mkdir(parents=True)
            for path in names:
                (out / path).touch()
            Parts(out, "folder").write(start // 100, Part(dict.fromkeys(names, "0" * 64), []))
        tracemalloc.start()
        write_sums(out)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len((out / "SHA256SUMS").read_text().splitlines()) == files
        return found

    few, many = peak(500), peak(5000)
    assert many < few + 100_000, (few, many)
