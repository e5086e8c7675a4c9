"""Images of a manifest, and the order in which an epoch reads them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import write_manifest

from roentgen.data.images import epoch_order, open_source
from roentgen.data.sources.common import walk
from roentgen.errors import UserError
from roentgen.images import read_image, resize_center_crop


def test_files_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    source = open_source(write_manifest(tmp_path, 9), splits=("train",), size=16)
    assert len(source.table) == 6 and source.groups is None and source.digests is None
    batch = source.read_many(np.array([4, 0, 4]))
    assert batch.shape == (3, 16, 16) and batch.dtype == np.uint8
    wanted = [resize_center_crop(read_image(source.table["image"][index]), 16) for index in (4, 0, 4)]
    assert np.array_equal(batch, np.stack(wanted))
    assert source.read_many([]).shape == (0, 16, 16)


def test_an_unreadable_image_is_an_error_never_replaced(tmp_path: Path) -> None:
    source = open_source(write_manifest(tmp_path, 4), splits=None, size=16)
    (tmp_path / "images" / "2.jpg").write_bytes(b"\xff\xd8\xffbroken")
    with pytest.raises(UserError, match=r"2\.jpg.*cannot be read"):
        source.read_many(range(4))


def test_what_is_neither_manifest_nor_shards_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="neither a manifest"):
        open_source(tmp_path / "model.bin", splits=None, size=16)
    with pytest.raises(UserError, match="no shards there"):
        open_source(tmp_path, splits=None, size=16)


def test_an_epoch_is_a_permutation_of_its_arguments_alone() -> None:
    groups = np.repeat(np.arange(10, 17, dtype=np.int32), [5, 30, 1, 20, 20, 13, 11])
    for shards in (None, groups):
        order = epoch_order(100, shards, seed=3, epoch=2).tolist()
        assert sorted(order) == list(range(100))
        np.random.seed(1)
        assert epoch_order(100, shards, seed=3, epoch=2).tolist() == order
        assert epoch_order(100, shards, seed=3, epoch=3).tolist() != order
        assert epoch_order(100, shards, seed=4, epoch=2).tolist() != order
    assert epoch_order(0, groups[:0], seed=0, epoch=0).tolist() == []


@pytest.mark.parametrize("window", [1, 3])
def test_few_shards_are_open_at_a_time_and_each_is_opened_once(window: int) -> None:
    shards, rows = 40, 50
    groups = np.repeat(np.arange(shards), rows)
    read = groups[epoch_order(shards * rows, groups, seed=0, epoch=0, window=window).numpy()]
    first = np.array([np.flatnonzero(read == shard)[0] for shard in range(shards)])
    last = np.array([np.flatnonzero(read == shard)[-1] for shard in range(shards)])
    at_once = [int(((first <= place) & (place <= last)).sum()) for place in range(len(read))]
    assert max(at_once) == window
    distinct = [len(set(read[place : place + rows // 2])) for place in range(len(read))]
    assert max(distinct) <= window + 1
    assert np.argsort(first).tolist() != list(range(shards))  # shards in random order
    if window > 1:  # and their rows mixed
        middle = read[len(read) // 2 :][:20]
        assert len(set(middle)) >= window


def test_the_order_of_a_large_epoch_takes_no_time() -> None:
    groups = np.repeat(np.arange(400), 1000)
    calls = [0]

    def count(frame: object, event: str, argument: object) -> None:
        calls[0] += 1

    sys.setprofile(count)
    try:
        epoch_order(400_000, groups, seed=0, epoch=0)
    finally:
        sys.setprofile(None)
    assert calls[0] < 10_000  # nothing is done a row in Python


@pytest.mark.parametrize("kind", ["pipe", "loop", "nowhere", "folder"])
def test_what_is_no_file_is_no_image(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    path = tmp_path / "b.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("b.png" if kind == "loop" else "c.png")
    (tmp_path / "link.png").symlink_to("a.png")
    assert dict(walk(tmp_path))[str(tmp_path)] == ["a.png", "link.png"]
