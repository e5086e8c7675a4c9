"""Reading WebDataset shards: images by their offset in tars, each compared with its SHA-256."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.data.images import read_together
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.files import explained, file_sha256, regular, sha256
from roentgen.images import read_image, resize_center_crop

FORMAT = 1
INDEX, ABOUT, PROGRESS = "manifest.parquet", "shards.json", ".progress"


class ShardSource:
    """Images of a folder of shards, read by offset; an ``ImageSource``.

    Tars are looked for and measured here; each image is compared with its sha256 when it is read, which costs little
    beside decoding it. ``table["image"]`` is FOLDER/TAR/MEMBER; the manifest's own cell is in ``original_image``.
    """

    def __init__(self, folder: Path, *, splits: Collection[str] | None, size: int) -> None:
        about = _about(folder)
        if file_sha256(folder / INDEX) != about["index_sha256"]:
            raise UserError(f"{folder / INDEX}: corrupt; {_mend(folder, about)}")
        if about["size"] is not None and about["size"] < size:
            raise UserError(
                f"{folder} holds images of {about['size']} pixels, but {size} are asked for; "
                f"write it again with --size {size} or without --size"
            )
        table = read_manifest(folder / INDEX, splits=splits, check_files=False)
        names = list(dict.fromkeys(table["shard"]))
        for name in names:
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing; {_mend(folder, about)}")
            if path.stat().st_size != about["shards"].get(name, {}).get("size"):
                raise UserError(f"{path}: corrupt (its size is wrong); {_mend(folder, about)}")
        numbers = {name: number for number, name in enumerate(names)}
        self.size = size
        self.groups: NDArray[np.int32] | None = table["shard"].map(numbers).to_numpy(np.int32)
        self.digests: list[str] | None = table["sha256"].tolist()
        self._tars = [str(folder / name) for name in names]
        self._offsets = table["offset"].astype(np.int64).to_numpy()
        self._lengths = table["length"].astype(np.int64).to_numpy()
        self._reader = object()
        self._advice = _mend(folder, about)
        self._names = table["image"].tolist()
        self.table = table.drop(columns=["shard", "offset", "length", "sha256"])

    def read(self, index: int) -> NDArray[np.uint8]:
        """See ``ImageSource``."""
        assert self.groups is not None and self.digests is not None
        name = self._names[index]
        tar = self._tars[self.groups[index]]
        with explained(f"{tar}: cannot be read", self._advice, OSError):
            file = _opened(tar, self._reader)
            # Has no position that threads could disturb; gives less at the end of a file that is cut off.
            data = os.pread(file.number, int(self._lengths[index]), int(self._offsets[index]))
        if sha256(data) != self.digests[index]:
            raise UserError(f"{tar}: corrupt at {Path(name).name} (its sha256 is wrong); {self._advice}")
        return resize_center_crop(read_image(name, data=data), self.size)

    def read_many(self, indices: Iterable[int], *, threads: int = 4) -> NDArray[np.uint8]:
        """See ``ImageSource``."""
        return read_together(self, indices, threads=threads)


def _about(folder: Path) -> dict[str, Any]:
    """``shards.json`` of a finished folder."""
    path = folder / ABOUT
    if not path.is_file():
        if (folder / PROGRESS).is_dir():
            raise UserError(f"{folder}: unfinished shards; run the same `roentgen data shard` command again")
        raise UserError(
            f"{folder}: no shards there; name a manifest file, or write shards with "
            f"`roentgen data shard MANIFEST --out {folder}`"
        )
    about = json_object(path)
    if about is None or not is_complete(about) or not (folder / INDEX).is_file():
        raise UserError(f"{path}: corrupt or of another version; {_mend(folder, about or {})}")
    return about


def _mend(folder: Path, about: dict[str, Any]) -> str:
    """The command that puts a folder right."""
    command = f"roentgen data shard {about.get('manifest', 'MANIFEST')} --out {folder} {flags_of(about)}".rstrip()
    return f"write it again with `{command}`"


class _Descriptor:
    """An open file; closed when its last user lets go."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "number" in self.__dict__:
            os.close(self.number)


@lru_cache(maxsize=16)
def _opened(path: str, reader: object) -> _Descriptor:
    """A tar, kept open for one ``reader``; the longest unused is closed first."""
    return _Descriptor(path)


def json_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file or it cannot be read."""
    try:
        value = json.loads(regular(path).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def is_complete(about: dict[str, Any] | None) -> bool:
    """Whether ``shards.json`` says all that reading needs."""
    shards = about.get("shards") if about is not None and about.get("format") == FORMAT else None
    return (
        isinstance(about, dict)
        and isinstance(shards, dict)
        and {"size", "index_sha256"} <= about.keys()
        and all(
            isinstance(tar, dict)
            and all(type(tar.get(key)) is kind for key, kind in (("start", int), ("size", int), ("sha256", str)))
            for tar in shards.values()
        )
    )


def flags_of(about: dict[str, Any]) -> str:
    """The options that a folder was written with, as flags; those that are the default left out."""
    flags = [f"--size {about['size']}"] if about.get("size") is not None else []
    size = about.get("shard_mb", 256)
    flags += [f"--shard-mb {size:g}" if isinstance(size, int | float) else f"--shard-mb {size}"] if size != 256 else []
    if about.get("seed", 0) != 0:
        flags.append("--keep-order" if about["seed"] is None else f"--seed {about['seed']}")
    return " ".join(flags)
