"""Adapter for a folder of images with a CSV of the user's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from roentgen.data.manifest import SIDE_SUFFIX, SPLITS
from roentgen.errors import UserError
from roentgen.prompts import FINDINGS

SEX_WORDS = {"male": "M", "female": "F", "m": "M", "f": "F", "o": "", "u": "", "other": "", "unknown": ""}
SPLIT_WORDS = {"validate": "val", "valid": "val", "validation": "val", "training": "train", "testing": "test"}
AGE = re.compile(r"0*(\d+(?:\.\d+)?)[Yy]?")
UNCERTAIN = ("-1", "-1.0")  # CheXpert's and MIMIC-CXR's mark for an uncertain mention


@dataclass(frozen=True)
class CsvColumns:
    """Names of the user's CSV columns; None where there is none."""

    image: str = "image"
    text: str | None = None
    patient: str | None = None
    split: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    findings: Mapping[str, str] | None = None  # the user's column -> roentgen's finding


def read_csv_folder(
    root: str | Path,
    csv: str | Path,
    columns: CsvColumns,
    *,
    val_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    uncertain: str = "",
    source: str = "",
    licence: str = "",
) -> pd.DataFrame:
    """Read the user's CSV as a manifest table.

    Columns named as roentgen's findings (case, space and "_" do not matter) are taken without being
    mapped, and so are columns named ``<Finding>_side``. Without a split column patients are split at
    random by a hash of (seed, patient), so that a patient keeps the split when images are added. Without a
    patient column each image is its own patient.

    Args:
        root: folder below which the image paths of the CSV lie.
        csv: the CSV file.
        columns: which column is what.
        val_share: share of patients for ``val``.
        test_share: share of patients for ``test``.
        seed: of the random split.
        uncertain: what a finding of -1 becomes: "" (unknown), "0" or "1".
        source: name of the collection, written to every row.
        licence: its licence, written to every row.

    Returns:
        A table with ``image`` absolute and all cells text, values not yet validated.

    Raises:
        UserError: when a file, column or image is missing, or a share is impossible.
    """
    root, csv = Path(root).absolute(), Path(csv)
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder; name the folder of images")
    if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
        raise UserError("--val-share and --test-share must be at least 0 and leave some patients for training")
    users = _read_users_csv(csv)
    wanted = {
        "--image-column": columns.image,
        "--text-column": columns.text,
        "--patient-column": columns.patient,
        "--split-column": columns.split,
        "--view-column": columns.view,
        "--sex-column": columns.sex,
        "--age-column": columns.age,
    }
    for flag, name in wanted.items():
        if name is not None and name not in users.columns:
            raise UserError(f"{flag}: {csv} has no column {name!r}; it has {', '.join(users.columns)}")

    def cells(name: str | None) -> list[str]:
        return [""] * len(users) if name is None else users[name].str.strip().tolist()

    images = cells(columns.image)
    if "" in images:
        raise UserError(f"{csv}, row {images.index('') + 1}: the column {columns.image!r} is empty; fill it")
    patients = images if columns.patient is None else cells(columns.patient)
    if columns.split is None:
        splits = [hashed_split(patient, val_share, test_share, seed=seed) for patient in patients]
    else:
        splits = [SPLIT_WORDS.get(split.lower(), split.lower()) for split in cells(columns.split)]
    table = pd.DataFrame(
        {
            "image": [str(root / image) for image in images],
            "text": [" ".join(text.split()) for text in cells(columns.text)],
            "patient_id": patients,
            "split": splits,
            "view": [view.upper() for view in cells(columns.view)],
            "sex": [SEX_WORDS.get(sex.lower(), sex) for sex in cells(columns.sex)],
            "age": [_age(age) for age in cells(columns.age)],
            "source": source,
            "licence": licence,
        },
        dtype=str,
    )
    for user_column, finding in finding_map(list(users.columns), columns.findings, csv=csv).items():
        values = users[user_column].str.strip()
        table[finding] = values.mask(values.isin(UNCERTAIN), uncertain)
    for finding in FINDINGS:
        if finding + SIDE_SUFFIX in users.columns:
            table[finding + SIDE_SUFFIX] = users[finding + SIDE_SUFFIX].str.strip().str.lower()
    missing = [image for image in table["image"] if not Path(image).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} image file(s) of {csv} are not below --root, the first is {missing[0]}; "
            f"mend --root or --image-column"
        )
    return table


def _read_users_csv(csv: Path) -> pd.DataFrame:
    if not csv.is_file():
        raise UserError(f"--csv {csv} does not exist; name the CSV file of the images")
    try:
        users = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except pd.errors.EmptyDataError:
        raise UserError(f"--csv {csv} is empty; it needs a header and one row an image") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--csv {csv} cannot be read as CSV: {str(error).splitlines()[0]}") from error
    if users.empty:
        raise UserError(f"--csv {csv} has no rows; it needs one row an image")
    return users


def finding_map(names: list[str], given: Mapping[str, str] | None, *, csv: Path) -> dict[str, str]:
    """The user's columns that hold findings -> roentgen's finding, by the given map or by their names."""
    simple = {_simple(finding): finding for finding in FINDINGS}
    found = {name: simple[_simple(name)] for name in names if _simple(name) in simple}
    for name, finding in (given or {}).items():
        if name not in names:
            raise UserError(f"--finding-columns: {csv} has no column {name!r}; it has {', '.join(names)}")
        if finding not in FINDINGS:
            raise UserError(f"--finding-columns: unknown finding {finding!r}; use {', '.join(FINDINGS)}")
        found[name] = finding
    targets = list(found.values())
    twice = sorted({finding for finding in targets if targets.count(finding) > 1})
    if twice:
        raise UserError(f"--finding-columns: two columns of {csv} give {twice[0]!r}; rename or drop one")
    return found


def hashed_split(patient: str, val_share: float, test_share: float, *, seed: int) -> str:
    """train, val or test, by a hash of (seed, patient): independent of order and of other patients."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    train, val, test = SPLITS
    if place < test_share:
        return test
    return val if place < test_share + val_share else train


def _age(cell: str) -> str:
    """Years from plain years and DICOM's "045Y"; anything else is left for validation to name."""
    matched = AGE.fullmatch(cell)
    return matched[1] if matched else cell


def _simple(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
