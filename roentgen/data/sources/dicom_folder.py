"""Adapter for a folder of DICOM files with a CSV of reports, as a hospital exports them.

How the parts become manifest cells:

- **Headers only** are read, in threads; pixels are not looked at (``roentgen data check`` does that). Files that are
  not DICOM are counted and ignored, whatever their ending.
- **Left out**, and counted: modality other than CR and DX; a body part that is not the chest; ``FOR PROCESSING`` images
  (raw detector data); a view other than PA and AP; a missing view, unless PatientOrientation says that it is frontal
  (rows run to the patient's left, columns to the feet), which leaves ``view`` blank; images whose PatientOrientation
  says that they are mirrored, as left must be left; second copies of one SOPInstanceUID; images without a report.
- **Reports.** Several rows of one key must agree. A report without the wanted section leaves ``text`` "".
- **Findings.** Columns of the CSV named as roentgen's findings (case, space and "_" do not matter) are taken: 1, 0, -1
  or blank; without such columns all are blank.
- **Age** is PatientAge ("045Y", "018M"), else from the dates of birth and study.
- **Patients.** ``pseudonymise`` replaces ``patient_id`` by HMAC-SHA-256 with the salt. Without ``salt`` it is random
  and thrown away, so nobody can redo it and two runs do not agree. Splits are those of the true ids, so they do not
  change. Only the column is replaced: file names, the files' own headers and the report texts stay as they are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.images import map_images
from roentgen.data.labels import Uncertain, label_column
from roentgen.data.manifest import SPLITS, VIEWS
from roentgen.data.sections import clean_text, pick_text
from roentgen.data.sources.common import (
    SPLIT_WORDS,
    ages,
    check_root,
    drop_rows,
    finding_map,
    hashed_splits,
    manifest_columns,
    walk,
    years_of,
)
from roentgen.data.tables import read_table
from roentgen.data.text_statistics import identifiers
from roentgen.errors import UserError
from roentgen.files import regular

Join = Literal["AccessionNumber", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "path"]
MODALITIES = ("CR", "DX")
CHEST = re.compile(r"CHEST|THORAX|TORAX|LUNG|^$")  # BodyPartExamined; blank in many archives
FRONTAL, MIRRORED = ("L", "F"), ("R", "F")  # PatientOrientation: where rows and columns run to (PS3.3 C.7.6.1.1.1)
TAGS = (
    *("AccessionNumber", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "Modality", "ViewPosition"),
    *("BodyPartExamined", "PresentationIntentType", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate"),
)
HEADER = (*TAGS, "PatientOrientation", "Rows")
WHOLE_REPORT = "report"
SHORTEST_SALT = 8  # characters; a shorter one is guessed


def read_dicom_folder(
    root: str | Path,
    *,
    csv: str | Path,
    join: Join = "AccessionNumber",
    key_column: str | None = None,
    text_column: str = "report",
    section: Sequence[str] = ("impression",),
    split_column: str | None = None,
    uncertain: Uncertain = "blank",
    pseudonymise: bool = False,
    salt: str | None = None,
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    seed: int = 0,
    source_name: str = "",
    licence: str = "",
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read a tree of DICOM files and their reports as a manifest table of the frontal chest radiographs.

    Args:
        root: folder of the DICOM files, at any depth.
        csv: the CSV of the reports (``.gz`` too), one row a report.
        join: DICOM tag, or "path", that joins an image to a row of the CSV.
        key_column: column that holds the tag, or the path relative to ``root``; None: of the name ``join``.
        text_column: column of the report.
        section: sections to take, see ``sections.pick_text``; ("report",) takes the whole report, cleaned.
        split_column: column of the split; None: at random by patient.
        pseudonymise: replace ``patient_id``.
        salt: key of the pseudonyms, at least 8 characters; None: random.
        val_share, test_share: share of the patients for that split.
        seed: of the random split.
        source_name, licence: of the collection, written to every row.

    Returns:
        The table, ``image`` absolute, folder by folder in the order of the names; and counts of what was left out.

    Raises:
        UserError: naming the flag, file or column that is wrong.
    """
    check_salt(salt, pseudonymise)
    if not section:
        raise UserError("--section is empty; name sections such as impression, or report for the whole report")
    root, csv = check_root(root, "name the folder of the DICOM files"), Path(csv)
    key = key_column or join
    texts = report_table(csv, key=key, report=text_column, split=split_column, path_keys=join == "path")
    counts: Counter[str] = Counter()
    headers = read_headers(root, counts)
    table = frontal_headers(headers, counts)
    if table.empty:
        said = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise UserError(f"--root {root} has no frontal chest radiograph in DICOM ({said}); name another folder")
    by_path = [Path(image).relative_to(root).as_posix() for image in table["image"]]
    table["key"] = by_path if join == "path" else table[join]
    advice = f"{key!r} of {csv} is {texts['key'].iloc[0]!r}; choose others by --join and --key-column"
    table = with_reports(table, texts, counts, f"{join} is {table['key'].iloc[0]!r}, the first {advice}")
    rows = pd.DataFrame(
        {
            "image": table["image"],
            "text": table["report"].map({report: section_text(report, section) for report in table["report"].unique()}),
            "patient_id": _patients(table, counts),
            "view": table["ViewPosition"],
            "sex": table["PatientSex"].where(table["PatientSex"].isin(["M", "F"]), ""),
            "age": ages(_years(table), counts),
            "source": source_name,
            "licence": licence,
        }
    )
    counts[f"images kept whose report has no {' or '.join(section)}"] += int((rows["text"] == "").sum())
    drawn = split_column is None
    rows["split"] = hashed_splits(rows["patient_id"], val_share, test_share, seed=seed) if drawn else table["split"]
    for column, finding in finding_map(list(texts.columns), None, csv=csv).items():
        rows[finding] = label_column(table[column], uncertain, path=csv)
    if pseudonymise:
        replace_patients(rows, (salt or secrets.token_hex()).encode())
    return manifest_columns(rows), +counts


def check_salt(salt: str | None, pseudonymise: bool) -> None:
    """UserError for a key of pseudonyms that is not used or too short."""
    if salt is not None and not pseudonymise:
        raise UserError("--salt has no use without --pseudonymise; add it or leave --salt out")
    if salt is not None and len(salt) < SHORTEST_SALT:
        raise UserError(f"--salt has {len(salt)} characters; take a secret of at least {SHORTEST_SALT}")


def with_reports(table: pd.DataFrame, texts: pd.DataFrame, counts: Counter[str], first: str) -> pd.DataFrame:
    """Images joined to their reports by the column ``key``; UserError, which says ``first``, where none has one."""
    known = table["key"].isin(texts["key"])
    if not known.any():
        raise UserError(f"no image has a report: the first image's {first}")
    counts["reports without a frontal image"] += int((~texts["key"].isin(table["key"])).sum())
    table = drop_rows(table, ~known, counts, "images without a report")
    copies = table["SOPInstanceUID"].duplicated() & (table["SOPInstanceUID"] != "")
    table = drop_rows(table, copies, counts, "second copies of an image")
    return table.merge(texts, on="key", how="left")


def replace_patients(rows: pd.DataFrame, key: bytes) -> None:
    """Put pseudonyms into ``patient_id``, and say what stays as it was."""
    names = {patient: pseudonym(patient, key) for patient in rows["patient_id"].unique()}
    rows["patient_id"] = rows["patient_id"].map(names)
    held = sum(bool(identifiers(text)) for text in rows["text"])
    print(
        "--pseudonymise: patient_id is a keyed hash; file names, the DICOM files' own headers and the report texts "
        f"are as they were, and {held:,} of {len(rows):,} texts seem to hold a name, number or date "
        "(`roentgen data check` lists them)",
        file=sys.stderr,
    )


def pseudonym(patient: str, key: bytes) -> str:
    """Sixteen hexadecimal digits (64 bits) that cannot be traced to the patient without the key."""
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16]


def section_text(report: str, section: Sequence[str]) -> str:
    """The first wanted section of the report that is not blank, cleaned; the whole report for "report"."""
    for name in section:
        text = clean_text(report if name == WHOLE_REPORT else pick_text(report, (name,)))
        if text:
            return text
    return ""


def report_table(path: Path, *, key: str, report: str, split: str | None, path_keys: bool) -> pd.DataFrame:
    """The reports: columns ``key``, ``report``, ``split`` where asked for, and the CSV's columns of findings.

    Raises:
        UserError: when the file or a column is missing, a key is blank in every row, or two reports share a key.
    """
    header = read_table(path, optional=None, name=f"--csv {path}", fix="name the CSV of the reports, one row each")
    for flag, name in (("--key-column", key), ("--text-column", report), ("--split-column", split)):
        if name is not None and name not in header.columns:
            raise UserError(f"{flag}: {path} has no column {name!r}; it has {', '.join(header.columns)}")
    table = pd.DataFrame({"key": header[key], "report": header[report]})
    if path_keys:
        table["key"] = table["key"].str.replace("\\", "/").str.removeprefix("./")
    if split is not None:
        words = header[split].str.lower()
        table["split"] = words.replace(SPLIT_WORDS)
        bad = ~table["split"].isin(SPLITS)
        if bad.any():
            raise UserError(
                f"--split-column: {path}, row {int(bad.to_numpy().argmax()) + 1}, has the split "
                f"{words[bad].iloc[0]!r}; write {', '.join(SPLITS)}"
            )
    for column in finding_map([name for name in header.columns if name not in (key, report, split)], None, csv=path):
        table[column] = header[column]
    table = table[table["key"] != ""].drop_duplicates()
    if table.empty:
        raise UserError(f"--key-column: {path} has no value in {key!r}; name another column")
    twice = table["key"].duplicated()
    if twice.any():
        raise UserError(
            f"{path} has different rows for {key} {table['key'][twice].iloc[0]!r} "
            f"({int(twice.sum())} rows too many); keep one each"
        )
    return table.reset_index(drop=True)


def read_headers(root: Path, counts: Counter[str]) -> pd.DataFrame:
    """One row each DICOM image below ``root``: ``image``, the cells of ``TAGS`` and ``orientation``.

    Files that are no DICOM images are added to ``counts``.
    """
    paths = [f"{folder}/{name}" for folder, names in walk(root) for name in names]
    headers = map_images(read_header, paths, desc="reading DICOM headers")
    counts.update(header for header in headers if isinstance(header, str))
    rows = [header for header in headers if not isinstance(header, str)]
    return pd.DataFrame(rows, columns=["image", *TAGS, "orientation"], dtype=str)


def read_header(path: str) -> dict[str, str] | str:
    """``image``, the cells of ``TAGS`` and ``orientation`` of one file, without its pixels; or why there are none."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        data = pydicom.dcmread(regular(path), stop_before_pixels=True, specific_tags=list(HEADER))
        if "Rows" not in data:
            return "DICOM files without an image"
        cells = {"image": path} | {name: _cell(data.get(name)) for name in TAGS}
        orientation = data.get("PatientOrientation") or ""
        parts = [orientation] if isinstance(orientation, str) else [str(part) for part in orientation]
        cells["orientation"] = "\\".join(part.strip().upper() for part in parts)
    except InvalidDicomError:
        return "files that are not DICOM"
    except Exception:  # a damaged header fails anywhere inside pydicom, with any error; the file is counted
        return "unreadable DICOM files"
    return cells


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def frontal_headers(headers: pd.DataFrame, counts: Counter[str]) -> pd.DataFrame:
    """The rows of frontal chest radiographs, ``ViewPosition`` PA, AP or ""; see the module's text for the rest."""
    table = headers.assign(
        ViewPosition=headers["ViewPosition"].str.upper(),
        Modality=headers["Modality"].str.upper(),
        PatientSex=headers["PatientSex"].str.upper(),
    )
    table = drop_rows(table, ~table["Modality"].isin(MODALITIES), counts, "images of a modality other than CR and DX")
    chest = table["BodyPartExamined"].str.upper().str.contains(CHEST)
    table = drop_rows(table, ~chest, counts, "images of another body part")
    raw = table["PresentationIntentType"].str.upper() == "FOR PROCESSING"
    table = drop_rows(table, raw, counts, "raw images (FOR PROCESSING)")
    other = ~table["ViewPosition"].isin([*VIEWS, ""])
    table = drop_rows(table, other, counts, "images of views other than PA and AP")
    mirrored = table["orientation"] == "\\".join(MIRRORED)
    table = drop_rows(table, mirrored, counts, "images that are mirrored by their PatientOrientation")
    unknown = (table["ViewPosition"] == "") & (table["orientation"] != "\\".join(FRONTAL))
    return drop_rows(table, unknown, counts, "images of unknown view")


def _patients(table: pd.DataFrame, counts: Counter[str]) -> pd.Series:
    """PatientID, or where it is blank the study, the accession or at last the file."""
    patients = table["PatientID"]
    counts["images without PatientID, whose study counts as a patient"] += int((patients == "").sum())
    for instead in ("StudyInstanceUID", "AccessionNumber", "image"):
        patients = patients.where(patients != "", table[instead])
    return patients


def _years(table: pd.DataFrame) -> pd.Series:
    """Whole years as text: from PatientAge, else from the dates; "" where neither is there."""
    stated = years_of(table["PatientAge"])
    birth = pd.to_datetime(table["PatientBirthDate"], format="%Y%m%d", errors="coerce")
    study = pd.to_datetime(table["StudyDate"], format="%Y%m%d", errors="coerce")
    years = stated.fillna((study - birth).dt.days / 365.25)
    return years.map(lambda age: "" if age != age else str(int(age // 1)))
