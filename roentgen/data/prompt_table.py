"""The one reader of prompts: text, CSV and JSON lines, and manifests whose texts are prompts."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roentgen.data.manifest import CORE, SEXES, SIDES, VIEWS, read_manifest
from roentgen.data.tables import column_names, read_table
from roentgen.errors import UserError
from roentgen.files import reason
from roentgen.prompts import FINDINGS, NO_FINDING, Labels, parse, read_labels_text

Lines = Iterator[tuple[int, Mapping[str, Any]]]  # line of the file, and its fields


@dataclass(frozen=True)
class PromptRecord:
    """One prompt of a file; ``seed`` is None where the file gives none, ``cells`` are its other columns."""

    id: str
    prompt: str
    seed: int | None = None
    cells: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledPrompt:
    """One row of a prompt list whose labels are known."""

    id: str
    prompt: str
    labels: Labels


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read a prompt file, UTF-8, in file order; never empty, ids unique.

    ``.txt``: one prompt a line, the line number is the id. ``.csv``: column ``prompt``, optional ``id`` and
    ``seed`` (an integer from 0). ``.jsonl``: objects with the same keys. Raises UserError that names the file, the
    line and the fix.
    """
    path = Path(path)
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise UserError(f"prompt file {path}: unknown extension {path.suffix!r}; use {', '.join(readers)}")
    records: list[PromptRecord] = []
    lines: dict[str, int] = {}
    for line, fields in readers[path.suffix.lower()](path):
        where = f"prompt file {path}, line {line}"
        prompt = fields.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{where}: empty prompt; write a text or delete the line")
        name = str(fields.get("id") if fields.get("id") not in (None, "") else f"{line:04d}").strip()
        if re.search(r"[/\\\x00]", name):
            raise UserError(f"{where}: id {name!r} has a path separator; ids become file names, so leave it out")
        if name in lines:
            raise UserError(f"{where}: id {name!r} was already used in line {lines[name]}; give each prompt its own")
        lines[name] = line
        records.append(PromptRecord(name, prompt.strip(), _seed(fields.get("seed"), where), fields))
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


def _read_csv(path: Path) -> Lines:
    fix = "it needs a column 'prompt' and one row a prompt"
    table = read_table(path, required=("prompt",), optional=None, name=f"prompt file {path}", fix=fix, lines=True)
    return zip(table.index, table.to_dict("records"), strict=True)


def _read_txt(path: Path) -> Lines:
    for number, line in enumerate(_text(path).rstrip().splitlines(), 1):
        yield number, {"prompt": line}


def _read_jsonl(path: Path) -> Lines:
    for number, line in enumerate(_text(path).rstrip().split("\n"), 1):
        try:
            fields = json.loads(line) if line.strip() else {"prompt": ""}
        except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets without end
            said = getattr(error, "msg", None) or reason(error)
            raise UserError(f"prompt file {path}, line {number} is not valid JSON ({said}); correct it") from None
        if not isinstance(fields, dict) or "prompt" not in fields:
            raise UserError(f'prompt file {path}, line {number} has no key \'prompt\'; write {{"prompt": "..."}}')
        yield number, fields


def _text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise UserError(f"prompt file {path} cannot be read (it is no regular file); check the path")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"prompt file {path} is not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"prompt file {path} cannot be read ({reason(error)}); check the path") from None


# ---------------------------------------------------------------------------------------------- labels


def has_labels(path: Path) -> bool:
    """Whether a file is a CSV with a column ``labels``."""
    return path.suffix.lower() == ".csv" and "labels" in column_names(path)


def read_labelled_prompts(path: Path) -> list[LabelledPrompt]:
    """Read a CSV of id, prompt, labels ("Effusion:left;Cardiomegaly"), and optionally view, sex, age.

    UserError names the file and what is wrong with it, an unknown finding included.
    """
    records = read_prompts(path)
    if path.suffix.lower() != ".csv":
        raise UserError(f"--prompts {path}: give a CSV with the columns id, prompt and labels")
    if "labels" not in records[0].cells:
        raise UserError(f"--prompts {path} has no column 'labels'; prompts/evaluation.csv has it")
    return [
        LabelledPrompt(record.id, record.prompt, _labels(record.cells, f"--prompts {path}, id {record.id}"))
        for record in records
    ]


def _labels(cells: Mapping[str, str], where: str) -> Labels:
    findings, sides = read_labels_text(cells["labels"])
    unknown = [name for name in findings if name not in FINDINGS]
    if unknown or not findings:
        problem = f"unknown finding {unknown[0]!r}" if unknown else "no finding"
        raise UserError(f"{where}: {problem} in column 'labels'; use the names of roentgen.prompts.FINDINGS")
    for name, side in sides.items():
        if side not in SIDES:
            raise UserError(f"{where}: unknown side {side!r} of {name}; write one of {', '.join(SIDES)}")
        if not FINDINGS[name].can_have_side:
            raise UserError(f"{where}: {name} can have no side; drop {side!r}")
    view, sex, years = (cells.get(column) or None for column in ("view", "sex", "age"))
    for column, value, allowed in (("view", view, VIEWS), ("sex", sex, SEXES)):
        if value is not None and value not in allowed:
            raise UserError(f"{where}: unknown {column} {value!r}; write {' or '.join(allowed)}, or leave it out")
    try:
        age = None if years is None else float(years)
    except ValueError as error:
        raise UserError(f"{where}: column 'age': {error}; write years or leave it blank") from None
    if age is not None and not math.isfinite(age):
        raise UserError(f"{where}: column 'age' is {years!r}; write years or leave it blank")
    return Labels(findings, sides, view, sex, age)


# ------------------------------------------------------------------------------------ rows of a manifest


def is_manifest_file(path: Path) -> bool:
    """Whether a file of prompts is a manifest, by its ending or its columns."""
    if path.suffix.lower() == ".parquet":
        return True
    return path.suffix.lower() == ".csv" and {"image", "text", "split"} <= set(column_names(path))


def manifest_rows(path: Path, split: str) -> list[dict[str, Any]]:
    """Texts of a manifest's split as prompts; labels are those of the images that the texts belong to."""
    table = read_manifest(path, splits=[split], allow_empty_text=True, check_files=False)
    table = table[table["text"] != ""]
    rows = []
    for row in table.to_dict("records"):
        kept = {str(key): value for key, value in row.items() if key not in CORE}
        known = {key: row[key] for key in ("text", "patient_id", "view", "sex", "age")}
        rows.append({**kept, **known, "split": "test", "prompt_id": Path(str(row["image"])).stem, "own_seed": None})
    if not rows:
        raise UserError(f"--prompts {path} has no text in split {split}; give a file of prompts")
    return rows


def prompt_rows(path: Path) -> list[dict[str, Any]]:
    """A manifest row a prompt: labels from the file's column where it has one, else as the prompt itself says."""
    records = read_prompts(path)
    if "labels" in records[0].cells and path.suffix.lower() == ".csv":
        labels = [prompt.labels for prompt in read_labelled_prompts(path)]
    else:
        labels = [parse(record.prompt) for record in records]
    rows: list[dict[str, Any]] = []
    for record, said in zip(records, labels, strict=True):
        row: dict[str, Any] = {
            "text": record.prompt,
            "patient_id": f"prompt {record.id}",
            "split": "test",
            "view": said.view or "",
            "sex": said.sex or "",
            "age": said.age,
            "prompt_id": record.id,
            "own_seed": record.seed,
        }
        row |= {name: 1.0 for name in said.findings}
        row |= {f"{name}_side": side for name, side in said.sides.items()}
        if said.findings and NO_FINDING not in said.findings:
            row[NO_FINDING] = 0.0
        rows.append(row)
    return rows
