"""Adapters for CheXpert (labels only) and CheXpert Plus (the same images with their reports).

How the parts become manifest cells, in both:

- **Views.** Frontal images only; a frontal image whose projection is neither PA nor AP (16 "LL", 1 "RL") is left out.
- **Splits.** The 200 patients of the official ``valid`` set, labelled by radiologists, become ``test``, and ``val`` is
  split off the train patients by a hash. Where ``test.csv`` (or ``test_labels.csv``) is there, the official sets are
  kept: train, val, test. Both collections have the same patients, so equal seed and share give equal splits.
- **Patients.** ``patient00001`` becomes ``chexpert00001``, so that manifests of several collections can be joined.
- **Labels.** See ``labels.chexpert_labels``. A test table without demographics gives blank view, sex and age.
- **Age** 0 is CheXpert's mark for unknown (three images), sex "Unknown" is blank.
- **Text** of CheXpert is "" (the command composes it from the labels); CheXpert Plus has the section, cleaned, or "".

Sources: Irvin et al. 2019 (CheXpert), Chambon et al. 2024 (CheXpert Plus).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.labels import CHEXPERT_14, CHEXPERT_OUTSIDE, NO_FINDING, Uncertain, chexpert_labels
from roentgen.data.manifest import VIEWS
from roentgen.data.sections import clean_text
from roentgen.data.sources.common import (
    Missing,
    ages,
    are_files,
    check_cells,
    drop_rows,
    find_table,
    hashed_splits,
    keep_present,
    manifest_columns,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.files import regular

SOURCE, PLUS_SOURCE = "CheXpert", "CheXpert Plus"
LICENCE = "Stanford University Dataset Research Use Agreement"
LABELS = (*CHEXPERT_14, *CHEXPERT_OUTSIDE)
DEMOGRAPHICS = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
TEST_TABLES = ("test.csv", "test_labels.csv")
TAIL = r"((?:train|valid|val|test)/patient(\d+)/study\d+/[^/]+)$"
SEXES = {"Male": "M", "Female": "F", "M": "M", "F": "F", "Unknown": "", "": ""}

PLUS_TABLE = "df_chexpert_plus_240401.csv"
PLUS_NAMES = {
    "path_to_image": "Path",
    "frontal_lateral": "Frontal/Lateral",
    "ap_pa": "AP/PA",
    "age": "Age",
    "sex": "Sex",
}
PLUS_SECTIONS = (
    "impression",
    "findings",
    "narrative",
    "clinical_history",
    "history",
    "comparison",
    "technique",
    "procedure_comments",
    "end_of_impression",
    "summary",
)
PLUS_FOLDERS = ("PNG", "PNG/PNG", "PNGs", ".", "../PNG", "../PNG/PNG")
PLUS_LABELS = ("chexbert_labels/impression_fixed.json", "labels/impression_fixed.json", "impression_fixed.json")


def read_chexpert(
    root: str | Path,
    *,
    uncertain: Uncertain = "blank",
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.05,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read CheXpert (full size, its batches or ``CheXpert-v1.0-small``) as a manifest table of its frontal images.

    Args:
        root: the folder of ``train.csv`` and ``valid.csv``, or the folder above it; of the full-size release the folder
            of its batches.
        val_share: share of the train patients for ``val``; unused where the official test set is there.
        seed: of that split.

    Returns:
        The table, ``image`` absolute, ``text`` ""; and counts of what was left out.

    Raises:
        UserError: naming the flag, file or column that is wrong.
    """
    train = find_table(Path(root).absolute(), ("train.csv",), below="CheXpert*")
    folder = train.parent
    tables = {"train": train, "valid": find_table(folder, ("valid.csv",))}
    tests = [folder / name for name in TEST_TABLES if (folder / name).is_file()]
    parts = [
        read_table(path, required=("Path", *DEMOGRAPHICS, *LABELS)).assign(split=split)
        for split, path in tables.items()
    ]
    if tests:
        part = read_table(tests[0], required=("Path", *LABELS[1:]), optional=(NO_FINDING, *DEMOGRAPHICS))
        parts.append(part.assign(split="test"))
    cells = pd.concat(parts, ignore_index=True).fillna("")
    counts: Counter[str] = Counter()
    cells = frontal_rows(cells, counts, path=train)
    table = chexpert_rows(cells, counts, uncertain=uncertain, val_share=val_share, seed=seed, path=train)
    places = batch_folders(folder)

    def place(tail: str) -> str:
        patient, study, rest = tail.partition("/study")
        return places.get(patient, f"{folder}/{patient}") + study + rest

    table["image"] = table["image"].map(place)
    table = keep_present(table, counts, missing=missing, root=folder)
    return manifest_columns(table), +counts


def batch_folders(folder: Path) -> dict[str, str]:
    """Patient such as "train/patient00001" -> the folder of its studies, in the full-size release's batches.

    That comes as folders side by side, ``CheXpert-v1.0 batch 1 (validate & csv)``, ``CheXpert-v1.0 batch 2 (train 1)``
    ..., which hold ``train/`` or ``valid/``, or the patients themselves. ``folder`` is that of the tables: one of the
    batches, or the folder that holds or lies beside them. Without batches the answer is empty.
    """
    places: dict[str, str] = {}
    for batch in sorted({*folder.glob("*batch*"), *folder.parent.glob("CheXpert*batch*")}):
        splits = [(name, batch / name) for name in ("train", "valid", "test") if (batch / name).is_dir()]
        if batch.is_dir() and not splits:
            splits = [("valid" if "valid" in batch.name else "train", batch)]
        for split, place in splits:
            places.update({f"{split}/{patient.name}": str(patient) for patient in place.glob("patient*")})
    return places


def frontal_rows(table: pd.DataFrame, counts: Counter[str], *, path: object = "") -> pd.DataFrame:
    """The frontal rows of CheXpert's table, with ``image`` (from ``train/`` on) and ``patient_id`` out of ``Path``.

    Where a row does not say frontal or lateral, its file name does. What is left out is added to ``counts``.

    Raises:
        UserError: for a path that is not CheXpert's.
    """
    parts = table["Path"].str.extract(TAIL)
    if parts[0].isna().any():
        bad = table["Path"][parts[0].isna()].iloc[0]
        raise UserError(f"{path} has the path {bad!r}; it must end in train/patient00001/study1/view1_frontal.jpg")
    table = table.assign(image=parts[0], patient_id="chexpert" + parts[1])
    said = table["Frontal/Lateral"].where(table["Frontal/Lateral"] != "", table["Path"]).str.lower()
    table = drop_rows(table, said.str.contains("lateral"), counts, "images that are lateral")
    other = ~table["AP/PA"].isin([*VIEWS, ""])
    return drop_rows(table, other, counts, "frontal images of a view other than PA and AP")


def chexpert_rows(
    table: pd.DataFrame,
    counts: Counter[str],
    *,
    uncertain: Uncertain = "blank",
    val_share: ShareBelowOne = 0.05,
    seed: int = 0,
    source: str = SOURCE,
    path: object = "",
) -> pd.DataFrame:
    """The table of ``frontal_rows`` as manifest rows, without looking at the images.

    Args:
        table: text cells; ``split`` says train, valid or test.
        counts: what is odd is added here.
        val_share, seed: of the split of train patients; see the module's text.
        source: name of the collection.
        path: file to name in messages.

    Returns:
        One row an image, ``text`` "".

    Raises:
        UserError: for a cell that is not CheXpert's.
    """
    labels = chexpert_labels(table, uncertain, path=path)
    check_cells(table["Sex"], SEXES, "sex", path=path)
    counts["images kept without any known finding"] += int(labels.isna().all(axis=1).sum())
    rows = pd.DataFrame(
        {
            "image": table["image"],
            "text": "",
            "patient_id": table["patient_id"],
            "split": official_splits(table, val_share, seed=seed, path=path),
            "view": table["AP/PA"],
            "sex": table["Sex"].map(SEXES),
            "age": ages(table["Age"].where(table["Age"] != "0", ""), counts),
            "source": source,
            "licence": LICENCE,
        }
    )
    return pd.concat([rows, labels], axis=1)


def official_splits(table: pd.DataFrame, val_share: float, *, seed: int, path: object = "") -> pd.Series:
    """CheXpert's train, valid and test as ours; see the module's text."""
    check_cells(table["split"], ("train", "valid", "test"), "split", path=path)
    if (table["split"] == "test").any():
        return table["split"].replace("valid", "val")
    hashed = hashed_splits(table["patient_id"], val_share, 0.0, seed=seed)
    return hashed.mask(table["split"] == "valid", "test")


def read_chexpert_plus(
    root: str | Path,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    section: Sequence[str] = ("impression",),
    uncertain: Uncertain = "blank",
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.05,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read CheXpert Plus as a manifest table of its frontal images with the text of their reports.

    Args:
        root: the folder of ``df_chexpert_plus_240401.csv``.
        images: the folder of ``train/`` and ``valid/``; None: ``PNG`` beside the table (or one of ``PLUS_FOLDERS``).
        labels: JSON lines of CheXbert's labels; None: one of ``PLUS_LABELS`` below ``root``, and without it the
            findings are blank.
        section: names of ``PLUS_SECTIONS``; the first of them that is not blank is the text.
        val_share: share of the train patients for ``val``.
        seed: of that split.

    Returns:
        The table, ``image`` absolute, ``text`` "" where the report lacks the sections; and counts of what was left out.

    Raises:
        UserError: naming the flag, file or column that is wrong.
    """
    unknown = [name for name in section if name not in PLUS_SECTIONS]
    if unknown or not section:
        said = repr(unknown[0]) if unknown else "without a name"
        raise UserError(f"--section {said} does not exist in CheXpert Plus; choose from {', '.join(PLUS_SECTIONS)}")
    root = Path(root).absolute()
    path = find_table(root, (PLUS_TABLE,))
    wanted = [f"section_{name}" for name in section]
    cells = read_table(path, required=(*PLUS_NAMES, "split", *wanted))
    folder = _plus_folder(root, images)
    counts: Counter[str] = Counter()
    cells = frontal_rows(cells.rename(columns=PLUS_NAMES), counts, path=path)
    found = Path(labels) if labels is not None else next((root / n for n in PLUS_LABELS if (root / n).is_file()), None)
    if found is None:
        counts["images without labels, as --root has no chexbert_labels/impression_fixed.json"] = len(cells)
        cells = cells.assign(**dict.fromkeys(LABELS, ""))
    else:
        cells = cells.merge(chexbert_table(found), on="Path", how="left").fillna("")
    table = chexpert_rows(
        cells, counts, uncertain=uncertain, val_share=val_share, seed=seed, source=PLUS_SOURCE, path=path
    )
    texts = zip(*(cells[name] for name in wanted), strict=True)
    table["text"] = [next((text for part in parts if (text := clean_text(part))), "") for parts in texts]
    # The table names JPEG files; the collection comes as PNG (and DICOM).
    named = [f"{folder}/{tail}" for tail in table["image"]]
    as_png = [f"{path.removesuffix('.jpg')}.png" for path in named]
    table["image"] = [png if there else path for path, png, there in zip(named, as_png, are_files(as_png), strict=True)]
    table = keep_present(table, counts, missing=missing, root=folder)
    counts[f"images kept whose report has no {' or '.join(section)}"] = int((table["text"] == "").sum())
    return manifest_columns(table), +counts


def chexbert_table(path: Path) -> pd.DataFrame:
    """CheXbert's labels (JSON lines) as text cells like those of ``train.csv``, with ``Path``.

    Raises:
        UserError: when the file is missing, a line is not JSON, a label is missing, or an image is there twice.
    """
    records = []
    try:
        with regular(path).open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                values = [record["path_to_image"], *(record[name] for name in LABELS)]
                records.append(["" if value is None or value != value else str(value) for value in values])
    except OSError as error:
        raise UserError(f"--labels {path} cannot be read ({error.strerror}); name impression_fixed.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {len(records) + 1} is no label record ({error}); download it again") from error
    table = pd.DataFrame(records, columns=["Path", *LABELS], dtype=str)
    twice = table["Path"].duplicated()
    if twice.any():
        raise UserError(f"{path} has two records of {table['Path'][twice].iloc[0]}; download it again")
    return table


def _plus_folder(root: Path, images: str | Path | None) -> Path:
    candidates = [root / name for name in PLUS_FOLDERS] if images is None else [Path(images).absolute()]
    for folder in candidates:
        if (folder / "train").is_dir() or (folder / "valid").is_dir():
            return folder.resolve()
    named = f"--images {images}" if images is not None else f"--root {root}"
    raise UserError(f"{named} has no folder train/ or valid/ with images; name the folder that holds them by --images")
