"""The one cache: arrays under keys of their content, in files that are checked before use.

What is kept is found by the SHA-256 of what it was computed from (the bytes of an image file, a text, an array), in a
folder named after everything else that decides its value (weights, preprocessing, precision). So a cache can be shared
by data sets and runs, grows with a data set by what is new, and never holds an answer to another question. Files are
safetensors with their keys and a SHA-256 of the data in the header; they are written whole or not at all, and a damaged
one is named, removed and computed again. Several processes, or runs that know nothing of each other, may build one
cache at the same time; a build that was broken off goes on where it stopped.

Three ways in: ``build_rows`` computes what is missing and opens it, ``Store`` is for callers that look for themselves
which rows are missing, ``kept`` is for whole arrays.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.devices import ALONE, TEAM_OF_ONE, Process, Team
from roentgen.errors import UserError
from roentgen.files import clean, open_atomic, regular, sha256, write_atomic

Arrays = Mapping[str, NDArray[Any]]
SHARD_BYTES = 64 * 2**20  # of rows in a file; also what a build holds in memory
BLOCK = 64  # neighbouring rows that one process computes: small for even shares, large for reading in sequence
ADVICE = "run the same command again"
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "U8": np.uint8, "I32": np.int32, "I64": np.int64,
          "BOOL": np.bool_}  # fmt: skip


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class _File:
    """A safetensors file whose data start at byte ``start``. ``tensors``: name -> (dtype, shape, first byte)."""

    path: Path
    start: int
    tensors: Mapping[str, tuple[type, tuple[int, ...], int]]
    keys: list[str]
    sha256: str

    def map(self, name: str) -> NDArray[Any]:
        """An array, mapped from the disk."""
        dtype, shape, first = self.tensors[name]
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=self.start + first, shape=shape)


def _write(path: Path, arrays: Arrays, keys: Sequence[str]) -> None:
    """A file of ``arrays``, sorted by name, with the keys of their rows and the SHA-256 of the data in its header."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    whole = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    parts = [array.reshape(-1).view(np.uint8).data for array in whole.values()]
    first, header = 0, {}
    for name, array in whole.items():
        offsets = [first, first + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        first += array.nbytes
    # The arrays once more, since a flipped bit in their names must be seen too.
    note = json.dumps({"keys": list(keys), "sha256": sha256(*parts), "arrays": header})
    text = json.dumps({"__metadata__": {"roentgen": note}, **header}).encode()
    text += b" " * (-len(text) % 64)
    with open_atomic(path, advice=ADVICE) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(part)


def _read_header(path: Path) -> _File | None:
    """What a file says of itself; None where it is missing, cut off or damaged outside its data."""
    try:
        size = path.stat().st_size
        with regular(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        note = json.loads(header.pop("__metadata__")["roentgen"])
        # Files of earlier versions hold "rows" alone and do not repeat it.
        if set(note) - {"arrays"} != {"keys", "sha256"} or note.get("arrays", {"rows": header.get("rows")}) != header:
            return None
        tensors, end = {}, 0
        for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = DTYPES[said["dtype"]], tuple(map(int, said["shape"]))
            if said["data_offsets"] != [end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize]:
                return None
            tensors[name] = (dtype, shape, end)
            end = said["data_offsets"][1]
        found = _File(path, 8 + length, tensors, list(map(str, note["keys"])), str(note["sha256"]))
        return found if tensors and found.start + end == size else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def _is_sound(path: Path) -> bool:
    """Whether a file has the bytes that were written."""
    header = _read_header(path)
    if header is None:
        return False
    if path.stat().st_size == header.start:
        return sha256() == header.sha256
    return sha256(np.memmap(path, dtype=np.uint8, mode="r", offset=header.start).data) == header.sha256


# ---------------------------------------------------------------------------------- rows under keys


def _file_name(keys: Sequence[str]) -> str:
    return f"rows-{sha256(' '.join(keys))[:20]}.safetensors"


def _open_rows(folder: Path) -> list[_File]:
    """All files of rows with sound headers, in the order of their names."""
    found = []
    for path in sorted(folder.glob("rows-*.safetensors")):
        header = _read_header(path)
        whole = header is not None and all(shape[0] == len(header.keys) for _, shape, _ in header.tensors.values())
        if header is not None and whole and path.name == _file_name(header.keys):
            found.append(header)
    return found


def _locations(files: Sequence[_File]) -> dict[str, tuple[int, int]]:
    """Key -> (file, row). A key that two runs computed is taken from the first file."""
    found: dict[str, tuple[int, int]] = {}
    for number, file in enumerate(files):
        for row, key in enumerate(file.keys):
            found.setdefault(key, (number, row))
    return found


def check_rows(folder: Path, *, what: str, team: Process = ALONE) -> None:
    """Hash this process's share of the files of ``folder`` and remove those that are damaged, saying so."""
    # The share goes by name: lists differ between processes while damaged files disappear.
    paths = [p for p in sorted(folder.glob("rows-*")) if int(sha256(p.name), 16) % team.world == team.rank]

    def sound(path: Path) -> bool:
        header = _read_header(path)
        return header is not None and path.name == _file_name(header.keys) and _is_sound(path)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for path, good in zip(paths, pool.map(sound, paths), strict=True):
            if not good and path.exists():
                print(f"{path}: corrupt; its {what} are computed again", file=sys.stderr)
                path.unlink(missing_ok=True)
    clean(folder)


class Store:
    """Named rows by key in one folder; all rows of a name have one shape and type.

    Opening it checks every file. ``what``: the rows' name for messages, in the plural.
    """

    def __init__(self, folder: Path, *, what: str) -> None:
        self.folder = folder
        check_rows(folder, what=what)
        self._files = _open_rows(folder)
        self._where = _locations(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def write(self, keys: Sequence[str], arrays: Arrays) -> None:
        """Add the rows (n, ...) of ``keys`` as one file."""
        path = self.folder / _file_name(keys)
        _write(path, arrays, keys)
        header = _read_header(path)
        if header is None:
            raise UserError(f"{path}: cannot be read back; {ADVICE}")
        self._where.update((key, (len(self._files), row)) for row, key in enumerate(keys))
        self._files.append(header)

    def read(self, keys: Sequence[str], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Rows of ``keys``, in this order, copied; one file mapped at a time."""
        by_file: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            by_file.setdefault(self._where[key][0], []).append(number)
        found: dict[str, NDArray[Any]] = {}
        for file, numbers in by_file.items():
            rows = [self._where[keys[number]][1] for number in numbers]
            for name in names:
                values = self._files[file].map(name)
                if name not in found:
                    found[name] = np.empty((len(keys), *values.shape[1:]), values.dtype)
                found[name][numbers] = values[rows]
        return found


class RowStore:
    """Rows float16 of one shape, mapped from files; ``item`` i of the caller is where ``keys[i]`` was found.

    Safe in threads; in other processes the files are mapped anew.
    """

    def __init__(self, files: Sequence[_File], keys: Sequence[str]) -> None:
        shapes = {file.tensors["rows"][1][1:] for file in files}
        if len(shapes) != 1:
            raise UserError(
                f"{files[0].path.parent}: holds rows of several shapes {sorted(shapes)}; delete this folder"
            )
        self.shape: tuple[int, ...] = shapes.pop()
        found = _locations(files)
        self._where = np.array([found[key] for key in keys], dtype=np.int32)  # (N, 2): file, row
        # Without the files' keys: of 400,000 images they would travel to every worker.
        self._files = [_File(file.path, file.start, file.tensors, [], "") for file in files]
        self._maps: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # pickling a memory map would copy the whole file

    def take(self, items: Iterable[int]) -> NDArray[np.float16]:
        """Rows (B, *shape) of the items, copied."""
        places = self._where[np.asarray(items, dtype=np.int64)]
        out = np.empty((len(places), *self.shape), dtype=np.float16)
        for position, (file, row) in enumerate(places.tolist()):
            if file not in self._maps:
                self._maps[file] = self._files[file].map("rows")
            out[position] = self._maps[file][row]
        return out


def build_rows(
    folder: Path,
    keys: Sequence[str],
    load: Callable[[list[int]], Any],
    encode: Callable[[Any], NDArray[np.float16]],
    *,
    what: str,
    batch_size: int,
    team: Team = TEAM_OF_ONE,
) -> RowStore:
    """Open the rows of ``keys`` in ``folder``, after computing those that are missing or damaged.

    Every process calls it with the same arguments; each checks and computes its share, between two barriers. Shares are
    fixed by the keys and the number of processes alone, so that processes which see each other's files appear, and
    runs that share the folder, cannot leave a gap.

    Args:
        folder: of this cache.
        keys: key of each item, in the order that the store is to have; keys may occur several times.
        load: item numbers of a batch -> what ``encode`` takes; runs in a thread, one batch ahead.
        encode: -> rows float16 (B, *shape).
        what: name of a row for messages, in the plural.
        batch_size: items of a batch.
        team: the processes that build together.
    """
    first: dict[str, int] = {}
    for item, key in enumerate(keys):
        first.setdefault(key, item)
    unique = list(first)
    check_rows(folder, what=what, team=team)
    team.wait()
    have = _locations(_open_rows(folder))
    mine = [key for place, key in enumerate(unique) if place // BLOCK % team.world == team.rank and key not in have]
    if team.rank == 0 and (absent := sum(key not in have for key in unique)):
        print(f"{folder}: {len(unique) - absent} of {len(unique)} {what} kept, {absent} to compute", file=sys.stderr)
    work = (folder, load, encode)
    _compute(*work, {key: first[key] for key in mine}, what=what, batch_size=batch_size, quiet=team.rank != 0)
    team.wait()
    files = _open_rows(folder)
    have = _locations(files)
    # Only where processes do not share a disk, or another run has just removed a damaged file.
    rest = {key: item for key, item in first.items() if key not in have}
    if rest:
        _compute(*work, rest, what=what, batch_size=batch_size, quiet=team.rank != 0)
        files = _open_rows(folder)
    return RowStore(files, keys)


def _compute(
    folder: Path,
    load: Callable[[list[int]], Any],
    encode: Callable[[Any], NDArray[np.float16]],
    wanted: dict[str, int],
    *,
    what: str,
    batch_size: int,
    quiet: bool,
) -> None:
    """Compute the items ``wanted`` (key -> item) and write them file by file."""
    from tqdm import tqdm

    keys = list(wanted)
    if not keys:
        return
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    held_keys: list[str] = []
    held: list[NDArray[np.float16]] = []
    with (
        ThreadPoolExecutor(1) as ahead,
        tqdm(total=len(keys), desc=f"computing {what}", file=sys.stderr, leave=False, disable=quiet) as bar,
    ):
        coming: Future[Any] | None = None
        for number, batch in enumerate(batches):
            loaded = coming.result() if coming is not None else load([wanted[key] for key in batch])
            if number + 1 < len(batches):
                coming = ahead.submit(load, [wanted[key] for key in batches[number + 1]])
            rows = encode(loaded)
            held_keys += batch
            held.append(rows)
            if (len(held_keys) + batch_size) * rows[0].nbytes > SHARD_BYTES:
                _write(folder / _file_name(held_keys), {"rows": np.concatenate(held)}, held_keys)
                held_keys, held = [], []
            bar.update(len(batch))
        if held_keys:
            _write(folder / _file_name(held_keys), {"rows": np.concatenate(held)}, held_keys)


# ------------------------------------------------------------------------------------- whole arrays


def kept(folder: Path, name: str, key: str, make: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
    """The arrays that ``make`` gives, kept in ``folder`` under ``name`` and ``key``; mapped from the disk, read-only.

    ``key``: SHA-256 in hex of everything that decides their values.
    """
    path = folder / f"{name}-{key[:20]}.safetensors"
    if path.exists():
        status = path.stat()
        if not _was_sound(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns):
            print(f"{path}: corrupt; its {name} are computed again", file=sys.stderr)
            path.unlink(missing_ok=True)
    if not path.exists():
        _write(path, make(), [])
    header = _read_header(path)
    if header is None:
        raise UserError(f"{path}: cannot be read back; {ADVICE}")
    return {name: header.map(name) for name in header.tensors}


def kept_in_batches(
    folder: Path, name: str, key: str, make: Callable[[slice], Arrays], *, count: int, size: int = 64, what: str = ""
) -> dict[str, NDArray[Any]]:
    """``kept`` of what ``make`` gives for ``size`` of ``count`` items at a time, behind a bar on stderr."""

    from tqdm import tqdm

    def whole() -> dict[str, NDArray[Any]]:
        starts = tqdm(range(0, count, size), desc=what or name, unit="batch", file=sys.stderr, leave=False)
        parts = [make(slice(start, start + size)) for start in starts]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    return kept(folder, name, key, whole)


@functools.lru_cache(maxsize=256)
def _was_sound(path: Path, size: int, modified: int, changed: int) -> bool:
    """``_is_sound`` of a file of this size and times: large arrays are hashed once a process."""
    return _is_sound(path)


def place(folder: Path, kind: str, parts: Mapping[str, Any], *, write: bool = True) -> Path:
    """Folder of a cache with everything that decides its rows' values; ``cache.json`` tells it to people."""
    text = json.dumps(parts, sort_keys=True, indent=1, default=str)
    found = folder / f"{kind}-{sha256(text)[:20]}"
    if write and not (found / "cache.json").exists():
        write_atomic(found / "cache.json", text.encode(), advice=ADVICE)
    return found
