"""Adapter for the data of XREPORT: a CSV with the columns ``id`` and ``text``, and a folder of images named by id.

XREPORT writes its CSV with ``;`` between the columns, and newer versions call the first one ``image``; commas and both
names are read. An id is an image's file name with or without its ending, in any folder below the root. Nothing is said
of patients, views or labels, so each image counts as a patient, and splits are random.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.sections import clean_text
from roentgen.data.sources.common import (
    Missing,
    check_root,
    find_images,
    hashed_splits,
    keep_present,
    manifest_columns,
    only_image,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError

IDS = ("id", "image")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".dcm")


def read_xreport(
    root: str | Path,
    csv: str | Path,
    *,
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    source_name: str = "",
    licence: str = "",
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read XREPORT's CSV as a manifest table.

    Args:
        root: folder of the images.
        csv: the CSV file.
        val_share, test_share, seed: of the random split by image.
        source_name, licence: of the collection, written to every row.

    Returns:
        The table, findings unknown, ``text`` as ``sections.clean_text`` leaves it; and counts of what was left out.

    Raises:
        UserError: when the CSV, a column or an image is missing, an id is there twice or fits two images.
    """
    root = check_root(root, "name the folder of images")
    name, rows = _read(Path(csv))
    twice = rows[name][rows[name].duplicated()]
    if len(twice):
        raise UserError(f"--csv {csv} has the {name} {twice.iloc[0]!r} twice; keep one text an image")
    files = find_images(root, SUFFIXES, lambda name: (name, Path(name).stem))
    table = pd.DataFrame(
        {
            "image": [
                only_image(files, key if key in files else Path(key).name, str(root / key)) for key in rows[name]
            ],
            "text": [clean_text(text) for text in rows["text"]],
            "patient_id": rows[name],
            "split": hashed_splits(rows[name], val_share, test_share, seed=seed),
            "source": source_name,
            "licence": licence,
        }
    )
    counts: Counter[str] = Counter()
    table = keep_present(table, counts, missing=missing, root=root)
    return manifest_columns(table), counts


def _read(csv: Path) -> tuple[str, pd.DataFrame]:
    """Name of the id column, and the rows as stripped text cells."""
    fix = "it needs the columns id and text, and one row an image"
    rows = read_table(csv, required=("text",), optional=IDS, name=f"--csv {csv}", fix=fix)
    name = next((column for column in IDS if column in rows.columns), "")
    if not name:
        raise UserError(f"--csv {csv} lacks the column 'id'; {fix}")
    blank = rows[name] == ""
    if blank.any():
        raise UserError(f"--csv {csv}, row {int(blank.to_numpy().argmax()) + 1}: the {name} is empty; fill it")
    return name, rows
