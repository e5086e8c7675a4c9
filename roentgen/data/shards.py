"""WebDataset shards: tar files that hold images, texts and labels side by side, written once and read by offset.

A folder has the tars of each split (``train-000000.tar``, ...), ``manifest.parquet`` (all columns of the manifest, and
where in which tar each image lies, with its sha256) and ``shards.json`` (what was written, size and sha256 of each
tar), which is written last: a folder without it is unfinished. A tar holds, for each row, ``KEY.png`` (or jpg, dcm),
``KEY.json`` (the row) and ``KEY.txt`` (the text); KEY is the row's number in the manifest, from 0.

The bytes depend on the manifest, its images and the options alone, so that writing can be broken off and taken up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from roentgen.data.manifest import SPLITS, read_manifest
from roentgen.data.shard_source import ABOUT, FORMAT, INDEX, PROGRESS, flags_of, is_complete, json_object
from roentgen.errors import UserError
from roentgen.files import HashedFile, clean, explained, has_sha256, open_atomic, regular, sha256, write_atomic
from roentgen.images import is_dicom, read_image, resized_png

# Columns of INDEX beside the manifest's own; its ``image`` is TAR/MEMBER, the manifest's cell is ``original_image``.
ADDED = ("original_image", "shard", "offset", "length", "sha256")
TAR_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass(frozen=True)
class ShardSettings:
    """Everything beside the images that the bytes of the shards depend on. ``seed`` None: the manifest's order."""

    manifest_sha256: str
    size: int | None
    shard_mb: float
    seed: int | None


@dataclass(frozen=True)
class Written:
    """A finished tar: its first row's place in the order of its split, and of each row (number in the manifest, member
    name, offset, length and sha256 of the image)."""

    start: int
    size: int
    sha256: str
    rows: list[tuple[int, str, int, int, str]]


def write_shards(
    manifest: Path,
    out: Path,
    *,
    size: int | None = None,
    shard_mb: float = 256,
    seed: int | None = 0,
    overwrite: bool = False,
    threads: int | None = None,
) -> dict[str, tuple[int, int]]:
    """Write the images, texts and rows of a manifest as tar files; returns (shards, rows) of each split.

    Each image is decoded once, so that none that cannot be read gets in. Finished tars of an earlier run of the same
    manifest and options are kept after a check of their sha256, and written again where that fails. Images that were
    changed under an unchanged manifest are not noticed there: overwrite.

    What is overwritten stays until the new tars are there and verified, and only what the folder's own lists name is
    replaced or removed: tars of others are kept, and one where a tar of ours belongs is an error.

    Args:
        manifest: .csv or .parquet.
        out: folder; made where it does not exist.
        size: None stores the files' bytes; else the shorter side is resized to it and the centre stored as PNG.
        shard_mb: a tar ends with the row that takes it past so many megabytes (10^6 bytes).
        seed: of the order of rows, so that each tar is a random sample of its split; None keeps the manifest's order.
        overwrite: replace shards of another manifest or other options.
        threads: that read and decode; None takes one a core, eight at most.

    Raises:
        UserError: for a bad manifest or image, a folder of other shards, or a full disk.
    """
    table = read_manifest(manifest)
    taken = [column for column in ADDED if column in table.columns]
    if taken:
        raise UserError(f"{manifest}: the column {taken[0]!r} is needed for the shards' own; rename it")
    plan = ShardSettings(sha256(manifest.read_bytes()), size, shard_mb, seed)
    ours = _own_names(out)
    place = out / PROGRESS if overwrite and ours else out
    known = _known_tars(out, plan, overwrite=overwrite, staged=place != out)
    folder = os.path.join(os.path.abspath(manifest.parent), "")  # noqa: PTH100, PTH118 - as in manifest.typed
    names = [image.removeprefix(folder) for image in table["image"]]
    rows_json = _rows_asjson_object(table.assign(image=names))
    writer = _Writer(table, rows_json, plan, place=place, out=out, ours=ours, known=known)
    done = writer.write_all(threads or min(8, os.cpu_count() or 1))
    if place != out:
        _swap(done, place, out, ours)
    _write_index(table.assign(image=names), done, out)
    counts = {split: [tar for name, tar in done.items() if name.startswith(split)] for split in SPLITS}
    about = {
        "format": FORMAT,
        "manifest": manifest.name,
        **asdict(plan),
        "index_sha256": sha256((out / INDEX).read_bytes()),
        "rows": {split: sum(len(tar.rows) for tar in tars) for split, tars in counts.items()},
        "shards": {
            name: {"start": tar.start, "rows": len(tar.rows), "size": tar.size, "sha256": tar.sha256}
            for name, tar in done.items()
        },
    }
    write_atomic(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    shutil.rmtree(out / PROGRESS, ignore_errors=True)
    for name in ours - done.keys():
        (out / name).unlink(missing_ok=True)
    clean(out)
    return {split: (len(tars), sum(len(tar.rows) for tar in tars)) for split, tars in counts.items() if tars}


@dataclass(frozen=True)
class _Writer:
    """Writes the tars of all splits into ``place``: those that ``known`` has whole there or in ``out`` are kept.

    ``ours``: names in ``out`` that may be replaced; what is written there joins them.
    """

    table: pd.DataFrame
    rows: Callable[[int], bytes]
    plan: ShardSettings
    place: Path
    out: Path
    ours: set[str]
    known: dict[str, Written]

    def write_all(self, workers: int) -> dict[str, Written]:
        """The finished tars by name, in order."""
        from tqdm import tqdm

        done: dict[str, Written] = {}
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(self.table), desc="writing shards", unit="image", file=sys.stderr, leave=False) as bar,
        ):
            for split in SPLITS:
                for name, written in self._write_split(split, pool, ahead=4 * workers):
                    done[name] = written
                    bar.update(len(written.rows))
        return done

    def _write_split(self, split: str, pool: ThreadPoolExecutor, *, ahead: int) -> Iterator[tuple[str, Written]]:
        order = _order_of(self.table, split, self.plan.seed)
        start, number = 0, 0
        samples: Iterator[_Member] | None = None
        while start < len(order):
            name = f"{split}-{number:06d}.tar"
            written = self.known.get(name)
            places = [self.place / name, self.out / name]
            if written is None or written.start != start or not _intact(places, written):
                _check_stranger(self.out / name, self.ours)
                if samples is None:
                    paths = [(int(row), self.table["image"].iat[row]) for row in order[start:]]
                    samples = _samples(pool, paths, size=self.plan.size, ahead=ahead)
                limit, texts = self.plan.shard_mb * 1e6, self.table["text"]
                written = _write_tar(places[0], samples, start, limit=limit, texts=texts, rows=self.rows)
                if self.place == self.out:
                    self.ours.add(name)
                write_atomic(self.out / PROGRESS / f"{name}.json", json.dumps(asdict(written)).encode())
            else:
                samples = None
            yield name, written
            start += len(written.rows)
            number += 1


def _own_names(out: Path) -> set[str]:
    """The tars in ``out`` that its own lists name, whatever of the lists is left."""
    listed = (json_object(out / ABOUT) or {}).get("shards")
    names: set[Any] = set(listed) if isinstance(listed, dict) else set()
    with contextlib.suppress(OSError, ValueError, KeyError):
        names |= set(pd.read_parquet(out / INDEX, columns=["shard"])["shard"])
    if not (json_object(out / PROGRESS / "plan.json") or {}).get("staged"):
        names |= {path.name.removesuffix(".json") for path in (out / PROGRESS).glob("*.tar.json")}
    return {name for name in names if isinstance(name, str) and TAR_NAME.fullmatch(name)}


def _check_stranger(path: Path, ours: Collection[str]) -> None:
    if path.exists() and path.name not in ours:
        raise UserError(f"{path} is no shard that this folder's lists name; move it away, or choose another --out")


def _swap(done: dict[str, Written], staged: Path, out: Path, ours: Collection[str]) -> None:
    """Put the staged tars into their places, once all of them are there and whole."""
    waiting = [name for name in done if (staged / name).exists()]
    for name in waiting:
        _check_stranger(out / name, ours)
        if not _intact([staged / name], done[name]):
            raise UserError(f"{staged / name} did not stay as it was written; check the disk and run the command again")
    for name in waiting:
        (staged / name).replace(out / name)


def _known_tars(out: Path, plan: ShardSettings, *, overwrite: bool, staged: bool) -> dict[str, Written]:
    """Tars that earlier runs of the same plan finished; UserError where the folder holds anything else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    tars = [path for path in out.glob("*.tar") if TAR_NAME.fullmatch(path.name)]
    about = json_object(out / ABOUT) or json_object(out / PROGRESS / "plan.json")
    begun = asdict(plan) | {"staged": staged}
    if overwrite:
        if json_object(out / PROGRESS / "plan.json") != begun:  # else it goes on where it was broken off
            shutil.rmtree(out / PROGRESS, ignore_errors=True)
    elif about is None:
        if tars:
            raise UserError(f"--out {out} holds tar files of unknown origin; choose another folder or add --overwrite")
    elif about.get("manifest_sha256") != plan.manifest_sha256:
        raise UserError(f"--out {out} holds shards of another manifest; choose another folder or add --overwrite")
    elif any(about.get(key) != value for key, value in asdict(plan).items()):
        raise UserError(
            f"--out {out} holds shards written with {flags_of(about) or 'no options'}; "
            "give the same, choose another folder or add --overwrite"
        )
    known = _tars_of_index(out) if not overwrite else {}
    for path in (out / PROGRESS).glob("*.tar.json"):
        stored = json_object(path)
        if stored is not None:
            known[path.name.removesuffix(".json")] = Written(**{**stored, "rows": [tuple(r) for r in stored["rows"]]})
    write_atomic(out / PROGRESS / "plan.json", json.dumps(begun).encode())
    return known


def _tars_of_index(out: Path) -> dict[str, Written]:
    """The tars of a finished folder; none where its lists are damaged."""
    about = json_object(out / ABOUT)
    if not is_complete(about):
        return {}
    assert about is not None
    if not has_sha256(out / INDEX, about["index_sha256"]):
        print(f"{out / INDEX}: missing or corrupt; all shards are written again", file=sys.stderr)
        return {}
    index = pd.read_parquet(out / INDEX, columns=["image", *ADDED])
    known = {}
    for name, part in index.groupby("shard", sort=False):
        if name not in about["shards"]:
            continue  # lost from the list: written again
        listed = about["shards"][name]
        members = [Path(image).name for image in part["image"]]
        places = zip(members, part["offset"], part["length"], part["sha256"], strict=True)
        rows = [(int(Path(m).stem), m, int(offset), int(length), digest) for m, offset, length, digest in places]
        known[str(name)] = Written(listed["start"], listed["size"], listed["sha256"], rows)
    return known


def _intact(places: Sequence[Path], written: Written) -> bool:
    """Whether a tar in one of the places has the bytes that were written; says so where none has."""
    found = [path for path in places if path.is_file()]
    if any(path.stat().st_size == written.size and has_sha256(path, written.sha256) for path in found):
        return True
    print(f"{places[0]}: {'corrupt' if found else 'missing'}; written again", file=sys.stderr)
    return False


def _order_of(table: pd.DataFrame, split: str, seed: int | None) -> list[int]:
    """Rows of a split in the order of writing; a hash, not a random generator, keeps it the same in all versions."""
    rows = np.flatnonzero((table["split"] == split).to_numpy()).tolist()
    if seed is None:
        return rows
    return sorted(rows, key=lambda row: hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=16).digest())


def _rows_asjson_object(table: pd.DataFrame) -> Any:
    """A function from a row's number to its JSON: numbers as numbers, blank as null."""
    columns = {str(name): table[name].tolist() for name in table.columns}

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            return None if value != value else int(value) if value.is_integer() else value
        return None if value == "" else value

    def one(row: int) -> bytes:
        return json.dumps({name: cell(values[row]) for name, values in columns.items()}, ensure_ascii=False).encode()

    return one


@dataclass(frozen=True)
class _Member:
    """An image as it goes into a tar."""

    row: int
    ending: str
    data: bytes


def _samples(
    pool: ThreadPoolExecutor, paths: Sequence[tuple[int, str]], *, size: int | None, ahead: int
) -> Iterator[_Member]:
    """Images in order, at most ``ahead`` of them in memory."""
    waiting: deque[Future[_Member]] = deque()
    try:
        for row, path in paths:
            waiting.append(pool.submit(_sample, row, path, size))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _sample(row: int, path: str, size: int | None) -> _Member:
    with explained(f"{path}: cannot be read", "mend the manifest's image column", OSError):
        data = regular(path).read_bytes()
    if size is not None:
        return _Member(row, "png", resized_png(Path(path), size, data=data))
    read_image(path, data=data)  # UserError on one that is damaged
    return _Member(row, _ending(data, path), data)


def _ending(data: bytes, path: str) -> str:
    """The ending that tells WebDataset's decoders what an image is: by its content, else by its name."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if is_dicom(Path(path), data[:132]):
        return "dcm"
    return Path(path).suffix[1:].lower() or "img"


class _Tar(HashedFile):
    """A tar that is written from start to end."""

    def member(self, name: str, data: bytes) -> int:
        """Add a file to the tar; returns the offset of its data."""
        info = tarfile.TarInfo(name)  # TarInfo's own time, owner and mode are constants, so bytes repeat
        info.size = len(data)
        self.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self.write(data)
        self.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return offset

    def end(self) -> str:
        """Close the archive as tar does: two empty blocks, and whole records; returns the sha256."""
        self.write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self.write(b"\0" * (-self.size % tarfile.RECORDSIZE))
        return self.sha256()


def _write_tar(
    path: Path, samples: Iterator[_Member], start: int, *, limit: float, texts: pd.Series, rows: Any
) -> Written:
    """Take samples into one tar until it is larger than ``limit`` bytes or there are no more; atomic."""
    places: list[tuple[int, str, int, int, str]] = []
    advice = "run the same command again, or choose another --out"
    with open_atomic(path, advice=advice) as file:
        tar = _Tar(file)
        for sample in samples:
            key = f"{sample.row:09d}"
            member = f"{key}.{sample.ending}"
            offset = tar.member(member, sample.data)
            tar.member(f"{key}.json", rows(sample.row))
            tar.member(f"{key}.txt", texts.iat[sample.row].encode())
            places.append((sample.row, member, offset, len(sample.data), sha256(sample.data)))
            if tar.size >= limit:
                break
        digest = tar.end()
    return Written(start, tar.size, digest, places)


def _write_index(table: pd.DataFrame, done: dict[str, Written], out: Path) -> None:
    """``manifest.parquet``: rows in the order of the tars."""
    places = [(name, *place) for name, tar in done.items() for place in tar.rows]
    index = table.iloc[[row for _, row, *_ in places]].reset_index(drop=True)
    index["original_image"] = index["image"]
    index["image"] = [f"{name}/{member}" for name, _, member, *_ in places]
    for number, column in ((0, "shard"), (3, "offset"), (4, "length"), (5, "sha256")):
        index[column] = [place[number] for place in places]
    write_atomic(out / INDEX, index.to_parquet(index=False))
