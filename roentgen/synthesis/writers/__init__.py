"""The formats of a synthetic data set: an image folder with tables, Parquet, WebDataset, DICOM.

A set is made of shards: a fixed range of the plan's slots each, written by any process, in any order, and again after
a crash. The bytes depend on the records alone: no dates, no random names, one order. Files of slots lie in sub-folders
of a thousand, a shard's other files are named after it; a shard in which nothing was kept has none.

==========  ===================================================================================================
folder      ``images/00000/00000012.png``; ``manifest.csv`` (roentgen), ``metadata.csv`` (Hugging Face ImageFolder),
            ``Data_Entry_synthetic.csv`` (NIH's layout, for torchxrayvision)
parquet     ``parquet/train-00000.parquet`` with Hugging Face's Image feature
webdataset  ``webdataset/train-000000.tar`` of ``00000012.png``, ``.txt`` (prompt), ``.json`` (all columns)
dicom       ``dicom/00000/00000012/image.dcm`` and ``report.dcm``; ``dicom/index.csv``, a manifest too
==========  ===================================================================================================

A format is one file of this folder and one line of ``FORMATS``.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from roentgen.files import file_sha256, open_atomic
from roentgen.synthesis.store import WORK
from roentgen.synthesis.writers.dicom import DicomWriter
from roentgen.synthesis.writers.folder import FolderWriter
from roentgen.synthesis.writers.parquet import ParquetWriter
from roentgen.synthesis.writers.parts import Parts, Record, SetInfo
from roentgen.synthesis.writers.webdataset import WebDatasetWriter

SUMS = "SHA256SUMS"


class Writer(Protocol):
    """One format of a set."""

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """Write the kept records of one shard, in the order of slots. The same records give the same bytes, also over
        those of an earlier try; a killed call leaves nothing that ``is_written`` takes for finished.

        UserError where a file cannot be written, such as on a full disk; finished shards are untouched.
        """

    def is_written(self, shard: int) -> bool:
        """Whether the shard is finished and all its files have the SHA-256 that was written."""

    def finish(self, shards: int) -> None:
        """Write the files of the whole set from the parts of its shards; memory does not grow with their number.

        UserError where a shard is unfinished.
        """


FORMATS: dict[str, Callable[[Path, SetInfo], Writer]] = {
    FolderWriter.name: FolderWriter,
    ParquetWriter.name: ParquetWriter,
    WebDatasetWriter.name: WebDatasetWriter,
    DicomWriter.name: DicomWriter,
}


def write_sums(out: Path) -> None:
    """``SHA256SUMS`` over every file of the set but itself and those at work, sorted, for ``sha256sum -c``.

    Files of shards have the sum that their part tells (what was meant, should the disk have lost it since); others are
    read. Memory does not grow with the number of files.
    """
    known = heapq.merge(*(Parts(out, name).sums() for name in FORMATS))
    path, sha = next(known, ("", ""))
    with open_atomic(out / SUMS, scratch=out / WORK / "scratch") as file:
        for found in _files(out, ""):
            while path and path < found:
                path, sha = next(known, ("", ""))
            file.write(f"{sha if path == found else file_sha256(out / found)}  {found}\n".encode())


def _files(out: Path, folder: str) -> Iterator[str]:
    """Paths below ``out`` in the order of their text; a folder sorts as its name and the slash."""
    with os.scandir(out / folder) as entries:
        names = sorted(f"{folder}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries)
    for name in names:
        if name in {f"{WORK}/", SUMS}:
            continue
        if name.endswith("/"):
            yield from _files(out, name)
        else:
            yield name
