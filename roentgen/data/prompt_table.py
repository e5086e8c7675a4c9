"""Files of prompts: text, CSV or JSON lines, read with the mistakes named."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roentgen.errors import UserError


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of a file; ``seed`` is None where the file gives none."""

    id: str
    prompt: str
    seed: int | None = None


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read a prompt file, UTF-8, in file order; never empty, ids unique.

    ``.txt``: one prompt a line, the line number is the id. ``.csv``: column ``prompt``, optional ``id`` and
    ``seed`` (an integer from 0), others ignored. ``.jsonl``: objects with the same keys. Raises UserError
    that names the file, the line and the mend.
    """
    path = Path(path)
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise UserError(f"prompt file {path}: unknown extension {path.suffix!r}; use {', '.join(readers)}")
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"prompt file {path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"prompt file {path} cannot be read ({error.strerror}); check the path") from None

    records: list[PromptRecord] = []
    lines: dict[str, int] = {}
    for line, fields in readers[path.suffix.lower()](content, path):
        where = f"prompt file {path}, line {line}"
        prompt, seed = fields.get("prompt"), fields.get("seed")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: empty prompt; write a text or delete the line")
        name = str(fields.get("id") if fields.get("id") not in (None, "") else f"{line:04d}").strip()
        if re.search(r"[/\\\x00]", name):
            raise UserError(f"{where}: id {name!r} has a path separator; ids become file names, so leave it out")
        if name in lines:
            raise UserError(f"{where}: id {name!r} was already used in line {lines[name]}; give each prompt its own")
        lines[name] = line
        records.append(PromptRecord(name, prompt.strip(), _seed(seed, where)))
    if not records:
        raise UserError(f"prompt file {path} holds no prompt; write at least one")
    return records


def _seed(value: Any, where: str) -> int | None:
    if value is None or value == "":
        return None
    is_number = isinstance(value, str | int) and not isinstance(value, bool)
    if not is_number or not re.fullmatch(r"\d{1,19}", str(value).strip()) or int(value) >= 2**63:
        raise UserError(f"{where}: seed {value!r} is not an integer from 0 to 2^63 - 1; correct it or leave it blank")
    return int(value)


def _read_txt(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.rstrip().splitlines(), 1):
        yield number, {"prompt": line}


def _read_csv(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        if "prompt" not in (reader.fieldnames or ()):
            raise UserError(f"prompt file {path} has no column 'prompt'; its first line must name one")
        for row in reader:
            if None in row:
                where = f"prompt file {path}, line {reader.line_num}"
                raise UserError(f"{where}: more fields than columns; put prompts with commas in quotes")
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"prompt file {path}, line {reader.line_num} is not valid CSV ({error}); correct the quotes"
        ) from None


def _read_jsonl(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.rstrip().split("\n"), 1):
        try:
            fields = json.loads(line) if line.strip() else {"prompt": ""}
        except json.JSONDecodeError as error:
            raise UserError(f"prompt file {path}, line {number} is not valid JSON ({error.msg}); correct it") from None
        if not isinstance(fields, dict) or "prompt" not in fields:
            raise UserError(f'prompt file {path}, line {number} has no key \'prompt\'; write {{"prompt": "..."}}')
        yield number, fields
