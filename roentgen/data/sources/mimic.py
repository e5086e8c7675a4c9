"""Adapter for MIMIC-CXR-JPG with the reports of MIMIC-CXR (PhysioNet, credentialed access).

What is read, as it lies after the download:

- below the root: ``mimic-cxr-2.0.0-metadata.csv.gz``, ``-split.csv.gz``, ``-chexpert.csv.gz`` or ``-negbio.csv.gz``
  (version 2.1.0 keeps these names; gzipped or not), and ``files/p10/p10000032/s50414267/<dicom_id>.jpg``;
- the reports: ``mimic-cxr-reports.zip``, or a folder with ``files/p10/p10000032/s50414267.txt`` (the root itself will
  do when both were downloaded to one place).

How its parts become manifest cells:

- **Views.** ``ViewPosition`` AP or PA; where it is blank, ``ViewCodeSequence_CodeMeaning`` "antero-posterior" or
  "postero-anterior". Everything else (laterals, decubitus and oblique films, unknown) is left out and counted.
- **Text** is the wanted section of the study's report, cleaned by ``sections.clean_text``; "" where there is none.
- **Splits.** "official": the published one. "roentgen": RoentGen's, patients p10 to p18 for training and p19 held out
  as test; the validation patients, of which that study has none, are drawn from p10 to p18 by a hash.
- **Labels** are the study's, as an automatic labeller read the report: see ``labels.chexpert_labels``. The labels that
  radiologists gave to some test studies (version 2.1.0) are not used.
- **Sex and age** are not part of MIMIC-CXR. MIMIC-IV's ``patients.csv.gz`` gives them: the age at the study is
  anchor_age + study year - anchor_year, all years shifted alike by the de-identification.
"""

from __future__ import annotations

import itertools
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from roentgen.config import ShareBelowOne
from roentgen.data.assemble import first_patients
from roentgen.data.labels import CHEXPERT_14, CHEXPERT_OUTSIDE, Uncertain, chexpert_labels
from roentgen.data.manifest import MAX_AGE
from roentgen.data.sections import clean_text, pick_text
from roentgen.data.sources.common import (
    CHUNK,
    THREADS,
    Missing,
    check_cells,
    drop_rows,
    find_table,
    hashed_splits,
    in_threads,
    keep_present,
    manifest_columns,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.files import explained, regular

SOURCE = "MIMIC-CXR-JPG"
LICENCE = "PhysioNet Credentialed Health Data License 1.5.0"
VERSIONS = ("2.0.0", "2.1.0")
REPORTS_ZIP = "mimic-cxr-reports.zip"
LABELLERS = ("chexpert", "negbio", "none")
VIEW_CODES = {"antero-posterior": "AP", "postero-anterior": "PA"}
OFFICIAL = {"train": "train", "validate": "val", "test": "test"}
HELD_OUT = "p19"  # RoentGen's test patients
DAMAGED = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error)  # of a zip's member
LOOKED_AT = 100  # patient folders, when it is to be seen whether reports are there

Reader = Callable[[Sequence[tuple[str, str]]], list[str | None]]  # (subject, study) numbers -> reports, None: no file


def read_mimic(
    root: str | Path,
    *,
    reports: str | Path | None = None,
    section: Sequence[str] = ("impression",),
    split: Literal["official", "roentgen"] = "roentgen",
    labels: str = "chexpert",
    patients: str | Path | None = None,
    uncertain: Uncertain = "blank",
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.02,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read MIMIC-CXR-JPG as a manifest table of its frontal images.

    Args:
        root: folder of MIMIC-CXR-JPG, with its tables and ``files/``.
        reports: ``mimic-cxr-reports.zip`` or the folder of the reports; None: looked for in and beside ``root``;
            "none": not read, every text is "".
        section: the first of these report sections that is not blank is the text.
        split: the published split, or RoentGen's by patient folder.
        labels: which labeller's table to read: chexpert, negbio or none.
        patients: MIMIC-IV's ``patients.csv.gz`` for sex and age.
        val_share: for "roentgen": share of the training patients that become ``val``.
        limit: keep only the first so many patients by hash.
        seed: of that hash and of ``val``.

    Returns:
        The table, ``text`` "" where a report lacks the sections, and counts of what was left out.

    Raises:
        UserError: naming the flag or file that is wrong.
    """
    root = Path(root).absolute()
    if labels not in LABELLERS:
        raise UserError(f"--labels {labels!r} does not exist in MIMIC-CXR-JPG; choose from {', '.join(LABELLERS)}")
    read_reports = None if reports == "none" else find_reports(root, reports)  # before the long part
    counts: Counter[str] = Counter()
    table = _metadata(root, counts)
    if limit is not None:
        table = table[table["subject_id"].isin(first_patients(table["subject_id"], limit, seed=seed))]
        table = table.reset_index(drop=True)
    table["patient_id"] = "p" + table["subject_id"]
    table["split"] = _splits(root, table, split, val_share=val_share, seed=seed)
    folder = table["patient_id"].str[:3] + os.sep + table["patient_id"] + os.sep + "s" + table["study_id"]
    table["image"] = str(root / "files") + os.sep + folder + os.sep + table["dicom_id"] + ".jpg"
    table = keep_present(table, counts, missing=missing, root=root / "files")
    table["text"] = "" if read_reports is None else _texts(table, read_reports, section, counts)
    table["sex"], table["age"] = _sex_and_age(table, patients, counts)
    table["source"], table["licence"] = SOURCE, LICENCE
    if labels != "none":
        table = pd.concat([table, _labels(root, table, labels, uncertain)], axis=1)
    return manifest_columns(table), counts


def _path(root: Path, name: str) -> Path:
    return find_table(root, [f"mimic-cxr-{version}-{name}.csv" for version in VERSIONS])


def _metadata(root: Path, counts: Counter[str]) -> pd.DataFrame:
    """dicom_id, subject_id, study_id, view and StudyDate of the frontal images."""
    path = _path(root, "metadata")
    code = "ViewCodeSequence_CodeMeaning"
    table = read_table(
        path, required=("dicom_id", "subject_id", "study_id", "ViewPosition"), optional=(code, "StudyDate")
    )
    blank = table["ViewPosition"] == ""
    views = table["ViewPosition"].str.upper()
    if code in table.columns:
        views = views.mask(blank, table[code].str.lower().map(VIEW_CODES).fillna(""))
    table["view"] = views
    table = drop_rows(table, table["view"] == "", counts, "images of unknown view")
    table = drop_rows(table, ~table["view"].isin(["AP", "PA"]), counts, "images of views other than PA and AP")
    if table.empty:
        raise UserError(f"{path} lists no frontal image (ViewPosition AP or PA); download it again")
    return table


def _splits(root: Path, table: pd.DataFrame, split: str, *, val_share: float, seed: int) -> pd.Series:
    if split == "roentgen":
        drawn = hashed_splits(table["subject_id"], val_share, 0.0, seed=seed)
        return drawn.mask(table["patient_id"].str.startswith(HELD_OUT), "test")
    path = _path(root, "split")
    official = read_table(path, required=("dicom_id", "split"))
    check_cells(official["split"], OFFICIAL, "split", path=path)
    found = table["dicom_id"].map(official.drop_duplicates("dicom_id").set_index("dicom_id")["split"]).map(OFFICIAL)
    lost = int(found.isna().sum())
    if lost:
        first = table["dicom_id"][found.isna()].iloc[0]
        raise UserError(
            f"{path} lacks {lost} image(s), the first is {first}; download it again or use --split roentgen"
        )
    return found


def _labels(root: Path, table: pd.DataFrame, name: str, uncertain: Uncertain) -> pd.DataFrame:
    path = _path(root, name)
    cells = read_table(path, required=("study_id", *CHEXPERT_14, *CHEXPERT_OUTSIDE))
    findings = chexpert_labels(cells, uncertain, path=path)
    findings.index = pd.Index(cells["study_id"])
    findings = findings[~findings.index.duplicated()]
    return findings.reindex(table["study_id"]).set_axis(table.index)


def _sex_and_age(
    table: pd.DataFrame, patients: str | Path | None, counts: Counter[str]
) -> tuple[pd.Series | str, pd.Series | float]:
    if patients is None:
        return "", np.nan
    if "StudyDate" not in table.columns:
        raise UserError("--patients needs the column StudyDate in the metadata table; download that table again")
    known = read_table(Path(patients), required=("subject_id", "gender", "anchor_age", "anchor_year"))
    known = known.drop_duplicates("subject_id").set_index("subject_id")
    rows = known.reindex(table["subject_id"]).set_axis(table.index)
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in ("anchor_age", "anchor_year")}
    year = pd.to_numeric(table["StudyDate"].str[:4], errors="coerce")
    age = numbers["anchor_age"] + year - numbers["anchor_year"]
    age = age.where(age.between(0, MAX_AGE))
    counts["images kept without sex and age, as --patients lacks the patient"] += int(rows["gender"].isna().sum())
    return rows["gender"].where(rows["gender"].isin(["M", "F"]), ""), age.astype("float64")


# ------------------------------------------------------------------------------------------ reports


def _texts(table: pd.DataFrame, read: Reader, section: Sequence[str], counts: Counter[str]) -> pd.Series:
    """The text of every row; each study's report is read and parsed once."""
    studies = table[["subject_id", "study_id"]].drop_duplicates("study_id")
    pairs = list(zip(studies["subject_id"], studies["study_id"], strict=True))
    texts: dict[str, str] = {}
    absent: list[str] = []
    step = THREADS * CHUNK  # a block at a time, so that reports do not pile up in memory
    for start in tqdm(range(0, len(pairs), step), desc="reading reports", unit_scale=step, unit="report", disable=None):
        block = pairs[start : start + step]
        for (subject, study), report in zip(block, read(block), strict=True):
            if report is None:
                absent.append(f"p{subject}/s{study}.txt")
            texts[study] = clean_text(pick_text(report or "", section))
    if len(absent) == len(pairs):
        raise UserError(f"--reports has none of the {len(pairs)} reports, the first is {absent[0]}; mend --reports")
    counts["studies without a report file"] += len(absent)
    return table["study_id"].map(texts)


def find_reports(root: Path, reports: str | Path | None) -> Reader:
    """A reader of reports from a zip file or a folder.

    Raises:
        UserError: when there are none.
    """
    if reports is None:
        places = [root / REPORTS_ZIP, root.parent / REPORTS_ZIP, root / "mimic-cxr-reports", root]
        for place in places:
            if place.is_file() or _files_folder(place) is not None:
                return find_reports(root, place)
        raise UserError(
            f"--reports is missing; MIMIC-CXR-JPG has no reports, so name MIMIC-CXR's {REPORTS_ZIP} or its folder "
            f"or write --reports none for texts composed from the labels"
        )
    reports = Path(reports)
    if reports.is_file():
        return _zip_reader(reports)
    folder = _files_folder(reports)
    if folder is None:
        raise UserError(
            f"--reports {reports} has no files/p10/p.../s....txt; name {REPORTS_ZIP} or the folder made of it"
        )
    return _folder_reader(folder)


def _files_folder(root: Path) -> Path | None:
    """The folder with p10 ... p19 that holds report files, or None; looks at some patients, not at all 65,000."""
    for folder in (root / "files", root / "mimic-cxr-reports" / "files", root):
        for patients in sorted(folder.glob("p1[0-9]")):
            if any(next(patient.glob("s*.txt"), None) for patient in itertools.islice(patients.iterdir(), LOOKED_AT)):
                return folder
    return None


def _folder_reader(folder: Path) -> Reader:
    base = str(folder)

    def one(pair: tuple[str, str]) -> str | None:
        subject, study = pair
        path = f"{base}{os.sep}p{subject[:2]}{os.sep}p{subject}{os.sep}s{study}.txt"
        try:
            with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - 227,000 files
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"--reports: {path} cannot be read ({error.strerror or error})") from error

    return partial(in_threads, one)


def _zip_reader(path: Path) -> Reader:
    with explained(f"--reports {path} is broken or no zip file", "download it again", (zipfile.BadZipFile, OSError)):
        archive = zipfile.ZipFile(regular(path))
    # By name without folders, as study numbers are unique and the folders above differ between versions.
    reports = [name for name in archive.namelist() if name.endswith(".txt")]
    studies = [name[name.rfind("/") + 1 : -4] for name in reports]
    members = dict(zip(studies, reports, strict=True))
    if len(members) < len(reports):
        twice = next(study for study in studies if studies.count(study) > 1)
        raise UserError(f"--reports {path} has two reports named {twice}.txt; keep one copy of each study's")
    if not members:
        raise UserError(f"--reports {path} has no report (.txt) in it; name {REPORTS_ZIP}")

    def read(pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        found: list[str | None] = []
        for _, study in pairs:
            name = members.get(f"s{study}")
            with explained(f"--reports {path}: {name} is damaged", "download it again", DAMAGED):
                found.append(None if name is None else archive.read(name).decode("utf-8", errors="replace"))
        return found

    return read
