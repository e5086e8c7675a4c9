"""Where training images come from, and in which order an epoch reads them: files of a manifest, shards, or an array."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.cache import kept
from roentgen.data.manifest import SUFFIXES, read_manifest
from roentgen.devices import TEAM_OF_ONE, Team
from roentgen.digests import file_digests
from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.images import read_image, resize_center_crop

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class ImageSource(Protocol):
    """Rows of a data set and their images, wherever these lie; safe to read from several threads.

    ``table``: typed manifest rows, as ``read_manifest`` returns them. ``groups``: int32 (N,), number of the shard of
    each row; None where each image is a file. ``size``: pixels of a side. ``digests``: sha256 (hex) of each image's
    bytes where that is known without reading them, else None.
    """

    table: pd.DataFrame
    groups: NDArray[np.int32] | None
    size: int
    digests: list[str] | None

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` as uint8 (size, size); UserError where it is missing or cannot be read."""
        ...

    def read_many(self, indices: Iterable[int], *, threads: int = 4) -> NDArray[np.uint8]:
        """Images as uint8 (B, size, size) in the order of ``indices``."""
        ...


class FileSource:
    """The images of a manifest, each in its own file."""

    groups: NDArray[np.int32] | None = None
    digests: list[str] | None = None

    def __init__(self, table: pd.DataFrame, *, size: int) -> None:
        self.table = table
        self.size = size
        self._paths = table["image"].tolist()

    def read(self, index: int) -> NDArray[np.uint8]:
        """See ``ImageSource``."""
        return resize_center_crop(read_image(self._paths[index]), self.size)

    def read_many(self, indices: Iterable[int], *, threads: int = 4) -> NDArray[np.uint8]:
        """See ``ImageSource``."""
        return read_together(self, indices, threads=threads)


def read_together(source: ImageSource, indices: Iterable[int], *, threads: int) -> NDArray[np.uint8]:
    """``source.read`` of each index in ``threads`` threads, as uint8 (B, size, size)."""
    wanted = [int(index) for index in indices]
    out = np.empty((len(wanted), source.size, source.size), dtype=np.uint8)
    # A pool for each call: starting threads takes far less than decoding, and nothing is left behind at a fork.
    with ThreadPoolExecutor(max(1, min(threads, len(wanted)))) as pool:
        for place, image in enumerate(pool.map(source.read, wanted)):
            out[place] = image
    return out


def map_images(function: Callable[[str], T], images: Iterable[str], *, desc: str, leave: bool = True) -> list[T]:
    """``function`` over image paths in threads, in order, with a progress bar on stderr that may ``leave`` a line."""
    from tqdm import tqdm

    paths = list(images)
    # Decoding and resizing release the interpreter's lock, so threads are as good as processes here.
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = pool.map(function, paths)
        return list(tqdm(found, total=len(paths), desc=desc, unit="image", file=sys.stderr, leave=leave))


def open_source(path: Path, *, splits: Collection[str] | None, size: int) -> ImageSource:
    """The images of a manifest (.csv, .parquet), of a folder written by ``roentgen data shard``, or of an exported set.

    Args:
        path: the manifest or the folder.
        splits: keep only these; None keeps all.
        size: images are resized to this shorter side, and the centre square is cropped.

    Raises:
        UserError: as ``read_manifest`` does; for shards that are missing, cut off, or smaller than ``size``.
    """
    from roentgen.data.exported import ExportedShards, tars_of
    from roentgen.data.shard_source import ABOUT, INDEX, ShardSource

    path = Path(path)
    if path.name == INDEX and (path.parent / ABOUT).is_file():
        path = path.parent
    if path.is_dir() and not (path / ABOUT).is_file():
        manifest = next((path / name for name in ("manifest.csv", "dicom/index.csv") if (path / name).is_file()), None)
        if manifest is not None:
            return FileSource(read_manifest(manifest, splits=splits), size=size)
        if tars := tars_of(path):
            return ExportedShards(tars, splits=splits, size=size)
    if path.is_dir():
        return ShardSource(path, splits=splits, size=size)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: neither a manifest (.csv, .parquet) nor a folder written by `roentgen data shard`")
    return FileSource(read_manifest(path, splits=splits), size=size)


def epoch_order(count: int, groups: NDArray[np.integer] | None, *, seed: int, epoch: int, window: int = 4) -> Tensor:
    """The order in which an epoch reads ``count`` rows: an int64 permutation that depends on the arguments alone.

    With ``groups``, the shard of each row (count,), shards come in random order and a row of the k-th is read at a
    uniform random time in [k, k + window). So at most ``window`` shards are being read at any time, each from its first
    row to its last just once, which suits spinning and network disks; within them, order is random. Shards should be
    random samples of the data set, which those of ``roentgen data shard`` are unless it is told otherwise.
    """
    import torch

    if groups is not None and len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} rows")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    time = rng.random(count)
    if groups is not None:
        _, number = np.unique(np.asarray(groups), return_inverse=True)
        rank = np.argsort(rng.random(int(number.max(initial=-1)) + 1), kind="stable").argsort(kind="stable")
        time = rank[number] + window * time
    return torch.from_numpy(np.argsort(time, kind="stable").astype(np.int64))


def image_digests(source: ImageSource, folder: Path, *, team: Team = TEAM_OF_ONE) -> list[str]:
    """SHA-256 of each image's bytes; see ``file_digests``, which hashes what the source does not know. Two barriers."""
    if source.digests is None:
        return file_digests(source.table["image"].tolist(), folder, team=team)
    team.wait()
    team.wait()
    return source.digests


# Changing how images are read or resized must change this, or old caches would be taken for new.
CHAIN = "read_image+resize_center_crop-1"


@dataclass(frozen=True)
class PixelArray:
    """``pixels`` uint8 (N, size, size); ``native`` int32 (N,): shorter side of each image on disk, in pixels."""

    pixels: NDArray[np.uint8]
    native: NDArray[np.int32]


def load_pixels(paths: Sequence[str], *, size: int, cache: Path | None = None) -> PixelArray:
    """Read images, resize the shorter side to ``size`` and crop the centre square; order is that of ``paths``.

    With ``cache`` (a folder) the array is kept there under a key of the files' content, size and chain, and
    memory-mapped on later calls. An unreadable image raises ``UserError``; none is ever replaced.
    """
    if not paths:
        raise UserError("the manifest holds no images for this split; check its split column")

    def one(path: str) -> tuple[NDArray[np.uint8], int]:
        image = read_image(path)
        return resize_center_crop(image, size), min(image.shape)

    def make() -> dict[str, NDArray[Any]]:
        results = map_images(one, paths, desc="reading images", leave=False)
        native = np.array([side for _, side in results], dtype=np.int32)
        return {"pixels": np.stack([pixels for pixels, _ in results]), "native": native}

    if cache is None:
        return PixelArray(**make())
    key = sha256("\n".join([CHAIN, str(size), *file_digests(paths, cache / "images")]))
    return PixelArray(**kept(cache, "pixels", key, make))
