"""Adapter for Open-i (the Indiana University chest X-rays): XML reports, and a folder of PNG or DICOM images.

How its parts become manifest cells:

- **Reports.** One XML file a report (``ecgen-radiology/1.xml``, or the archive ``NLMCXR_reports.tgz`` as downloaded).
  The sections are labelled in the XML; de-identification blanks (``XXXX``) are handled by ``sections.clean_text``.
- **Images** are found by the id that the report gives them, in any folder below the root, under each of the names in
  use: ``CXR1_1_IM-0001-3001.png`` (Open-i), ``1_IM-0001-3001.dcm`` (its DICOM archive), ``1_IM-0001-3001.dcm.png``
  (Kaggle's copy).
- **Views** are not in the reports. ``--views`` names Kaggle's ``indiana_projections.csv``. Without it the tables that
  the torchxrayvision package carries are read: a frontal/lateral decision by t-SNE for the first image of each report,
  and the DICOM headers, whose ViewPosition is blank or wrong in many. Of a report with two images whose first is a
  lateral, the second is the frontal one unless its header says lateral; other images that are not decided are left out.
  The ``view`` column is PA or AP where the header says so, else blank.
- **Labels** are the MeSH terms that indexers gave the whole report: a finding that is not listed is 0. An opacity,
  nodule or mass that is not placed in a lung is unknown. The side is taken when every term of a finding has one.
- **Patients.** Open-i says nothing of them, so each report counts as one; splits are random by report.
- **Sex and age** are not in the reports and stay blank.
"""

from __future__ import annotations

import importlib.util
import re
import tarfile
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from roentgen.config import ShareBelowOne
from roentgen.data.labels import MESH
from roentgen.data.manifest import SIDE_SUFFIX
from roentgen.data.sections import clean_text
from roentgen.data.sources.common import (
    Missing,
    check_cells,
    check_root,
    find_images,
    hashed_split,
    keep_present,
    manifest_columns,
    one_side,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.files import explained, read_bytes
from roentgen.prompts.vocabulary import FINDINGS

SOURCE = "Open-i"
REPORTS_ARCHIVE = "NLMCXR_reports.tgz"
SECTIONS = ("findings", "impression", "indication", "comparison")
CARRIED_HEADERS, CARRIED_VIEWS = "nlmcxr_dicom_metadata.csv.gz", "nlmcxr_tsne_pa.csv.gz"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
FRONTAL, LATERAL = "frontal", "lateral"
PLACED_IN_LUNG = {"Opacity", "Nodule", "Mass"}  # heads that are also used of ribs, breast and mediastinum
SIDE_WORDS = ("left", "right", "bilateral")
NO_LABELS = {"No Indexing", "Technical Quality of Image Unsatisfactory"}
SEARCHED = tuple(name for name in FINDINGS if any(name in findings for findings in MESH.values()))
LICENCE_URL = re.compile(r"creativecommons\.org/licenses/([a-z-]+)/([\d.]+)")


def openi_reports(path: str | Path) -> pd.DataFrame:
    """Every report of Open-i, in the order of its number.

    Args:
        path: the archive ``NLMCXR_reports.tgz``, or a folder with the XML files at any depth.

    Returns:
        One row a report: ``uid`` ("1", "2", ...), ``findings``, ``impression``, ``indication`` and ``comparison`` as
        written ("" where blank), ``mesh`` (list of terms such as "Opacity/lung/base/left"), ``images`` (list of image
        ids), ``labels`` (dict of finding -> 1.0 or 0.0, without those unknown), ``sides`` (dict of finding -> left,
        right or bilateral) and ``licence``.

    Raises:
        UserError: when there is no report, the archive is broken, or a file is not XML.
    """
    rows = []
    for name, content in _xml_files(Path(path)):
        with explained(f"report {name} is not valid XML", "download the reports again", ET.ParseError):
            root = ET.fromstring(content)
        rows.append(_report(root, name))
    if not rows:
        raise UserError(f"{path} has no report (.xml); name {REPORTS_ARCHIVE} or the folder made from it")
    table = pd.DataFrame(rows)
    twice = table["uid"][table["uid"].duplicated()]
    if len(twice):
        raise UserError(f"{path} has two reports CXR{twice.iloc[0]}; keep one copy of each")
    return table.sort_values("uid", key=lambda uids: uids.astype(int), ignore_index=True)


def _xml_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.xml")):
            yield str(file), read_bytes(file, advice=f"unpack {REPORTS_ARCHIVE} again")
        return
    if not path.is_file():
        raise UserError(f"{path} does not exist; name {REPORTS_ARCHIVE} or the folder made from it")
    with (
        explained(
            f"{path} is broken or no tar archive",
            f"download {REPORTS_ARCHIVE} again",
            (tarfile.TarError, EOFError, OSError, zlib.error),
        ),
        tarfile.open(path) as archive,
    ):
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.name.endswith(".xml") else None
            if content is not None:
                yield f"{path}:{member.name}", content.read()


def _report(root: ET.Element, name: str) -> dict[str, object]:
    number = root.find("uId")
    uid = "" if number is None else number.get("id", "").removeprefix("CXR")
    if not uid.isdigit():
        raise UserError(f"report {name} has no uId such as CXR1; it is no report of Open-i")
    texts = dict.fromkeys(SECTIONS, "")
    for part in root.iter("AbstractText"):
        section = part.get("Label", "").lower()
        if section in texts:
            texts[section] = " ".join(filter(None, [texts[section], (part.text or "").strip()]))
    mesh = [" ".join(term.text.split()) for term in root.findall("MeSH/major") if term.text and term.text.strip()]
    labels, sides = mesh_labels(mesh)
    matched = LICENCE_URL.search(root.findtext("licenseURL", ""))
    return {
        "uid": uid,
        **texts,
        "mesh": mesh,
        "images": [image.get("id", "") for image in root.findall("parentImage")],
        "labels": labels,
        "sides": sides,
        "licence": f"CC {matched[1].upper()} {matched[2]}" if matched else "see Open-i",
    }


def mesh_labels(mesh: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Findings (1.0 present, 0.0 absent, unknown ones left out) and sides from a report's MeSH terms."""
    present: set[str] = set()
    unknown: set[str] = set()
    said: dict[str, set[str]] = {}
    heads = {term.split("/")[0] for term in mesh}
    if heads <= NO_LABELS:
        return {}, {}
    for term in mesh:
        head, *qualifiers = [part.strip() for part in term.split("/")]
        findings = MESH.get(head, ())
        if head == "Thickening" and "pleura" not in qualifiers:
            continue
        if head in PLACED_IN_LUNG and not {"lung", "retrocardiac"} & set(qualifiers):
            unknown.update(findings)
            continue
        present.update(findings)
        sides = {word for word in SIDE_WORDS if word in qualifiers} or {""}
        for finding in findings:
            said.setdefault(finding, set()).update(sides)
    labels = {name: float(name in present) for name in FINDINGS if name in present or name in {*SEARCHED} - unknown}
    sided = {name: one_side(words) for name, words in said.items() if FINDINGS[name].can_have_side}
    return labels, {name: side for name, side in sided.items() if side}


def read_openi(
    root: str | Path,
    *,
    reports: str | Path | None = None,
    views: str | Path | None = None,
    section: Sequence[str] = ("impression",),
    missing: Missing = "error",
    val_share: ShareBelowOne = 0.1,
    test_share: ShareBelowOne = 0.1,
    seed: int = 0,
) -> tuple[pd.DataFrame, Counter[str]]:
    """Read Open-i as a manifest table of its frontal images.

    Args:
        root: folder of the images; also of the reports unless ``reports`` is given.
        reports: the archive or folder of the reports; None: found below ``root``, else torchxrayvision's copy.
        views: Kaggle's ``indiana_projections.csv`` (uid, filename, projection); None: torchxrayvision's tables.
        section: the first of these sections that is not blank is the text.
        val_share, test_share, seed: of the random split by report.

    Returns:
        The table, ``text`` "" where the report lacks the sections, and counts of what was left out.

    Raises:
        UserError: naming the flag or file that is wrong.
    """
    root = check_root(root, "name the folder of Open-i's images")
    unknown = [name for name in section if name not in SECTIONS]
    if unknown:
        raise UserError(f"--section {unknown[0]!r} does not exist in Open-i; choose from {', '.join(SECTIONS)}")
    table = openi_reports(_reports_path(root, reports))
    left_out: Counter[str] = Counter()
    left_out["reports without an image"] = int((table["images"].str.len() == 0).sum())
    projections = _projections(Path(views)) if views is not None else _carried_projections(table)
    files = find_images(root, IMAGE_SUFFIXES, lambda name: (image_key(name),))
    if not files:
        raise UserError(f"--root {root} has no image (.png, .jpg or .dcm) below it; name the folder of the images")
    rows = []
    for report in table.to_dict("records"):
        text = next((text for name in section if (text := clean_text(report[name]))), "")
        split = hashed_split(report["uid"], val_share, test_share, seed=seed)
        for image in report["images"]:
            projection, view = projections.get(image_key(image), ("", ""))
            if projection != FRONTAL:
                left_out["lateral images" if projection else "images of unknown view"] += 1
                continue
            row = {
                "image": files.get(image_key(image), [str(root / f"{image}.png")])[0],
                "text": text,
                "patient_id": f"CXR{report['uid']}",
                "split": split,
                "view": view,
                "source": SOURCE,
                "licence": report["licence"],
            }
            row |= {name: report["labels"].get(name, np.nan) for name in SEARCHED}
            row |= {
                name + SIDE_SUFFIX: report["sides"].get(name, "") for name in SEARCHED if FINDINGS[name].can_have_side
            }
            rows.append(row)
    if not rows:
        raise UserError("no image of Open-i is known to be frontal; check --views and --reports")
    frame = pd.DataFrame(rows)
    frame = keep_present(frame, left_out, missing=missing, root=root)
    return manifest_columns(frame), left_out


def image_key(name: str) -> str:
    """The part of an image's id or file name that all copies of Open-i share.

    ``CXR1_1_IM-0001-3001``, ``1_IM-0001-3001.dcm`` and ``1_IM-0001-3001.dcm.png`` all give ``1_IM-0001-3001``.
    """
    while Path(name).suffix.lower() in IMAGE_SUFFIXES:
        name = Path(name).stem
    return re.sub(r"^(\d+)_\1_", r"\1_", name.removeprefix("CXR"))


def _reports_path(root: Path, reports: str | Path | None) -> Path:
    if reports is not None:
        return Path(reports)
    candidates = [root / REPORTS_ARCHIVE, root / "ecgen-radiology", root / "reports"]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    carried = carried_file(REPORTS_ARCHIVE)
    if carried is None:
        raise UserError(
            f"--reports is missing and {root} has no {REPORTS_ARCHIVE} or ecgen-radiology/; name the reports, "
            f"or install torchxrayvision, which carries them"
        )
    return carried


def carried_file(name: str) -> Path | None:
    """A data file that the torchxrayvision package carries, without importing it; None if there is none."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / name
    return path if path.is_file() else None


def _projections(path: Path) -> dict[str, tuple[str, str]]:
    table = read_table(path, required=("filename", "projection"))
    check_cells(table["projection"].str.lower(), (FRONTAL, LATERAL), "projection", path=f"--views {path}")
    keys = map(image_key, table["filename"])
    return {key: (value.lower(), "") for key, value in zip(keys, table["projection"], strict=True)}


def _carried_projections(reports: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Image key -> (frontal, lateral or "" for not known; PA, AP or ""), from torchxrayvision's tables."""
    headers, first_views = carried_file(CARRIED_HEADERS), carried_file(CARRIED_VIEWS)
    if headers is None or first_views is None:
        raise UserError(
            "--views is missing; Open-i's reports do not say which image is frontal, so name indiana_projections.csv "
            "(columns uid, filename, projection) or install torchxrayvision, which carries such tables"
        )
    header = read_table(headers, required=("imageid", "View Position"))
    positions = dict(zip(header["imageid"], header["View Position"], strict=True))
    decided = read_table(first_views, required=("imageid", "tsne-view"))
    firsts = dict(zip(decided["imageid"], decided["tsne-view"], strict=True))
    found: dict[str, tuple[str, str]] = {}
    for images in reports["images"]:
        for place, image in enumerate(images):
            position = positions.get(image, "")
            view = position if position in ("PA", "AP") else ""
            if image in firsts:
                projection = FRONTAL if firsts[image] == "PA" else LATERAL
            elif position not in ("", "PA", "AP"):
                projection = LATERAL
            elif place == 1 and len(images) == 2:
                projection = FRONTAL if firsts.get(images[0]) == "L" else LATERAL if images[0] in firsts else ""
            else:
                projection = ""
            found[image_key(image)] = (projection, view if projection == FRONTAL else "")
    return found
