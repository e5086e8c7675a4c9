"""Small collections in the layout of the real ones, made by the tests: MIMIC-CXR-JPG, Open-i, XREPORT.

Names of files and columns, gzip, nesting and the texts' irregularities are those of the downloads; pixels are noise.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from roentgen.data.sources.openi import REPORTS_ARCHIVE, carried_file

CHEXPERT_COLUMNS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""
WITHOUT_IMPRESSION = """                                 FINAL REPORT
 CHEST RADIOGRAPH PERFORMED ON ___

 COMPARISON:  Prior exam from ___.

 FINDINGS:  {findings}
"""


def film(seed: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """A noisy picture that passes for a frontal view: two dark lungs and a bright middle; uint8 (height, width)."""
    height, width = size
    x, y = np.linspace(-1, 1, width)[None], np.linspace(-1, 1, height)[:, None]
    lungs = np.exp(-((np.abs(x) - 0.5) ** 2) / 0.05 - y**2 / 0.4)
    noise = np.random.default_rng(seed).normal(0, 6, (height, width))
    return np.clip(190 - 130 * lungs + noise, 0, 255).astype(np.uint8)


def write_film(path: Path, seed: int = 0) -> None:
    """A film as PNG or JPEG, by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film(seed)).save(path)


def write_csv_gz(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """A gzipped CSV with quotes where a cell needs them."""
    lines = [header, *rows]
    text = "".join(",".join(f'"{cell}"' if "," in str(cell) else str(cell) for cell in row) + "\n" for row in lines)
    path.write_bytes(gzip.compress(text.encode()))


# subject, study, [(view, code)], impression or None for a report without one, chexpert labels by column
MIMIC_STUDIES: list[tuple[int, int, list[tuple[str, str]], str | None, dict[str, str]]] = [
    (
        10000032, 50414267, [("PA", "postero-anterior"), ("LATERAL", "lateral")],
        "1. No acute cardiopulmonary process.\n 2. Compared to ___, unchanged.", {"No Finding": "1.0"},
    ),
    (10000032, 53189527, [("AP", "antero-posterior")], "Small left pleural effusion.", {"Pleural Effusion": "1.0"}),
    (10000764, 57375967, [("", "postero-anterior"), ("", ""), ("LL", "left lateral")], None, {"Pneumonia": "-1.0"}),
    (11000001, 50000001, [("AP", "antero-posterior")], "Interval placement of a line.", {"Fracture": "1.0"}),
    (12000002, 50000002, [("PA", "postero-anterior")], "Cardiomegaly.", {"Cardiomegaly": "1.0", "Edema": "0.0"}),
    (13000003, 50000003, [("AP AXIAL", "antero-posterior"), ("AP", "")], "Edema.", {"Edema": "1.0"}),
    (18999999, 50000004, [("PA", "postero-anterior")], "Right pneumothorax.", {"Pneumothorax": "1.0"}),
    (19000005, 50000005, [("PA", "postero-anterior")], "Clear lungs.", {"No Finding": "1.0"}),
    (19999987, 58621812, [("AP", "antero-posterior")], "Low lung volumes.", {"Atelectasis": "1.0"}),
]  # fmt: skip
MIMIC_OFFICIAL = {10000764: "validate", 19000005: "test", 12000002: "test"}


def mimic_dicom_id(study: int, number: int) -> str:
    """The file name of an image: five groups of eight hexadecimal digits, as in MIMIC-CXR."""
    digits = hashlib.sha256(f"{study}:{number}".encode()).hexdigest()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))


def mimic_tree(folder: Path, *, zipped: bool = True, version: str = "2.0.0") -> Path:
    """``folder/jpg`` with tables and JPEGs; the reports as ``folder/mimic-cxr-reports.zip`` or ``folder/reports``.

    12 images, 8 of them frontal, of 9 studies and 8 patients; ``folder/patients.csv.gz`` is MIMIC-IV's.
    """
    root = folder / "jpg"
    metadata, splits, labels, reports = [], [], [], {}
    for subject, study, views, impression, found in MIMIC_STUDIES:
        for number, (view, code) in enumerate(views):
            dicom = mimic_dicom_id(study, number)
            write_film(root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg", 10 * study + number)
            metadata.append(
                (dicom, subject, study, "CHEST (PA AND LAT)", view, 3056, 2544, 21800506, 213014.531,
                 "CHEST (PA AND LAT)", code, "Erect")
            )  # fmt: skip
            splits.append((dicom, study, subject, MIMIC_OFFICIAL.get(subject, "train")))
        labels.append((subject, study, *(found.get(column, "") for column in CHEXPERT_COLUMNS)))
        text = REPORT if impression is not None else WITHOUT_IMPRESSION
        text = text.format(findings=f"The lungs of study {study}.\n There is no ___.", impression=impression)
        reports[f"files/p{str(subject)[:2]}/p{subject}/s{study}.txt"] = text
    write_csv_gz(root / f"mimic-cxr-{version}-metadata.csv.gz", METADATA_COLUMNS, metadata)
    write_csv_gz(root / f"mimic-cxr-{version}-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), splits)
    for name in ("chexpert", "negbio"):
        columns = ("subject_id", "study_id", *CHEXPERT_COLUMNS)
        write_csv_gz(root / f"mimic-cxr-{version}-{name}.csv.gz", columns, labels)
    if zipped:
        with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in reports.items():
                archive.writestr(name, text)
    else:
        for name, text in reports.items():
            path = folder / "reports" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    subjects = sorted({study[0] for study in MIMIC_STUDIES} - {13000003})
    write_csv_gz(
        folder / "patients.csv.gz",
        ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
        [(subject, "F" if subject % 2 else "M", 52, 2178, "2014 - 2016", "") for subject in subjects],
    )
    return root


@cache
def real_reports() -> dict[int, bytes]:
    """The first hundred reports of Open-i by number, from the archive that torchxrayvision carries."""
    carried = carried_file(REPORTS_ARCHIVE)
    assert carried is not None, "torchxrayvision is a dependency of roentgen"
    found = {}
    with tarfile.open(carried) as archive:
        for member in archive:  # in its order, as going back in a gzip file reads it again from the start
            number = Path(member.name).stem
            content = archive.extractfile(member)
            if content is not None and number.isdigit() and int(number) <= 100:
                found[int(number)] = content.read()
    return dict(sorted(found.items()))


def openi_tree(folder: Path, *, count: int = 12, ending: str = ".png", reports: str = "archive") -> Path:
    """``folder`` with the first ``count`` real reports of Open-i, and a picture for each image that they name.

    ``ending`` ".png" names the images as Open-i does, ".dcm.png" as Kaggle's copy does; the reports are the archive
    ``NLMCXR_reports.tgz`` or, with "folder", ``ecgen-radiology/*.xml``.
    """
    contents = {number: content for number, content in real_reports().items() if number <= count}
    folder.mkdir(parents=True, exist_ok=True)
    if reports == "archive":
        with tarfile.open(folder / REPORTS_ARCHIVE, "w:gz") as out:
            for number, content in contents.items():
                member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))
    else:
        (folder / "ecgen-radiology").mkdir()
        for number, content in contents.items():
            (folder / "ecgen-radiology" / f"{number}.xml").write_bytes(content)
    for number, content in contents.items():
        for image in openi_images(content.decode()):
            name = image if ending == ".png" else f"{number}_IM-{image.partition('_IM-')[2]}"
            write_film(folder / "images" / f"{name}{ending}", number)
    return folder


def openi_images(xml: str) -> list[str]:
    """Ids of the images that a report names, in order."""
    return [part.partition('"')[0] for part in xml.split('<parentImage id="')[1:]]


def xreport_tree(folder: Path, *, separator: str = ";", column: str = "id", count: int = 8) -> Path:
    """``folder/XREPORT_dataset.csv`` and ``folder/images`` with one JPEG for each id."""
    lines = [f"{column}{separator}text"]
    for index in range(count):
        name = f"{index:08x}-2a3c"
        write_film(folder / "images" / f"{name}.jpg", index)
        lines.append(f'{name}{separator}"Film {index}: the lungs are clear, no effusion. Unchanged since ___."')
    (folder / "XREPORT_dataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
