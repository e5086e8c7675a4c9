"""The formats of a synthetic data set: an image folder with tables, Parquet, WebDataset, DICOM.

A set is made of shards: a fixed range of the plan's slots each, written by any process, in any order, and again after
a crash. The bytes depend on the records alone: no dates, no random names, one order. Files of slots lie in sub-folders
of a thousand, a shard's other files are named after it; a shard in which nothing was kept has none.

==========  ===================================================================================================
folder      ``images/00000/cxr00000012.png``; ``manifest.csv`` (roentgen), ``metadata.csv`` (Hugging Face ImageFolder),
            ``Data_Entry_synthetic.csv`` (NIH's layout, for torchxrayvision)
parquet     ``parquet/part-00000.parquet`` with Hugging Face's Image feature
webdataset  ``webdataset/shard-000000.tar`` of ``cxr00000012.png``, ``.txt`` (prompt), ``.json`` (all columns)
dicom       ``dicom/images/00000/cxr00000012/image.dcm``, ``dicom/reports/00000/cxr00000012/report.dcm``;
            ``dicom/index.csv``, a manifest too
==========  ===================================================================================================

A format is one file of this folder and one line of ``FORMATS``.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from pathlib import Path

from roentgen.errors import UserError
from roentgen.files import file_sha256, has_sha256, open_atomic
from roentgen.synthesis.store import WORK
from roentgen.synthesis.writers.dicom import DicomWriter
from roentgen.synthesis.writers.folder import FolderWriter
from roentgen.synthesis.writers.parquet import ParquetWriter
from roentgen.synthesis.writers.parts import Parts, Writer
from roentgen.synthesis.writers.webdataset import WebDatasetWriter

SUMS = "SHA256SUMS"


FORMATS: dict[str, type[Writer]] = {
    FolderWriter.name: FolderWriter,
    ParquetWriter.name: ParquetWriter,
    WebDatasetWriter.name: WebDatasetWriter,
    DicomWriter.name: DicomWriter,
}


def write_sums(out: Path) -> None:
    """``SHA256SUMS`` over every file of the set but itself and those at work, sorted, for ``sha256sum -c``.

    Files of shards have the sum that their part tells (what was meant, should the disk have spoiled it since); others
    are read. Memory does not grow with the number of files.

    UserError where a file of a shard is gone: sums without it would call a set whole that is not.
    """
    sums = [Parts(out, name).sums(folder) for name, writer in FORMATS.items() for folder in writer.folders]
    known = heapq.merge(*sums)
    path, sha = next(known, ("", ""))
    with open_atomic(out / SUMS, scratch=out / WORK / "scratch") as file:
        for found in _files(out, ""):
            if path and path < found:
                break
            file.write(f"{sha if path == found else file_sha256(out / found)}  {found}\n".encode())
            if path == found:
                path, sha = next(known, ("", ""))
        if path:
            raise UserError(f"{out / path} is gone; run the same command again")


def check_sums(out: Path) -> None:
    """UserError where a file that ``SHA256SUMS`` names is gone or has other bytes, or an image is not named there."""
    wrong = []
    found = filter(_of_images, _files(out, ""))
    at = next(found, None)
    try:
        with (out / SUMS).open(encoding="utf-8") as file:
            for line in file:  # both in the order of their text
                sha, _, path = line.rstrip("\n").partition("  ")
                while at is not None and at < path:
                    wrong.append(at)
                    at = next(found, None)
                if at == path:
                    at = next(found, None)
                if not path or not has_sha256(out / path, sha):
                    wrong.append(path or SUMS)
    except UnicodeDecodeError:
        wrong.append(SUMS)
    wrong += [path for path in (at, *found) if path is not None]
    if wrong:
        raise UserError(
            f"--out {out} is not whole: {len(wrong)} of its files are gone, damaged or not in {SUMS}, such as "
            f"{wrong[0]}; put them back from a copy, or make the set in another folder"
        )


def _of_images(path: str) -> bool:
    """Whether a file of a set is, or holds, an image or a report: those that nobody else puts there."""
    folders = tuple(folder for writer in FORMATS.values() for folder in writer.folders)
    return path.startswith(folders) and not any(part.startswith(".") for part in path.split("/"))


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
