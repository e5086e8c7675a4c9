"""The WebDataset tars of ``roentgen export`` as a source of training images: indexed in memory, read by offset."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import as_cells, refuse, row_problems, typed
from roentgen.data.shard_source import ShardSource
from roentgen.errors import UserError
from roentgen.files import explained, sha256
from roentgen.images import SUFFIXES

TARS = "shard-*.tar"


def tars_of(folder: Path) -> list[Path]:
    """The tars of an exported set, or of its folder ``webdataset``; empty where it has none."""
    return sorted(folder.glob(TARS)) or sorted((folder / "webdataset").glob(TARS))


class ExportedShards(ShardSource):
    """Images of an exported set, by the columns in its tars; an ``ImageSource``.

    Raises:
        UserError: a tar is damaged, a row is no row of a manifest, or no row is in ``splits``.
    """

    def __init__(self, tars: list[Path], *, splits: Collection[str] | None, size: int) -> None:
        rows = [row for number, tar in enumerate(tars) for row in _rows(tar, number)]
        if not rows:
            raise UserError(f"{tars[0].parent}: its tars hold no images; export the set again")
        cells = as_cells(pd.DataFrame([row[0] for row in rows]))
        refuse(row_problems(cells), lambda row: f"{tars[0].parent}: image {row}", fix="; export the set again")
        table = typed(cells, tars[0].parent)
        kept = np.flatnonzero(table["split"].isin(list(splits)) if splits is not None else np.ones(len(table), bool))
        if not len(kept):
            raise UserError(f"{tars[0].parent} has no row in split {' or '.join(splits or ())}")
        self.size = size
        self.table = table.iloc[kept].reset_index(drop=True)
        self.groups: NDArray[np.int32] | None = np.array([rows[row][1] for row in kept], np.int32)
        self.digests: list[str] | None = [rows[row][4] for row in kept]
        self._tars = [str(tar) for tar in tars]
        self._offsets = np.array([rows[row][2] for row in kept], np.int64)
        self._lengths = np.array([rows[row][3] for row in kept], np.int64)
        self._reader = object()
        self._advice = "export the set again"
        self._names = self.table["image"].tolist()


def _rows(tar: Path, number: int) -> list[tuple[dict[str, Any], int, int, int, str]]:
    """(columns, number of the tar, offset, length and sha256 of the image) of each image of a tar."""
    about: dict[str, dict[str, Any]] = {}
    places: dict[str, tuple[int, int, str]] = {}
    with explained(f"{tar}: cannot be read", "export the set again", (tarfile.TarError, OSError, EOFError, ValueError)):
        with tarfile.open(tar) as archive:
            for member in archive:
                stem, _, ending = member.name.rpartition(".")
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if ending == "json":
                    about[stem] = json.loads(content.read())
                elif f".{ending}" in SUFFIXES:
                    places[stem] = (member.offset_data, member.size, sha256(content.read()))
        with tar.open("rb") as file:  # tarfile takes a tar that was cut between two members for a whole one
            file.seek(-1024, 2)
            if file.read().strip(b"\0"):
                raise EOFError("it is cut off")
    if about.keys() != places.keys() or not all(isinstance(row, dict) for row in about.values()):
        raise UserError(f"{tar}: images and their columns do not match; export the set again")
    return [(row, number, *places[stem]) for stem, row in about.items()]
