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
from roentgen.data.labels import CHEXPERT_14, Uncertain
from roentgen.data.manifest import SIDE_SUFFIX, VIEWS, simple_name
from roentgen.data.sources.common import (
    SPLIT_WORDS,
    are_files,
    check_root,
    finding_map,
    hashed_splits,
    years_of,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.images import SUFFIXES
from roentgen.prompts import FINDINGS

SEX_WORDS = {"male": "M", "female": "F", "m": "M", "f": "F", "o": "", "u": "", "other": "", "unknown": ""}
COLUMNS = ("image", "text", "patient", "split", "view", "sex", "age")
UNCERTAIN = ("-1", "-1.0")  # CheXpert's and MIMIC-CXR's mark for an uncertain mention


def read_csv(
    root: str | Path,
    csv: str | Path,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    view_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    finding_columns: dict[str, str] | None = None,
    column: dict[str, str] | None = None,
    other_views: Literal["error", "drop"] = "error",
    uncertain: Uncertain = "blank",
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
    patient column each image is its own patient. Image names without their ending are completed.

    Args:
        root: folder below which the image paths of the CSV lie.
        csv: the CSV file.
        image_column: column of the image path below ``root``, with its ending or without (default image).
        text_column: column of the report or prompt; left out, texts are composed from the findings.
        patient_column: column of the patient; left out, each image counts as a patient.
        split_column: column of the split; left out, patients are split at random.
        view_column: column of the view (PA or AP).
        sex_column: column of the sex.
        age_column: column of the age in years.
        finding_columns: the user's column -> roentgen's finding, where names differ: {"Pleural Effusion": "Effusion"}.
        column: all of these in one: image, text, patient, split, view, sex, age, findings or the name of a finding ->
            the user's column. ``findings`` is a column that lists them ("Effusion|Mass"): what it names in any row was
            looked for in all, so it is 0 where a row does not list it, and unknown where the cell is blank.
        other_views: stop at a view other than PA, AP or blank, or drop the row.
        val_share, test_share: share of the patients for that split.
        source_name, licence: of the collection, written to every row.
        seed: of the random split.

    Returns:
        A typed manifest table with ``image`` absolute, and counts of what was left out.

    Raises:
        UserError: when a file, column or image is missing, a value is not a manifest's, or a share is impossible.
    """
    root, csv = check_root(root, "name the folder of images"), Path(csv)
    given = _given_columns(
        column or {},
        {"image": image_column, "text": text_column, "patient": patient_column, "split": split_column}
        | {"view": view_column, "sex": sex_column, "age": age_column},
    )
    users = _users_table(csv, given, column or {})
    table = _manifest_cells(users, given, root)
    if "split" not in given:
        table["split"] = hashed_splits(table["patient_id"], val_share, test_share, seed=seed)
    table[["source", "licence"]] = source_name, licence
    counts: Counter[str] = Counter()
    if "findings" in given:
        table = pd.concat([table, _listed(users[given["findings"]], counts)], axis=1)
    named = (finding_columns or {}) | {name: what for what, name in given.items() if what in FINDINGS}
    others = [name for name in users.columns if name != given.get("findings")]
    _add_findings(table, users, finding_map(others, named, csv=csv), "" if uncertain == "blank" else uncertain)
    _check_files(table["image"].tolist(), csv)
    if "patient" not in given:
        print("no --patient-column: each image counts as a patient; one may be in two splits", file=sys.stderr)
    if other_views == "drop":
        kept = table["view"].isin([*VIEWS, ""])
        counts["images of views other than PA and AP"] = int((~kept).sum())
        table = table[kept].reset_index(drop=True)
    return typed_labels(table, csv), counts


def _given_columns(column: dict[str, str], flags: dict[str, str | None]) -> dict[str, str]:
    """What -> the user's column, from ``--column`` and the flags that each name one."""
    for what in column:
        if what not in (*COLUMNS, "findings", *FINDINGS):
            raise UserError(f"--column: {what!r} is none of {', '.join(COLUMNS)}, findings and {', '.join(FINDINGS)}")
    for what, name in flags.items():
        if name is not None and column.get(what, name) != name:
            raise UserError(f"--column and --{what}-column name two columns for {what}; leave one out")
    return {"image": "image"} | {what: name for what, name in flags.items() if name is not None} | column


def _users_table(csv: Path, given: dict[str, str], column: dict[str, str]) -> pd.DataFrame:
    """The user's CSV; UserError where it lacks a column that is ``given`` or a cell of the images' column."""
    users = read_table(csv, optional=None, name=f"--csv {csv}", fix="name a file with a header and one row an image")
    for flag, name in given.items():
        if name not in users.columns:
            flag = f"--{flag}-column" if flag in COLUMNS and flag not in column else f"--column, {flag}"
            raise UserError(f"{flag}: {csv} has no column {name!r}; it has {', '.join(users.columns)}")
    empty = (users[given["image"]] == "").to_numpy()
    if empty.any():
        raise UserError(f"{csv}, row {int(empty.argmax()) + 1}: the column {given['image']!r} is empty; fill it")
    return users


def _manifest_cells(users: pd.DataFrame, given: dict[str, str], root: Path) -> pd.DataFrame:
    """The manifest's columns but source, licence and findings; without a patient column each image is a patient."""
    blank = pd.Series("", index=users.index)

    def cells(what: str) -> pd.Series:
        return users[given[what]] if what in given else blank

    return pd.DataFrame(
        {
            "image": _with_endings([str(root / image) for image in cells("image")]),
            "text": cells("text").str.split().str.join(" "),
            "patient_id": cells("patient" if "patient" in given else "image"),
            "split": cells("split").str.lower().replace(SPLIT_WORDS),
            "view": cells("view").str.upper(),
            "sex": [SEX_WORDS.get(sex.lower(), sex) for sex in cells("sex")],
            "age": _ages(cells("age")),
        },
        dtype=str,
    )


def _add_findings(table: pd.DataFrame, users: pd.DataFrame, named: dict[str, str], uncertain: str) -> None:
    """Findings and their sides, as the user's columns have them; ``uncertain`` is what -1 becomes."""
    for name, finding in named.items():
        table[finding] = users[name].mask(users[name].isin(UNCERTAIN), uncertain)
    for side in (finding + SIDE_SUFFIX for finding in FINDINGS):
        if side in users.columns:
            table[side] = users[side].str.lower()


def _check_files(images: list[str], csv: Path) -> None:
    missing = [image for image, there in zip(images, are_files(images), strict=True) if not there]
    if missing:
        raise UserError(
            f"{len(missing)} image file(s) of {csv} are not below --root, the first is {missing[0]}; "
            f"fix --root or --image-column"
        )


def _with_endings(images: list[str]) -> list[str]:
    """The paths, those of no file completed by the ending of the one image of that name.

    Raises:
        UserError: where there are several.
    """
    absent = [image for image, there in zip(images, are_files(images), strict=True) if not there]
    tried = [(image, image + ending) for image in absent for ending in SUFFIXES]
    found: dict[str, str] = {}
    for (image, path), there in zip(tried, are_files([path for _, path in tried]), strict=True):
        if there:
            if image in found:
                raise UserError(f"image {image} is there twice, as {found[image]} and {path}; write its ending")
            found[image] = path
    return [found.get(image, image) for image in images]


def _listed(cells: pd.Series, counts: Counter[str]) -> pd.DataFrame:
    """Cells that list findings, such as "Effusion|Mass", as one text column a finding; see ``read_csv``."""
    names = {simple_name(name): finding for name, finding in (CHEXPERT_14 | {name: name for name in FINDINGS}).items()}
    rows = [[part.strip() for part in re.split(r"[|;,]", cell) if part.strip()] for cell in cells]
    listed = [{names[simple_name(part)] for part in row if simple_name(part) in names} for row in rows]
    outside = Counter(part for row in rows for part in row if simple_name(part) not in names)
    if outside:
        often = ", ".join(repr(name) for name, _ in outside.most_common(3))
        counts[f"labels outside the vocabulary left out ({len(outside)} kinds, most often {often})"] = outside.total()
    if not any(listed):
        raise UserError("--column, findings: no cell names a finding; write them as in Effusion|Mass")
    said = [name for name in FINDINGS if any(name in row for row in listed)]
    # A label outside the vocabulary refutes No Finding too.
    columns = {
        name: ["" if not parts else str(int(name in row)) for parts, row in zip(rows, listed, strict=True)]
        for name in said
    }
    return pd.DataFrame(columns, index=cells.index, dtype=str)


def _ages(cells: pd.Series) -> pd.Series:
    """Years from plain years and DICOM's "045Y" and "018M"; anything else is left for validation to name."""
    return years_of(cells).map(lambda age: f"{age:g}", na_action="ignore").astype(object).fillna(cells)
