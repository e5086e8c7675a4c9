"""What in a folder should not be published: texts that seem to say who a patient is, paths of a machine, real images.

The detector of texts is that of ``roentgen data check``: by form, so that names without a title are not found.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from roentgen.data.text_statistics import identifiers
from roentgen.dicom import has_no_pixels, open_dicom
from roentgen.errors import UserError
from roentgen.files import read_bytes, reason
from roentgen.images import SUFFIXES, read_provenance
from roentgen.provenance import SOFTWARE

# Lists of tokens, not texts.
TOKENS = frozenset({"vocab.json", "vocab.txt", "merges.txt", "tokenizer.json", "special_tokens_map.json"})
HOME = re.compile(r"(?:/(?:home|Users|root)/|[A-Za-z]:\\Users\\)[\w.-]+")
# Hashes of models and files in hex, whole or as their first 16 digits, hold runs of digits like numbers of records.
HASH = re.compile(r"\b(?:[0-9a-f]{64}|[0-9a-f]{40}|[0-9a-f]{16})\b")
_CODE = re.compile(r"```.*?```|`[^`]*`|\bhttps?://\S+", re.DOTALL)


def find_leaks(folder: Path, files: Iterable[Path]) -> list[tuple[str, str]]:
    """(file relative to ``folder``, what it holds), each pair once; never the words themselves."""
    found: dict[tuple[str, str], None] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        for text in _texts(path):
            kinds = identifiers(HASH.sub(" ", text)) if " " in text.strip() else []
            if HOME.search(text):
                kinds = [*kinds, "a path of somebody's machine"]
            found |= dict.fromkeys((name, kind) for kind in kinds)
    return list(found)


def unmarked_images(folder: Path, files: Iterable[Path]) -> list[tuple[str, str]]:
    """(file, what is wrong with it) of the images that are not wholly synthetic, as their marks say."""
    found = []
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            try:
                wrong = "an edited image, partly of its source" if "edited" in read_provenance(path) else ""
            except UserError:
                wrong = "" if _is_own_report(path) else "an image without the marks of a synthetic one"
            if wrong:
                found.append((path.relative_to(folder).as_posix(), wrong))
    return found


def _is_own_report(path: Path) -> bool:
    """Whether a file is a DICOM report, without pixels, that roentgen wrote."""
    if SUFFIXES.get(path.suffix.lower()) != "dicom" or not has_no_pixels(path):
        return False
    return str(open_dicom(path, path).get("Manufacturer", "")) == SOFTWARE


def _texts(path: Path) -> Iterator[str]:
    """The texts that a file holds, as far as its kind is known. UserError where it is damaged."""
    try:
        yield from _texts_of_kind(path)
    except UserError:
        raise
    except Exception as error:  # what reads Parquet, tar and JSON raises many kinds
        raise UserError(f"{path}: cannot be read ({reason(error)}); make it again, or leave it out") from error


def _texts_of_kind(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        texts = (pa.types.is_string, pa.types.is_large_string)
        columns = [field.name for field in file.schema_arrow if any(is_text(field.type) for is_text in texts)]
        for batch in file.iter_batches(columns=columns) if columns else ():
            for column in batch.columns:
                yield from (str(value) for value in column.to_pylist() if value)
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and Path(member.name).suffix in READERS:
                    yield from READERS[Path(member.name).suffix](content.read())
    elif path.name not in TOKENS and path.suffix in READERS:
        yield from READERS[path.suffix](read_bytes(path))


def _lines(data: bytes) -> Iterator[str]:
    yield from data.decode("utf-8", "replace").splitlines()


def _prose(data: bytes) -> Iterator[str]:
    """Lines of Markdown without code and addresses, which are full of numbers."""
    yield from _CODE.sub(" ", data.decode("utf-8", "replace")).splitlines()


def _cells(data: bytes, separator: str = ",") -> Iterator[str]:
    import csv

    for row in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), delimiter=separator):
        yield from row


def _values(data: bytes) -> Iterator[str]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        yield from _lines(data)
    else:
        yield from _strings(value)


def _json_lines(data: bytes) -> Iterator[str]:
    for line in data.splitlines():
        yield from _values(line)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


READERS = {
    ".txt": _lines,
    ".yaml": _lines,
    ".md": _prose,
    ".csv": _cells,
    ".tsv": lambda data: _cells(data, "\t"),
    ".json": _values,
    ".jsonl": _json_lines,
}
