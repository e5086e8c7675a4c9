"""The one reader of tables: every adapter, manifest and prompt file that is a CSV comes through ``read_table``.

What a table says is read whole or refused with its line, never shortened: a report with a comma that nobody quoted, a
quote that nobody closed, bytes of another encoding.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from roentgen.errors import UserError
from roentgen.files import reason

SEPARATORS = (",", ";", "\t")
LONGEST_LINE = 2**24  # bytes; a longer one is no table, and is not read into memory
MOST_COLUMNS = 10_000
BLOCK = 20_000  # rows
UNICODE_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)")  # how old Mac programs end a line


def read_table(
    path: Path,
    *,
    required: Sequence[str] = (),
    optional: Sequence[str] | None = (),
    name: str = "",
    fix: str = "download it again",
    lines: bool = False,
) -> pd.DataFrame:
    """The wanted columns of a CSV (gzip by its ending), as stripped text cells with "" for blank.

    Columns are separated by commas, or by semicolons or tabs where only these give the required columns. Rows may be
    shorter than the header, and longer by blank fields, as spreadsheets write them; columns without a name are left
    out, and at the end of the header they count as blank fields.

    Args:
        path: the file; UTF-8, with a byte order mark or without.
        required: columns that it must have.
        optional: columns that are read where it has them; None: all others.
        name: what messages call the file, such as a flag with it; left out: the path.
        fix: what to do about a file without header, rows or a column, and about a damaged one.
        lines: name the rows by the line of the file that each begins in, not from 0.

    Raises:
        UserError: when the file cannot be read, is cut short, lacks a column, has no rows, or a line is not a row.
    """
    name = name or str(path)
    wanted = None if optional is None else {*required, *optional}
    found = _rows(path, required, name=name, fix=fix)
    _, header = next(found, (0, []))
    header = [column.strip() for column in header]
    while header and not header[-1]:
        header.pop()
    if not header:
        raise UserError(f"{name} cannot be read as CSV: it is empty; {fix}")
    if len(header) > MOST_COLUMNS:
        raise UserError(f"{name} has {len(header):,} columns, more than {MOST_COLUMNS:,}; {fix}")
    for column in required:
        if column not in header:
            has = ", ".join(header[:12]) + (", ..." if len(header) > 12 else "")
            raise UserError(f"{name} lacks the column {column!r} (it has {has}); {fix}")
    kept = [place for place, column in enumerate(header) if column and (wanted is None or column in wanted)]
    for place, column in enumerate(header):
        if place in kept and column in header[:place]:
            raise UserError(f"{name} has two columns {column!r}; rename or remove one")
    rows: list[list[str]] = []
    blocks: list[pd.DataFrame] = []
    numbers, width = [], len(header)
    for number, fields in found:
        if len(fields) > width and any(field.strip() for field in fields[width:]):
            raise UserError(
                f"{name} cannot be read as CSV, line {number}: more fields than columns ({len(fields)} for {width}); "
                "put texts with commas in quotes"
            )
        rows.append(fields + [""] * (width - len(fields)))
        numbers.append(number)
        if len(rows) == BLOCK:
            blocks.append(_block(rows, header, kept))
            rows = []
    if not numbers:
        raise UserError(f"{name} has no rows; {fix}")
    table = pd.concat([*blocks, _block(rows, header, kept)], ignore_index=True)
    return table.set_axis(numbers) if lines else table


def _block(rows: list[list[str]], header: list[str], kept: list[int]) -> pd.DataFrame:
    """Rows as stripped columns; a block at a time, as pandas' strings need less memory than lists of Python's."""
    return pd.DataFrame({header[place]: [row[place].strip() for row in rows] for place in kept}, dtype=str)


def column_names(path: Path) -> list[str]:
    """The names in the header of a CSV; none where it cannot be read, which ``read_table`` will say."""
    try:
        return [column.strip() for column in next(_rows(path, (), name=str(path), fix=""), (0, []))[1]]
    except UserError:
        return []


def _rows(path: Path, required: Sequence[str], *, name: str, fix: str) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins in, fields) of every row that is not an empty line, the header first."""
    begin = 1
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise UserError(f"{name} cannot be read as CSV: it is no regular file; {fix}")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = _lines(file, name)
            first = next(lines, "")
            reader = csv.reader(itertools.chain([first], lines), delimiter=_separator(first, required), strict=True)
            for fields in reader:
                if fields:
                    yield begin, fields
                begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{name} cannot be read as CSV, line {begin}: not valid CSV ({error}); correct its quotes, or {fix}"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; {fix}") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"{name} cannot be read as CSV ({reason(error)}); {fix}") from error


def _lines(file: BinaryIO | gzip.GzipFile, name: str) -> Iterator[str]:
    number = 0
    while raw := file.readline(LONGEST_LINE):
        if not number:
            if raw[:2] in UNICODE_MARKS:
                raise UserError(f"{name} cannot be read as CSV: it is {UNICODE_MARKS[raw[:2]]} text; save it as UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) == LONGEST_LINE:
            raise UserError(
                f"{name} cannot be read as CSV, line {number + 1}: longer than {LONGEST_LINE:,} bytes; it is no table"
            )
        for part in _LONE_RETURN.split(raw) if b"\r" in raw else (raw,):
            if not part:
                continue
            number += 1
            if b"\0" in part:
                raise UserError(
                    f"{name} cannot be read as CSV, line {number}: it has a NUL byte; save it as UTF-8 text"
                )
            try:
                yield part.decode()
            except UnicodeDecodeError as error:
                byte = part[error.start]
                raise UserError(
                    f"{name} cannot be read as CSV, line {number}: not UTF-8 text (byte 0x{byte:02x}, perhaps latin-1 "
                    "or Windows-1252); save it as UTF-8 (spreadsheets: 'CSV UTF-8'; iconv -f CP1252 -t UTF-8)"
                ) from error


def _separator(header: str, required: Sequence[str]) -> str:
    """What separates the columns: the first of ``SEPARATORS`` that gives all the required ones, else a comma."""
    for separator in SEPARATORS:
        names = {name.strip().strip('"').strip() for name in header.split(separator)}
        if required and names.issuperset(required):
            return separator
    return SEPARATORS[0]
