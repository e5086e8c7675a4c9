"""Adapter for PadChest (BIMCV): 160,861 images of one Spanish hospital with labels in a tree of findings.

How its parts become manifest cells:

- **Table.** ``PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv``, or the same with ``.gz`` as downloaded.
- **Images** are found by name in any folder below the root: ``0/``, ``1/`` ... ``54/`` as unpacked, or all in one.
- **Views.** ``Projection`` PA, AP, and AP_horizontal (supine), which becomes AP. All others are left out.
- **Labels.** ``labels.PADCHEST`` names the labels that have a counterpart; what is not listed is 0, as the whole report
  was labelled, and other labels refute ``No Finding`` ("unchanged" and "suboptimal study" do not). A report with
  "unchanged" speaks of findings of an earlier one, so beside it what is not listed is unknown. Without any label, and
  with "exclude", the image is left out.
- **Sides** (the patient's) come from ``LabelsLocalizationsBySentence``: a finding has a side when every sentence that
  names it names no other finding and one side ("loc left", "loc right lower lobe", "loc lingula", "loc bilateral").
- **Reports** are Spanish, published as lower-case word stems ("sin hallazg patolog"); no English text encoder reads
  them.
- **Age** is the year of the study less the year of birth.

Source: Bustos et al. 2020.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.labels import NO_FINDING, PADCHEST
from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.data.sources.common import (
    SIDED,
    Missing,
    ages,
    drop_rows,
    find_images,
    find_table,
    hashed_splits,
    keep_present,
    manifest_columns,
    one_side,
    only_image,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.prompts.vocabulary import FINDINGS

SOURCE = "PadChest"
LICENCE = "PadChest Dataset Research Use Agreement"
TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",)
COLUMNS = (
    "ImageID",
    "StudyDate_DICOM",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "Report",
    "MethodLabel",
    "Labels",
    "LabelsLocalizationsBySentence",
)
PROJECTIONS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP"}
NORMAL, UNCHANGED, EXCLUDE = "normal", "unchanged", "exclude"
SAY_NOTHING = {NORMAL, UNCHANGED, "suboptimal study"}  # of a disease
SEARCHED = tuple(name for name in FINDINGS if any(name in findings for findings in PADCHEST.values()))
PLACE = "loc "
LEFT, RIGHT, BOTH = re.compile(r"\bleft\b|\blingula\b"), re.compile(r"\bright\b|\bmiddle lobe\b"), "bilateral"


def read_padchest(
    root: str | Path,
    *,
    text: Literal["labels", "report"] = "labels",
    labelled_by: Literal["all", "physician"] = "all",
    images: str | Path | None = None,
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read PadChest as a manifest table of its frontal images.

    Args:
        root: the folder of the table; the images lie below it unless ``images`` names another folder.
        text: "labels" leaves ``text`` "", "report" gives the Spanish report.
        labelled_by: which reports to take; a neural network labelled three in four, "physician" leaves those out.
        images: folder of the images, where a resized copy lies below ``root`` too.
        val_share: share of the patients for ``val``.
        test_share: share of the patients for ``test``.
        seed: of the split.

    Returns:
        The table, ``image`` absolute; and counts of what was left out.

    Raises:
        UserError: naming the flag, file or column that is wrong.
    """
    root = Path(root).absolute()
    path = find_table(root, TABLES)
    cells = read_table(path, required=COLUMNS)
    counts: Counter[str] = Counter()
    if labelled_by == "physician":
        cells = drop_rows(cells, cells["MethodLabel"] != "Physician", counts, "images labelled by a network dropped")
    table = padchest_rows(cells, counts, val_share=val_share, test_share=test_share, seed=seed, path=path)
    if text == "labels":
        table["text"] = ""
    folder = root if images is None else Path(images).absolute()
    files = find_images(folder, (".png",))
    present = [name in files for name in table["image"]]
    table["image"] = [only_image(files, name, f"{folder}/{name}", flag="--images") for name in table["image"]]
    table = keep_present(table, counts, missing=missing, root=folder, present=present)
    if text == "report":
        counts["images kept without a report"] += int((table["text"] == "").sum())
    return manifest_columns(table), +counts


def padchest_rows(
    table: pd.DataFrame,
    counts: Counter[str],
    *,
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    seed: int = 0,
    path: object = "",
) -> pd.DataFrame:
    """The label table as manifest rows, without looking at the images.

    Args:
        table: text cells of PadChest's table.
        counts: what is left out or odd is added here.
        val_share, test_share, seed: of the split by patient.
        path: file to name in messages.

    Returns:
        One row a frontal image with labels: ``image`` the file name, ``text`` the report.

    Raises:
        UserError: when a list of labels cannot be read, or no image is frontal.
    """
    table = drop_rows(table, ~table["Projection"].isin(PROJECTIONS), counts, "images of views other than PA and AP")
    lists = {cell: _list(cell, path=path) for cell in table["Labels"].unique()}
    names = table["Labels"].map(lambda cell: tuple(_names(lists[cell])))
    excluded = names.map(lambda listed: EXCLUDE in listed)
    unlabelled = names.map(lambda listed: set(listed) <= SAY_NOTHING - {NORMAL})
    counts["images marked 'exclude' dropped"] += int(excluded.sum())
    counts["images without a label dropped"] += int(unlabelled.sum())
    kept = ~(excluded | unlabelled)
    table, names = table[kept].reset_index(drop=True), names[kept].reset_index(drop=True)
    if table.empty:
        raise UserError(f"{path} has no frontal image with labels; download PadChest's own table again")
    outside = Counter(
        name for listed in names for name in set(listed) if name not in PADCHEST | dict.fromkeys(SAY_NOTHING)
    )
    if outside:
        often = ", ".join(repr(name) for name, _ in outside.most_common(3))
        said = f"labels outside the vocabulary left out ({len(outside)} kinds, most often {often})"
        counts[said] += sum(outside.values())

    values = {listed: label_values(listed) for listed in names.unique()}
    labels = pd.DataFrame(np.array([values[listed] for listed in names]), columns=list(SEARCHED))
    birth = pd.to_numeric(table["PatientBirth"], errors="coerce")
    study = pd.to_numeric(table["StudyDate_DICOM"].str[:4], errors="coerce")
    years = (study - birth).map(lambda age: "" if age != age else str(int(age)))
    patients = "padchest" + table["PatientID"]
    rows = pd.DataFrame(
        {
            "image": table["ImageID"],
            "text": table["Report"].mask(table["Report"] == "nan", "").str.split().str.join(" "),
            "patient_id": patients,
            "split": hashed_splits(patients, val_share, test_share, seed=seed),
            "view": table["Projection"].map(PROJECTIONS),
            "sex": table["PatientSex_DICOM"].where(table["PatientSex_DICOM"].isin(["M", "F"]), ""),
            "age": ages(years, counts),
            "source": SOURCE,
            "licence": LICENCE,
        }
    )
    places = table["LabelsLocalizationsBySentence"]
    sides = {cell: sentence_sides(_list(cell, path=path)) for cell in places.unique()}
    for finding in SEARCHED:
        if finding in SIDED:
            side = places.map(lambda cell, finding=finding: sides[cell].get(finding, ""))
            rows[finding + SIDE_SUFFIX] = side.where(labels[finding] == 1, "")
    return pd.concat([rows, labels], axis=1)


def label_values(listed: tuple[str, ...]) -> list[float]:
    """1.0, 0.0 or NaN for each of ``SEARCHED``, from the labels of one image."""
    present = {finding for name in listed for finding in PADCHEST.get(name, ())} - {NO_FINDING}
    diseased = bool(set(listed) - SAY_NOTHING)
    if not diseased and NORMAL in listed:
        present = {NO_FINDING}
    absent = np.nan if UNCHANGED in listed and NORMAL not in listed else 0.0
    return [1.0 if name in present else 0.0 if name == NO_FINDING else absent for name in SEARCHED]


def sentence_sides(sentences: list[Any]) -> dict[str, str]:
    """Finding -> left, right or bilateral, from ``LabelsLocalizationsBySentence``; ambiguous ones are left out."""
    said: dict[str, set[str]] = {}
    for sentence in sentences:
        words = _names(sentence or [])
        labels = [word for word in words if not word.startswith(PLACE) and word not in SAY_NOTHING]
        findings = {finding for label in labels for finding in PADCHEST.get(label, ())}
        places = [word for word in words if word.startswith(PLACE)]
        left = any(LEFT.search(place) for place in places)
        right = any(RIGHT.search(place) for place in places)
        both = any(BOTH in place for place in places) or (left and right)
        side = BOTH if both else "left" if left else "right" if right else ""
        alone = len(findings) == 1 and all(label in PADCHEST for label in labels)
        for finding in findings:
            said.setdefault(finding, set()).add(side if alone else "")
    return {finding: side for finding, sides in said.items() if finding in SIDED and (side := one_side(sides))}


def _names(listed: list[Any]) -> list[str]:
    return [name.strip() for name in listed if isinstance(name, str) and name.strip()]


def _list(cell: str, *, path: object) -> list[Any]:
    """A Python list written as text, in which pandas left bare nan for what was blank."""
    if cell in ("", "nan"):
        return []
    try:
        value = ast.literal_eval(re.sub(r"\bnan\b", "None", cell))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise UserError(f"{path} has {cell[:60]!r} where a list of labels must be; download PadChest's own table again")
    return value
