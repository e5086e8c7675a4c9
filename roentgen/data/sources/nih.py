"""Adapter for NIH ChestX-ray14 as its authors distribute it (and Kaggle's copy of it).

How its parts become manifest cells:

- **Table.** ``Data_Entry_2017_v2020.csv``, else the older ``Data_Entry_2017.csv`` (ages "058Y", some of 150 and above;
  these are left blank and counted).
- **Images** are found by name in any folder below the root: ``images/``, ``images_001/images/`` ...
- **Splits.** ``test_list.txt`` is ``test``; val is split off ``train_val_list.txt`` by a hash of the patient.
- **Patients.** 1336 becomes ``nih01336``, as in openchest, so that manifests can be joined.
- **Labels.** The authors searched each report for all fourteen findings, so those not listed are 0.
- **Sides** (the patient's) come from ``BBox_List_2017.csv`` where it is there. Boxes are in pixels of the 1024-pixel
  image, and the patient's left is on the image's right: a box wholly on one side of the midline gives its finding that
  side, boxes on both give bilateral, and a box across the midline leaves the side blank.
- **Text** is "" (the command composes it from the labels).

Source: Wang et al. 2017.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.labels import NIH_14, NO_FINDING
from roentgen.data.manifest import SIDE_SUFFIX, VIEWS
from roentgen.data.sources.common import (
    SIDED,
    Missing,
    ages,
    check_cells,
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
from roentgen.files import explained

SOURCE = "NIH ChestX-ray14"
LICENCE = "NIH CC: unrestricted use with attribution"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")
SEX_COLUMNS = ("Patient Gender", "Patient Sex")
# The header writes the box as one cell, "Bbox [x,y,w,h]", whose commas make four columns of it.
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "w")
BOX_NAMES = {"Infiltrate": "Infiltration"}
WIDTH = 1024  # of every image, in pixels


def read_nih(
    root: str | Path,
    *,
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.1,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read NIH ChestX-ray14 as a manifest table.

    Args:
        root: the folder of the table, the two lists and the images.
        val_share: share of the patients of ``train_val_list.txt`` for ``val``.
        seed: of that split.

    Returns:
        The table, ``image`` absolute, ``text`` ""; and counts of what was left out.

    Raises:
        UserError: naming the flag, file or column that is wrong.
    """
    root = Path(root).absolute()
    path = find_table(root, TABLES)
    cells = read_table(path, required=COLUMNS, optional=SEX_COLUMNS)
    sex = next((name for name in SEX_COLUMNS if name in cells), None)
    if sex is None:
        raise UserError(f"{path} lacks the column {SEX_COLUMNS[0]!r}; download the collection's own table again")
    cells = cells.rename(columns={sex: SEX_COLUMNS[0]})
    boxes_path = next((root / name for name in (BOXES, f"{BOXES}.gz") if (root / name).is_file()), None)
    boxes = None if boxes_path is None else read_table(boxes_path, required=BOX_COLUMNS)
    official = dict.fromkeys(_listed(root / TRAIN_VAL_LIST), "train")
    official |= dict.fromkeys(_listed(root / TEST_LIST), "test")
    counts: Counter[str] = Counter()
    if boxes is None:
        counts[f"images without a side, as --root has no {BOXES}"] = len(cells)
    table = nih_rows(cells, boxes, counts, official=official, val_share=val_share, seed=seed, path=path)
    files = find_images(root, (".png",))
    present = [name in files for name in table["image"]]
    table["image"] = [only_image(files, name, f"{root}/images/{name}") for name in table["image"]]
    table = keep_present(table, counts, missing=missing, root=root, present=present)
    return manifest_columns(table), counts


def nih_rows(
    table: pd.DataFrame,
    boxes: pd.DataFrame | None,
    counts: Counter[str],
    *,
    official: dict[str, str],
    val_share: ShareBelowOne = 0.1,
    seed: int = 0,
    path: object = "",
) -> pd.DataFrame:
    """The label table as manifest rows, without looking at the images.

    Args:
        table: text cells of ``Data_Entry_2017*.csv``.
        boxes: text cells of ``BBox_List_2017.csv``; None leaves every side blank.
        counts: what is left out or odd is added here.
        official: file name -> "train" or "test".
        val_share, seed: of the split of train patients.
        path: file to name in messages.

    Returns:
        One row an image, ``image`` the file name.

    Raises:
        UserError: for a label, view or patient that is not NIH's.
    """
    split = table["Image Index"].map(official)
    if split.isna().any():
        counts[f"images in neither {TRAIN_VAL_LIST} nor {TEST_LIST} dropped"] += int(split.isna().sum())
        table, split = table[~split.isna()].reset_index(drop=True), split.dropna().reset_index(drop=True)
        if table.empty:
            raise UserError(f"{path}: no image is in {TRAIN_VAL_LIST} or {TEST_LIST}; download both lists again")
    labels = table["Finding Labels"].str.get_dummies("|").astype("float64")
    check_cells(labels, (*NIH_14, NO_FINDING), "label", path=path)
    for column, allowed in (("View Position", VIEWS), ("Patient Gender", ("M", "F"))):
        check_cells(table[column], allowed, column, path=path)
    if not table["Patient ID"].str.fullmatch(r"\d+").all():
        raise UserError(f"{path} has a Patient ID that is no number; download the table again")
    patients = "nih" + table["Patient ID"].str.lstrip("0").str.zfill(5)
    hashed = hashed_splits(patients, val_share, 0.0, seed=seed)
    rows = pd.DataFrame(
        {
            "image": table["Image Index"],
            "text": "",
            "patient_id": patients,
            "split": hashed.mask(split == "test", "test"),
            "view": table["View Position"],
            "sex": table["Patient Gender"],
            "age": ages(table["Patient Age"], counts),
            "source": SOURCE,
            "licence": LICENCE,
        }
    )
    for name in (*NIH_14, NO_FINDING):
        rows[name] = labels.get(name, 0.0)
    if boxes is not None:
        sides = box_sides(boxes)
        for finding, of_image in sides.groupby("finding"):
            by_image = dict(zip(of_image["image"], of_image["side"], strict=True))
            side = rows["image"].map(by_image).fillna("")
            contradicted = (side != "") & (rows[str(finding)] != 1)
            if contradicted.any():
                counts["boxes of a finding that the image is not labelled with, left unused"] += int(contradicted.sum())
            rows[f"{finding}{SIDE_SUFFIX}"] = side.mask(contradicted, "")
    return rows


def box_sides(boxes: pd.DataFrame) -> pd.DataFrame:
    """Columns image, finding, side ("" where a box crosses the midline), one row each boxed finding of an image.

    ``boxes`` holds the text cells of ``BBox_List_2017.csv``; findings that cannot have a side are left out.
    """
    start = pd.to_numeric(boxes["Bbox [x"], errors="coerce")
    end = start + pd.to_numeric(boxes["w"], errors="coerce")
    if end.isna().any():
        raise UserError(
            f"{BOXES}, row {int(end.isna().to_numpy().argmax()) + 1}: the box is no number; download it again"
        )
    side = pd.Series("", index=boxes.index).mask(start >= WIDTH / 2, "left").mask(end <= WIDTH / 2, "right")
    found = pd.DataFrame(
        {"image": boxes["Image Index"], "finding": boxes["Finding Label"].replace(BOX_NAMES), "side": side}
    )
    found = found[found["finding"].isin(SIDED)]
    joined = found.groupby(["image", "finding"])["side"].agg(lambda said: one_side(set(said)))
    return joined.reset_index()


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} is missing; download NIH's own {TRAIN_VAL_LIST} and {TEST_LIST} beside its table")
    with explained(f"{path} cannot be read", "download it again", (OSError, ValueError)):
        return path.read_text(encoding="utf-8").split()
