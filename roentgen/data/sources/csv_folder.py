"""Adapter for a folder of images with a CSV of the user's own."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.assemble import typed_labels
from roentgen.data.manifest import SIDE_SUFFIX, VIEWS
from roentgen.data.sources.common import SPLIT_WORDS, check_shares, finding_map, hashed_splits
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.prompts import FINDINGS

SEX_WORDS = {"male": "M", "female": "F", "m": "M", "f": "F", "o": "", "u": "", "other": "", "unknown": ""}
AGE = re.compile(r"0*(\d+(?:\.\d+)?)[Yy]?")
UNCERTAIN = ("-1", "-1.0")  # CheXpert's and MIMIC-CXR's mark for an uncertain mention


def read_csv(
    root: str | Path,
    csv: str | Path,
    *,
    image_column: str = "image",
    text_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    view_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    finding_columns: dict[str, str] | None = None,
    other_views: Literal["error", "drop"] = "error",
    uncertain: Literal["blank", "0", "1"] = "blank",
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    source_name: str = "",
    licence: str = "",
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read the user's CSV as a manifest table.

    Columns named as roentgen's findings (case, space and "_" do not matter) are taken without being
    mapped, and so are columns named ``<Finding>_side``. Without a split column patients are split at
    random by a hash of (seed, patient), so that a patient keeps the split when images are added. Without a
    patient column each image is its own patient.

    Args:
        root: folder below which the image paths of the CSV lie.
        csv: the CSV file.
        image_column: column of the image path below ``root``.
        text_column: column of the report or prompt; left out, texts are composed from the findings.
        patient_column: column of the patient; left out, each image counts as a patient.
        split_column: column of the split; left out, patients are split at random.
        view_column: column of the view (PA or AP).
        sex_column: column of the sex.
        age_column: column of the age in years.
        finding_columns: the user's column -> roentgen's finding, where names differ: {"Pleural Effusion": "Effusion"}.
        other_views: stop at a view other than PA, AP or blank, or drop the row.
        uncertain: what a finding of -1 becomes.
        val_share: share of patients for ``val``.
        test_share: share of patients for ``test``.
        source_name: name of the collection, written to every row.
        licence: its licence, written to every row.
        seed: of the random split.

    Returns:
        A typed manifest table with ``image`` absolute, and how many rows of other views were left out.

    Raises:
        UserError: when a file, column or image is missing, a value is not a manifest's, or a share is impossible.
    """
    root, csv = Path(root).absolute(), Path(csv)
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder; name the folder of images")
    check_shares(val_share, test_share)
    users = read_table(csv, optional=None, name=f"--csv {csv}", fix="name a file with a header and one row an image")
    wanted = {
        "--image-column": image_column,
        "--text-column": text_column,
        "--patient-column": patient_column,
        "--split-column": split_column,
        "--view-column": view_column,
        "--sex-column": sex_column,
        "--age-column": age_column,
    }
    for flag, name in wanted.items():
        if name is not None and name not in users.columns:
            raise UserError(f"{flag}: {csv} has no column {name!r}; it has {', '.join(users.columns)}")
    blank = pd.Series("", index=users.index)

    def cells(name: str | None) -> pd.Series:
        return blank if name is None else users[name].str.strip()

    images = cells(image_column)
    if (images == "").any():
        row = int((images == "").to_numpy().argmax()) + 1
        raise UserError(f"{csv}, row {row}: the column {image_column!r} is empty; fill it")
    patients = images if patient_column is None else cells(patient_column)
    if split_column is None:
        splits = hashed_splits(patients, val_share, test_share, seed=seed)
    else:
        splits = cells(split_column).str.lower().replace(SPLIT_WORDS)
    table = pd.DataFrame(
        {
            "image": [str(root / image) for image in images],
            "text": cells(text_column).str.split().str.join(" "),
            "patient_id": patients,
            "split": splits,
            "view": cells(view_column).str.upper(),
            "sex": [SEX_WORDS.get(sex.lower(), sex) for sex in cells(sex_column)],
            "age": cells(age_column).map(_age),
            "source": source_name,
            "licence": licence,
        },
        dtype=str,
    )
    for column, finding in finding_map(list(users.columns), finding_columns, csv=csv).items():
        values = users[column].str.strip()
        table[finding] = values.mask(values.isin(UNCERTAIN), "" if uncertain == "blank" else uncertain)
    for finding in FINDINGS:
        if finding + SIDE_SUFFIX in users.columns:
            table[finding + SIDE_SUFFIX] = users[finding + SIDE_SUFFIX].str.strip().str.lower()
    missing = [image for image in table["image"] if not Path(image).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} image file(s) of {csv} are not below --root, the first is {missing[0]}; "
            f"mend --root or --image-column"
        )
    if patient_column is None:
        message = "no --patient-column: each image counts as a patient, so one person may be in two splits"
        print(message, file=sys.stderr)
    counts: Counter[str] = Counter()
    if other_views == "drop":
        kept = table["view"].isin([*VIEWS, ""])
        counts["images of views other than PA and AP"] = int((~kept).sum())
        table = table[kept].reset_index(drop=True)
    return typed_labels(table, csv), counts


def _age(cell: str) -> str:
    """Years from plain years and DICOM's "045Y"; anything else is left for validation to name."""
    matched = AGE.fullmatch(cell)
    return matched[1] if matched else cell
