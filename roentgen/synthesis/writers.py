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
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from roentgen.data.labels import NIH_14, NO_FINDING
from roentgen.images import encode_image, open_atomic, write_atomic
from roentgen.prompts.vocabulary import NARROWER
from roentgen.synthesis.card import write_card
from roentgen.synthesis.parts import (
    FOLDER_SIZE,
    WORK,
    HashedFile,
    Part,
    Parts,
    ShardWriter,
    cell_text,
    cells,
    columns,
    file_sha256,
    open_table,
)
from roentgen.synthesis.records import Record, SetInfo
from roentgen.synthesis.writers_dicom import DicomWriter

__all__ = ["FORMATS", "SUMS", "Writer", "write_card", "write_sums"]

SUMS = "SHA256SUMS"
ROW_GROUP = 100  # images; what a reader of Parquet must hold at once
NIH_COLUMNS = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
    *("Prompt", "Seed", "Model Hash", "Synthetic"),  # beyond NIH's own, as every table says what it is of
)


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


class FolderWriter(ShardWriter):
    """PNG files and three tables."""

    name = "folder"

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        files, rows = {}, []
        for record in records:
            path = f"images/{record.row.slot // FOLDER_SIZE:05d}/{record.name}.png"
            data = encode_image(record.image, "png", record.provenance)
            write_atomic(self.out / path, data, scratch=self.parts.scratch)
            files[path] = hashlib.sha256(data).hexdigest()
            labels = _nih_labels(record)
            rows.append([*cells(record, self.info, path), *reversed(record.image.shape), labels])
        self.parts.write(shard, Part(files, rows))

    def finish(self, shards: int) -> None:
        """See ``Writer``."""
        names = [column.name for column in columns(self.info)]
        tables = {
            "manifest.csv": names,
            "metadata.csv": ["file_name", *names[1:]],  # "image" is the name that ImageFolder gives to the pixels
            "Data_Entry_synthetic.csv": NIH_COLUMNS,
        }
        with contextlib.ExitStack() as stack:
            manifest, metadata, nih = (
                stack.enter_context(open_table(self.out / path, header, scratch=self.parts.scratch))
                for path, header in tables.items()
            )
            for *values, width, height, labels in self.parts.rows(shards):
                row = [cell_text(value) for value in values]
                manifest.writerow(row)
                metadata.writerow(row)
                nih.writerow(_nih_row(dict(zip(names, row, strict=True)), width, height, labels))


def _nih_labels(record: Record) -> str:
    """NIH's "Finding Labels"; findings outside its fourteen keep roentgen's name.

    In that layout what is not named is absent, so the wider finding is named with the narrower.
    """
    asked = list(record.row.labels.findings)
    asked += [wide for wide, narrow in NARROWER.items() if narrow & set(asked) and wide not in asked]
    known = [name for name in (NO_FINDING, *NIH_14) if name in asked]
    return "|".join(known + [name for name in asked if name not in known]) or "Unknown"


def _nih_row(row: dict[str, str], width: int, height: int, labels: str) -> list[Any]:
    return [
        *(row["image"].removeprefix("images/"), labels, 0, row["patient_id"], row["age"], row["sex"]),
        row["view"] or "UNKNOWN",  # torchxrayvision's word; a column of blanks would be read as numbers
        *(width, height, "", ""),
        *(row["text"], row["seed"], row["model_hash"], row["synthetic"]),
    ]


class ParquetWriter(ShardWriter):
    """One Parquet file a shard; ``image`` holds the PNG."""

    name = "parquet"

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        import pyarrow
        import pyarrow.parquet

        if not records:
            self.parts.write(shard, Part({}, []))
            return
        schema = self._schema()
        path = f"parquet/train-{shard:05d}.parquet"
        with open_atomic(self.out / path, scratch=self.parts.scratch) as file:
            hashed = HashedFile(file)
            with pyarrow.parquet.ParquetWriter(hashed, schema) as table:
                for start in range(0, len(records), ROW_GROUP):
                    rows = [self._row(record) for record in records[start : start + ROW_GROUP]]
                    table.write_table(pyarrow.Table.from_pylist(rows, schema))
        self.parts.write(shard, Part({path: hashed.sha256()}, []))

    def _row(self, record: Record) -> dict[str, Any]:
        names = [column.name for column in columns(self.info)]
        row = dict(zip(names, cells(record, self.info, f"{record.name}.png"), strict=True))
        data = encode_image(record.image, "png", record.provenance)
        return row | {"image": {"bytes": data, "path": row["image"]}}

    def _schema(self) -> Any:
        import pyarrow

        types = {kind: pyarrow.type_for_alias(kind) for kind in ("string", "int8", "int64", "float64", "bool")}
        fields = {column.name: types[column.kind] for column in columns(self.info)}
        fields["image"] = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        features: dict[str, Any] = {c.name: {"dtype": c.kind, "_type": "Value"} for c in columns(self.info)}
        features["image"] = {"_type": "Image"}
        return pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class WebDatasetWriter(ShardWriter):
    """One tar a shard.

    Hugging Face takes the types of the JSON from the first five rows of the first tar and fails at any other, null
    among them: so what may be blank (labels, age) is text there, as in the CSV files.
    """

    name = "webdataset"

    def write_shard(self, shard: int, records: Sequence[Record]) -> None:
        """See ``Writer``."""
        if not records:
            self.parts.write(shard, Part({}, []))
            return
        path = f"webdataset/train-{shard:06d}.tar"
        with open_atomic(self.out / path, scratch=self.parts.scratch) as file:
            hashed = HashedFile(file)
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                for record in records:
                    _add(tar, f"{record.name}.png", encode_image(record.image, "png", record.provenance))
                    _add(tar, f"{record.name}.txt", record.row.prompt.encode())
                    _add(tar, f"{record.name}.json", self._json(record))
        self.parts.write(shard, Part({path: hashed.sha256()}, []))

    def _json(self, record: Record) -> bytes:
        values = cells(record, self.info, f"{record.name}.png")
        pairs = zip(columns(self.info), values, strict=True)
        row = {column.name: cell_text(value) if column.blank else value for column, value in pairs}
        return json.dumps(row, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its own time, owner and mode are constants, so bytes repeat
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


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
