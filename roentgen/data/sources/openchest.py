"""Adapter for the openchest collections: ``nih128/``, ``cxr320/`` and ``openchest2/``, each images and metadata.csv.

An image of openchest2 takes the place of those that it names in its column ``replaces``: older or smaller copies of
the same image.

How its cells become manifest cells:

- **Findings.** Listed = 1. NIH images: the authors searched each report for all fourteen NIH findings, so
  those not listed = 0, and ``No Finding`` = 0 where something is listed. Other sources: nobody looked for
  what is not listed, so it stays blank (unknown), except that a ``No Finding`` image has 0 everywhere
  else. Findings outside roentgen's vocabulary are counted and said, and the image is kept.
- **Boxes.** A ``Lung Opacity`` box sets ``Lung Opacity`` = 1 (NIH has no such label). Where the NIH label
  of the same image is ``No Finding`` the two sources disagree, and ``No Finding`` becomes blank.
- **Sides** (the patient's). A box gives the side of the finding that it names. A Lung Opacity box also
  gives the side of infiltration, consolidation or pneumonia when exactly one of these and no other finding
  that can have a side is listed, because that is what the readers were asked to box. Without boxes, the
  image's ``laterality`` goes to the only listed finding that can have a side. A box across the midline
  says nothing about the side, so the finding's side stays blank.
- **Text.** The few reports are kept when they have 5 to 60 words: shorter ones are fragments ("with
  co-infection"), longer ones no 77-token text encoder reads whole. All other texts are composed from labels.
- **Severity.** Where a cardiothoracic ratio was measured (``expert``), it says how severe cardiomegaly is.
- **Age.** "paediatric (1-5 y)" becomes 3, the middle of the range.
- **Weight.** Children aged 1 to 5 from one hospital are 48 % of openchest2: each counts ``CHILD_WEIGHT`` in training,
  every other image 1.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from roentgen.data.labels import NIH_14, NO_FINDING
from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.data.sources.common import one_side
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.prompts import FINDINGS

FOLDERS = ("nih128", "cxr320", "openchest2", "openchest/nih128", "openchest/cxr320")
REPLACES = "replaces"
CHILD_SOURCE = "Kermany 2018 paediatric"
CHILD_WEIGHT = 0.35
NIH_SOURCE = "NIH ChestX-ray14"
BOXED_AS_OPACITY = ("Infiltration", "Consolidation", "Pneumonia")
OPACITY = "Lung Opacity"
RATIO = re.compile(r"ctr:(\d\.\d+)")
# Cardiothoracic ratios above which an enlarged heart (over .5) is called moderate and severe.
RATIO_BOUNDS = (0.54, 0.59)
AGE_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)\s*y")
COLUMNS = (
    "file",
    "split",
    "source",
    "licence",
    "patient_id",
    "view",
    "sex",
    "age",
    "findings",
    "laterality",
    "region",
    "report",
)


def read_openchest(root: str | Path) -> tuple[pd.DataFrame, Counter[str]]:
    """Read the metadata of the collection as a manifest table.

    Args:
        root: one of the three folders, or a folder that holds some of them (or ``openchest`` with the first two).

    Returns:
        The table, with ``image`` absolute, ``text`` the report ("" for nearly all), findings 1.0, 0.0 or
        NaN, sides str; and how many images have each finding that is outside the vocabulary.

    Raises:
        UserError: when a folder, a metadata column or an image file is missing.
    """
    root = Path(root).absolute()
    if (root / "metadata.csv").is_file():
        folders = [root]
    else:
        folders = [root / name for name in FOLDERS if (root / name / "metadata.csv").is_file()]
    if not folders:
        raise UserError(
            f"--root {root} has no metadata.csv, nor nih128/, cxr320/ or openchest2/ with one; name openchest"
        )
    outside: Counter[str] = Counter()
    rows = []
    replaced: set[tuple[str, ...]] = set()
    for folder in folders:
        metadata = read_table(folder / "metadata.csv", required=COLUMNS, optional=None, fix="get openchest again")
        for record in metadata.to_dict("records"):
            cells = {str(key): value for key, value in record.items()}
            row, unknown = manifest_row(cells, folder)
            rows.append(row)
            outside.update(unknown)
            replaced.update(Path(older).parts[-3:] for older in cells.get(REPLACES, "").split(";") if older)
    table = pd.DataFrame([row for row in rows if Path(str(row["image"])).parts[-3:] not in replaced])
    absent = [image for image in table["image"] if not Path(image).is_file()]
    if absent:
        raise UserError(f"{len(absent)} image file(s) of --root {root} are missing, the first is {absent[0]}")
    return table, outside


def manifest_row(record: Mapping[str, str], folder: Path) -> tuple[dict[str, object], list[str]]:
    """One metadata row as a manifest row, and its findings that are outside the vocabulary."""
    listed = [name for name in record["findings"].split(";") if name]
    known = [name for name in listed if name in FINDINGS]
    box_sides = sides_of_boxes(record["region"])

    values: dict[str, float | None] = dict.fromkeys(FINDINGS)
    if record["source"] == NIH_SOURCE:
        values.update(dict.fromkeys((*NIH_14, NO_FINDING), 0.0))
    elif listed == [NO_FINDING]:
        values.update(dict.fromkeys(FINDINGS, 0.0))
    elif listed:
        values[NO_FINDING] = 0.0
    values.update(dict.fromkeys(known, 1.0))
    boxed = [name for name in box_sides if name in FINDINGS]
    values.update(dict.fromkeys(boxed, 1.0))
    if boxed and NO_FINDING in listed:
        values[NO_FINDING] = None

    sides = {name: "" for name, finding in FINDINGS.items() if finding.can_have_side}
    sides.update({name: side for name, side in box_sides.items() if name in sides})
    lone = [name for name in known if name in sides]
    if len(lone) == 1 and not sides[lone[0]]:
        if lone[0] in BOXED_AS_OPACITY:
            sides[lone[0]] = box_sides.get(OPACITY, "")
        if not box_sides and record["laterality"]:
            sides[lone[0]] = record["laterality"]

    row: dict[str, object] = {
        "image": str(folder / record["file"]),
        "text": " ".join(record["report"].split()),
        "patient_id": record["patient_id"],
        "split": record["split"],
        "view": record["view"],
        "sex": record["sex"],
        "age": _age(record["age"]),
        "source": record["source"],
        "licence": record["licence"],
        "Cardiomegaly_severity": _severity_of_ratio(record.get("expert", "")) if "Cardiomegaly" in known else "",
        "weight": CHILD_WEIGHT if record["source"] == CHILD_SOURCE else 1.0,
    }
    row.update({name: float("nan") if value is None else value for name, value in values.items()})
    row.update({name + SIDE_SUFFIX: side for name, side in sides.items()})
    return row, [name for name in listed if name not in FINDINGS]


def _severity_of_ratio(expert: str) -> str:
    """The word for a measured cardiothoracic ratio ("ctr:0.584"), or ""."""
    measured = RATIO.search(expert)
    if measured is None:
        return ""
    return FINDINGS["Cardiomegaly"].qualifiers[bisect.bisect(RATIO_BOUNDS, float(measured[1]))]


def sides_of_boxes(region: str) -> dict[str, str]:
    """Boxed finding -> left, right, bilateral, or "" where a box crosses the midline.

    ``region`` holds one "<finding>:<side> <zone>" a box, joined by ";"; entries without a finding are
    free text of other sources.
    """
    found: dict[str, set[str]] = {}
    for entry in region.split(";"):
        name, colon, place = entry.partition(":")
        if colon:
            side = place.split(" ")[0]
            found.setdefault(name, set()).add(side if side in ("left", "right") else "")
    return {name: one_side(sides) for name, sides in found.items()}


def _age(cell: str) -> str:
    matched = AGE_RANGE.search(cell)
    return str((int(matched[1]) + int(matched[2])) // 2) if matched else cell
