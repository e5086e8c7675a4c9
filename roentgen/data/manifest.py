"""The manifest: one row an image, the only format that training and evaluation read.

A CSV or Parquet file with the columns

- ``image``: path, relative to the manifest's folder or absolute
- ``text``: the report or prompt
- ``patient_id``, ``split`` (train, val, test): no patient in two splits
- ``view`` (PA, AP, blank), ``sex`` (M, F, blank), ``age`` (years, blank), ``source``, ``licence``
- one column a finding, named as in ``roentgen.prompts.FINDINGS``: 1, 0, or blank for unknown
- optionally ``weight``: how often training draws the image against others, above 0
- optionally ``<Finding>_side``: left, right, bilateral (the patient's side) or blank
- optionally ``<Finding>_severity``: a word that suits the finding ("small" effusion, "severe" cardiomegaly) or blank

``image``, ``text``, ``patient_id`` and ``split`` are required; the rest may be left out and is then
blank. Other columns are kept and never read. A bad row is an error, never dropped or mended.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.files import reason, regular, write_atomic
from roentgen.prompts import FINDINGS, NO_FINDING

REQUIRED = ("image", "text", "patient_id", "split")
OPTIONAL = ("view", "sex", "age", "source", "licence")
CORE = REQUIRED + OPTIONAL
SPLITS = ("train", "val", "test")
VIEWS = ("PA", "AP")
SEXES = ("M", "F")
SIDES = ("left", "right", "bilateral")
SIDE_SUFFIX = "_side"
SEVERITY_SUFFIX = "_severity"
WEIGHT = "weight"
MAX_AGE = 120  # de-identified sets write older patients as 90 or so; NIH has typing errors above 400
SUFFIXES = (".csv", ".parquet")

CHECK_HINT = "run `roentgen data check` on it for the whole list"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row: ``row`` counts from 1 below the header."""

    row: int
    kind: str  # short key, the same for all problems of a sort: "split", "patient in two splits", ...
    message: str


def read_manifest(
    path: str | Path,
    *,
    splits: Collection[str] | None = None,
    allow_empty_text: bool = False,
    check_files: bool = True,
) -> pd.DataFrame:
    """Read and validate a manifest; the whole file is validated, also the rows outside ``splits``.

    Args:
        path: CSV or Parquet file.
        splits: keep only these splits; None keeps all. An empty selection is an error.
        allow_empty_text: for uses that need no text, such as training an autoencoder.
        check_files: look that every image file exists.

    Returns:
        Rows in file order. ``image`` is an absolute path (str); text columns are str with "" for
        blank; ``age`` and the findings are float64 with NaN for blank.

    Raises:
        UserError: naming the file and the column, row or patient that is wrong.
    """
    path = Path(path)
    table = load_table(path)
    problems = row_problems(table)
    if not allow_empty_text:
        empty = empty_texts(table)
        if 2 * len(empty) > len(table):
            raise UserError(
                f"{path}: {len(empty)} of {len(table)} texts are empty; prepare it again with texts ({CHECK_HINT})"
            )
        problems += empty
    refuse(problems, lambda row: f"{path}, row {row}", more=f"; {CHECK_HINT}")
    table = typed(table, path.parent)
    if splits is not None:
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise UserError(f"split {unknown[0]!r} does not exist; choose from {', '.join(SPLITS)}")
        table = table[table["split"].isin(list(splits))].reset_index(drop=True)
        if table.empty:
            raise UserError(f"{path} has no row in split {' or '.join(splits)}; fill its split column")
    if check_files:
        missing = [image for image in table["image"] if not Path(image).is_file()]
        if missing:
            raise UserError(
                f"{path} names {len(missing)} image file(s) that do not exist, the first is {missing[0]}; "
                f"mend the image column ({CHECK_HINT})"
            )
    return table


def refuse(problems: Sequence[Problem], where: Callable[[int], str], *, more: str = "", fix: str = "") -> None:
    """UserError where there are ``problems``: the first by row, whose place ``where`` says, and how many more."""
    if problems:
        first = min(problems, key=lambda problem: problem.row)
        others = f" (and {len(problems) - 1} more{more})" if len(problems) > 1 else ""
        raise UserError(f"{where(first.row)}: {first.message}{others}{fix}")


def train_and_val(path: Path, *, allow_empty_text: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the splits `train` and `val`, numbered from 0 each; UserError where one of them has none."""
    table = read_manifest(path, splits=["train", "val"], allow_empty_text=allow_empty_text)
    train, val = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    if not len(train) or not len(val):
        raise UserError(f"--manifest {path}: needs images of the splits train and val")
    return train, val


def load_table(path: Path) -> pd.DataFrame:
    """Read the file as text cells, "" for blank, with all core columns present.

    Checks the file and its columns, not its rows: this is the part of reading that
    ``roentgen data check`` cannot do without.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"manifest {path} must be a .csv or .parquet file")
    if path.suffix.lower() == ".csv":
        fix = f"it needs the columns {', '.join(REQUIRED)}; write it again with `roentgen data prepare`"
        table = read_table(path, optional=None, name=f"manifest {path}", fix=fix)
    else:
        try:
            table = pd.read_parquet(regular(path))
        except FileNotFoundError:
            raise UserError(f"manifest {path} does not exist; write one with `roentgen data prepare`") from None
        except Exception as error:  # pyarrow's parse errors are of many classes, and pandas' own notes may be damaged
            raise UserError(f"manifest {path} cannot be read as parquet: {reason(error)}") from error
    table.columns = table.columns.map(str)
    missing = [column for column in REQUIRED if column not in table.columns]
    if missing:
        raise UserError(f"manifest {path} lacks the column {', '.join(map(repr, missing))}; add it")
    _check_column_names(table, path)
    if table.empty:
        raise UserError(f"manifest {path} has no rows; write it again with `roentgen data prepare`")
    return as_cells(table)


def as_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Any table as stripped text cells, "" for blank, with all core columns; rows are numbered anew."""
    cells = pd.DataFrame({column: _cells(table[column]) for column in table.columns}, dtype=str)
    for column in OPTIONAL:
        if column not in cells.columns:
            cells[column] = ""
    return cells


def _cells(values: pd.Series) -> NDArray[np.object_]:
    codes, distinct = pd.factorize(values, use_na_sentinel=False)  # most columns hold a few values only
    return np.array([_cell(value).strip() for value in distinct], dtype=object)[codes]


def _cell(value: object) -> str:
    """A Parquet value as CSV would hold it: 1.0 -> "1", missing -> ""."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _check_column_names(table: pd.DataFrame, path: Path) -> None:
    """Catch misspelled finding columns, which would else be ignored as columns of the user's own."""
    simple = {simple_name(name): name for name in FINDINGS}
    for column in table.columns:
        if column in CORE or column in FINDINGS:
            continue
        suffix = next((suffix for suffix in (SIDE_SUFFIX, SEVERITY_SUFFIX) if column.endswith(suffix)), "")
        name = column.removesuffix(suffix)
        if suffix and name in FINDINGS:
            continue
        close = difflib.get_close_matches(simple_name(name), simple, n=1, cutoff=0.85)
        if close:
            meant = simple[close[0]] + suffix
            raise UserError(f"manifest {path} has an unknown column {column!r}; rename it to {meant!r}")


def simple_name(name: str) -> str:
    """A name as its lower-case letters and digits: how people write a finding does not matter."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def finding_columns(table: pd.DataFrame) -> list[str]:
    """The finding columns that the table has, in the vocabulary's order."""
    return [name for name in FINDINGS if name in table.columns]


def labels_in(table: pd.DataFrame, findings: Sequence[str]) -> NDArray[np.float32]:
    """Labels (N, F) in {0, 1, NaN} of ``findings``, NaN where the table has no column or does not say.

    An image that is known to have no finding has none of them.
    """
    nothing = np.full(len(table), np.nan, dtype=np.float32)
    columns = [table[f].to_numpy(np.float32, na_value=np.nan) if f in table else nothing for f in findings]
    labels = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.float32)
    if NO_FINDING in table:
        labels[np.isnan(labels) & (table[NO_FINDING].to_numpy(np.float32, na_value=np.nan) == 1)[:, None]] = 0
    return labels


def side_signs(table: pd.DataFrame, findings: Sequence[str]) -> NDArray[np.float32]:
    """Known sides (N, F) of ``findings``: 1 is the patient's left, -1 the right, 0 both or not known."""
    signs = np.zeros((len(table), len(findings)), np.float32)
    for column, name in enumerate(findings):
        if name + SIDE_SUFFIX in table:
            signs[:, column] = table[name + SIDE_SUFFIX].map({"left": 1, "right": -1}).fillna(0)
    return signs


def side_columns(table: pd.DataFrame) -> list[str]:
    """The ``<Finding>_side`` columns that the table has, in the vocabulary's order."""
    return [name + SIDE_SUFFIX for name in FINDINGS if name + SIDE_SUFFIX in table.columns]


def severity_columns(table: pd.DataFrame) -> list[str]:
    """The ``<Finding>_severity`` columns that the table has, in the vocabulary's order."""
    return [name + SEVERITY_SUFFIX for name in FINDINGS if name + SEVERITY_SUFFIX in table.columns]


def row_problems(table: pd.DataFrame) -> list[Problem]:
    """Everything wrong with the rows of a table from ``load_table``, except empty texts.

    Vectorised: only the bad cells are visited in Python.
    """
    problems: list[Problem] = []

    def each_bad(column: str, good: pd.Series, kind: str, mend: str) -> None:
        for row in table.index[~good]:
            cell = table.at[row, column]
            said = f"{column} is {cell!r}" if cell else f"the {column} column is empty"
            problems.append(Problem(row + 1, kind, f"{said}; {mend}"))

    each_bad("image", table["image"] != "", "no image", "fill it")
    each_bad("patient_id", table["patient_id"] != "", "no patient_id", "fill it, splits are by patient")
    choices = (("split", SPLITS), ("view", (*VIEWS, "")), ("sex", (*SEXES, "")))
    for column, allowed in choices:
        words = ", ".join(value or "blank" for value in allowed)
        each_bad(column, table[column].isin(allowed), f"bad {column}", f"write one of {words}")
    age = pd.to_numeric(table["age"].where(table["age"] != ""), errors="coerce")
    good_age = (table["age"] == "") | age.between(0, MAX_AGE)
    each_bad("age", good_age, "bad age", f"write years from 0 to {MAX_AGE} or leave it blank")
    if WEIGHT in table:
        good_weight = pd.to_numeric(table[WEIGHT], errors="coerce").between(0, 1e6, inclusive="right")
        each_bad(WEIGHT, good_weight, "bad weight", "write a number above 0, at most 1000000")
    for column in finding_columns(table):
        good = table[column].isin(["", "0", "1", "0.0", "1.0"])
        mend = "write 1 (present), 0 (absent) or leave it blank (unknown)"
        each_bad(column, good, "bad finding value", mend)
    for column in side_columns(table):
        mend = "write left, right, bilateral or leave it blank"
        each_bad(column, table[column].isin([*SIDES, ""]), "bad side", mend)
    for column in severity_columns(table):
        suits = FINDINGS[column.removesuffix(SEVERITY_SUFFIX)].qualifiers
        mend = f"write {', '.join(suits)} or leave it blank" if suits else "leave it blank"
        each_bad(column, table[column].isin([*suits, ""]), "bad severity", mend)
    for column in [*side_columns(table), *severity_columns(table)]:
        finding, what = column.rsplit("_", 1)
        blank = table[column] == ""
        good = blank | table[finding].isin(["1", "1.0"]) if finding in table.columns else blank
        mend = f"{finding} is not 1, so set it or clear the {what}"
        each_bad(column, good, f"{what} without finding", mend)
    return problems + _patients_in_two_splits(table)


def _patients_in_two_splits(table: pd.DataFrame) -> list[Problem]:
    """One problem a patient, at the row where the second split first shows."""
    named = table[table["patient_id"] != ""]
    split_count = named.groupby("patient_id")["split"].nunique()
    problems = []
    for patient in split_count.index[split_count > 1]:
        rows = named[named["patient_id"] == patient]
        second = rows.index[rows["split"] != rows["split"].iloc[0]][0]
        found = " and ".join(rows["split"].unique())
        problems.append(
            Problem(
                second + 1,
                "patient in two splits",
                f"patient {patient!r} is in splits {found}; move all of a patient's images to one split",
            )
        )
    return problems


def empty_texts(table: pd.DataFrame) -> list[Problem]:
    """Rows whose text is blank."""
    rows = table.index[table["text"] == ""]
    return [Problem(row + 1, "empty text", "the text is empty; write one or remove the row") for row in rows]


def typed(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Text cells to the types that ``read_manifest`` returns; ``image`` absolute below ``folder``."""
    table = table.copy()
    table["image"] = absolute_images(table["image"], folder)
    for column in ["age", *([WEIGHT] if WEIGHT in table else []), *finding_columns(table)]:
        table[column] = pd.to_numeric(table[column].where(table[column] != "")).astype("float64")
    return table


def absolute_images(images: Iterable[str], folder: Path) -> list[str]:
    """Absolute paths of the manifest's image cells; those that are relative lie below ``folder``."""
    base = os.path.abspath(folder)  # noqa: PTH100 - resolve() would follow links and visit every file
    return [os.path.normpath(os.path.join(base, image)) for image in images]  # noqa: PTH118


def write_manifest(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a manifest atomically, as CSV or Parquet by the file's ending.

    Images inside the manifest's folder are written relative to it, so that the folder can be moved;
    others stay absolute. Relative paths in ``table`` are taken as relative to the manifest already.

    Args:
        table: at least the required columns; findings as 1, 0 or NaN.
        path: target file; its folder is made; an older file is replaced.

    Raises:
        UserError: when a column is missing, the ending is unknown, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"manifest {path} must be a .csv or .parquet file")
    missing = [column for column in REQUIRED if column not in table.columns]
    if missing:
        raise UserError(f"a manifest needs the column {', '.join(map(repr, missing))}; add it")
    table = table.copy()
    base = Path(os.path.abspath(path.parent))  # noqa: PTH100 - links are not followed, as in typed()
    table["image"] = [_relative(Path(image), base) for image in table["image"]]
    for column in OPTIONAL:
        if column not in table.columns:
            table[column] = ""
    order = list(CORE)
    for name in FINDINGS:
        columns = (name, name + SIDE_SUFFIX, name + SEVERITY_SUFFIX)
        order += [column for column in columns if column in table.columns]
    order += [column for column in table.columns if column not in order]
    table = table[order]
    if path.suffix.lower() == ".csv":
        content = as_cells(table).to_csv(index=False, lineterminator="\n").encode()
    else:
        for column in ["age", *finding_columns(table)]:
            table[column] = pd.to_numeric(table[column].replace("", None)).astype("float64")
        content = table.to_parquet(index=False)
    write_atomic(path, content, advice="choose another place")
    return path


def _relative(image: Path, base: Path) -> str:
    return image.relative_to(base).as_posix() if image.is_relative_to(base) else image.as_posix()
