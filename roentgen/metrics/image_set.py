"""Sets of images to measure: a manifest or a folder, looked over before anything long begins."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.data.manifest import SIDE_SUFFIX, SUFFIXES, finding_columns, read_manifest
from roentgen.dicom import has_no_pixels, open_dicom
from roentgen.errors import UserError
from roentgen.files import regular
from roentgen.images import SUFFIXES as IMAGE_SUFFIXES
from roentgen.images import is_dicom, marks_of
from roentgen.prompts import FINDINGS, NO_FINDING, parse

SMALLEST = 32
"""Images with a shorter side below this many pixels are taken for thumbnails or damage."""
SAME_SIZE = 0.9
"""Where at least this share of synthetic images has one size, those of another are taken for strays."""
MANIFESTS = ("manifest.csv", "manifest.parquet", "dicom/index.csv")
"""Where a folder of images has its manifest; the first that is there counts."""
GRID = "grid.png"
LISTED = 20  # names of bad files in one error


@dataclass(frozen=True)
class ImageSet:
    """Images of one kind, one row of ``table`` an image.

    name: real, synthetic or train. table: ``image`` (absolute path), ``text`` ("" where unknown), ``patient_id``
    (the file's own path where unknown, so that each image is its own patient), ``split``, ``view``, ``sex``,
    ``age``, findings as 1.0, 0.0 or NaN, ``<Finding>_side``, and ``prompt_id`` and ``seed`` where known ("" else).
    bad: images that --skip-bad left out, "path: reason". source: the manifest or folder.
    """

    name: str
    table: pd.DataFrame
    bad: list[str]
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def paths(self) -> list[Path]:
        """Made once: whoever asks for one after the other would else make all of them each time."""
        return [Path(image) for image in self.table["image"]]

    @property
    def patients(self) -> list[str]:
        return [str(patient) for patient in self.table["patient_id"]]

    @property
    def findings(self) -> list[str]:
        """Finding columns, in the vocabulary's order."""
        return finding_columns(self.table)

    def labels(self, findings: Sequence[str]) -> NDArray[np.float64]:
        """Labels (N, F) of ``findings``: 1, 0, or NaN where unknown or without a column."""
        unknown = np.full(len(self), np.nan)
        columns = [self.table[name].to_numpy(np.float64) if name in self.table else unknown for name in findings]
        return np.column_stack(columns) if columns else np.empty((len(self), 0))

    def take(self, rows: Sequence[int] | NDArray[np.integer], *, bad: Sequence[str] = ()) -> ImageSet:
        """The set of these rows, in this order; ``bad`` is added to what was left out."""
        table = self.table.iloc[np.asarray(rows, dtype=np.int64)].reset_index(drop=True)
        return replace(self, table=table, bad=[*self.bad, *bad])


def open_set(
    path: Path,
    *,
    name: str,
    split: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    seed: int = 0,
    least: int = 2,
) -> ImageSet:
    """Images of a manifest (.csv, .parquet) or a folder (PNG, JPEG and DICOM files, recursively, sorted).

    A folder that holds a manifest (``MANIFESTS``) is read by it. The images of others get text, labels, seed and prompt
    id from roentgen's provenance where they have it: the labels are what ``prompts.parse`` finds in the prompt, 1 for
    what it asks for, 0 for the rest where it says "no finding", NaN else. Hidden files and DICOM without pixels do not
    count; DICOM without an ending does. Every file is looked at but not decoded: existence, size, header.

    Args:
        path: manifest or folder.
        name: real, synthetic or train; appears in messages as the flag ``--name``.
        split: keep this split of a manifest; None keeps all.
        skip_bad: leave out bad files, say so on stderr and list them in ``bad``; else they are an error.
        limit: at most so many images, drawn at random by ``seed`` and kept in their order.
        seed: of that draw.
        least: fewer usable images than this are an error.

    Raises:
        UserError: naming the flag, the bad files, or what is missing.
    """
    flag = f"--{name}"
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    if path.is_dir():
        path = manifest_in(path) or path
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        table = read_manifest(path, splits=None if split is None else [split], allow_empty_text=True, check_files=False)
        for column in ("prompt_id", "seed"):
            table[column] = table.get(column, "")
    elif path.is_dir():
        table = _folder_table(path, flag)
    else:
        found = "is no image folder and no .csv or .parquet manifest" if path.exists() else "does not exist"
        raise UserError(f"{flag} {path} {found}; give a folder of images or a manifest")
    if limit is not None and limit < len(table):
        chosen = np.sort(np.random.default_rng(seed).choice(len(table), limit, replace=False))
        table = table.iloc[chosen].reset_index(drop=True)
    whole = ImageSet(name, table, [], path)

    with ThreadPoolExecutor(4) as pool:  # headers only: a matter of waiting for the disk
        looks = list(pool.map(look, whole.paths))
    reasons = {row: reason for row, (_, reason) in enumerate(looks) if reason}
    reasons |= _strays([size for size, _ in looks]) if name == "synthetic" else {}
    checked = drop_bad(whole, reasons, skip_bad=skip_bad)
    if path.is_dir():
        checked = replace(checked, table=_with_provenance(checked.table))
    if len(checked) < least:
        raise UserError(
            f"{flag} {path} holds {len(checked)} usable image(s) and at least {least} are needed; add images"
        )
    return checked


def drop_bad(images: ImageSet, reasons: dict[int, str], *, skip_bad: bool) -> ImageSet:
    """``images`` without the rows of ``reasons`` (row -> why); UserError that lists them unless ``skip_bad``."""
    if not reasons:
        return images
    named = [f"{images.table['image'].iloc[row]}: {reasons[row]}" for row in sorted(reasons)]
    if not skip_bad:
        more = f"; and {len(named) - LISTED} more" if len(named) > LISTED else ""
        raise UserError(
            f"--{images.name}: {len(named)} of {len(images)} images are bad ({'; '.join(named[:LISTED])}{more}); "
            "mend them or pass --skip-bad to go on without them"
        )
    print(f"--{images.name}: {len(named)} of {len(images)} images left out by --skip-bad:", file=sys.stderr)
    for line in named:
        print(f"  {line}", file=sys.stderr)
    return images.take([row for row in range(len(images)) if row not in reasons], bad=named)


def look(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height from the header, and what is wrong ("" for nothing seen): no pixel is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        if regular(path).stat().st_size == 0:
            return (0, 0), "empty file"
        with path.open("rb") as file:
            head = file.read(132)
        if is_dicom(path, head):
            data = open_dicom(path, path, stop_before_pixels=True)
            size = int(data.Columns), int(data.Rows)
        else:
            with Image.open(path) as image:
                size = image.size
    except FileNotFoundError:
        return (0, 0), "no such file"
    except UnidentifiedImageError:
        return (0, 0), "not an image"
    except Exception as error:  # decoders raise everything from SyntaxError to struct.error on a bad file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return (0, 0), f"cannot be read as an image ({reason.rstrip('.')})"
    if min(size) < SMALLEST:
        return size, f"wrong size, {size[0]} x {size[1]} (the shorter side must have at least {SMALLEST} pixels)"
    return size, ""


def _strays(sizes: Sequence[tuple[int, int]]) -> dict[int, str]:
    """Rows whose size differs from the one that nearly all have: a model makes one size."""
    known = [size for size in sizes if min(size) >= SMALLEST]
    if not known:
        return {}
    usual, count = Counter(known).most_common(1)[0]
    if count < SAME_SIZE * len(known):
        return {}
    return {
        row: f"wrong size, {size[0]} x {size[1]} where the others have {usual[0]} x {usual[1]}"
        for row, size in enumerate(sizes)
        if min(size) >= SMALLEST and size != usual
    }


def _folder_table(folder: Path, flag: str) -> pd.DataFrame:
    """One row an image file below ``folder``, sorted by path, labels unknown."""
    names = sorted(file.as_posix() for file in _image_files(folder))
    if not names:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{flag} {folder} holds no images ({endings}); check the path")
    base = folder.resolve()
    table = pd.DataFrame({"image": [str(base / file) for file in names]}, dtype=str)
    table["patient_id"] = table["image"]
    for column in ("text", "split", "view", "sex", "source", "licence", "prompt_id", "seed"):
        table[column] = ""
    table["age"] = np.nan
    return table


def _image_files(folder: Path) -> Iterator[Path]:
    """Paths below ``folder`` of what is an image by its ending, or DICOM by its content; nothing hidden, no reports,
    and not the picture of all images that ``roentgen generate --grid`` puts beside them."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(place, name)
            kind = IMAGE_SUFFIXES.get(file.suffix.lower())
            if name.startswith(".") or (kind is None and not _is_dicom_inside(file)):
                continue
            if (kind in (None, "dicom") and has_no_pixels(file)) or (name == GRID and marks_of(file)):
                continue
            yield file.relative_to(folder)


def _is_dicom_inside(file: Path) -> bool:
    try:
        with regular(file).open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def manifest_in(folder: Path) -> Path | None:
    """The manifest of a folder that holds one, as exported and prepared sets do."""
    return next((folder / name for name in MANIFESTS if (folder / name).is_file()), None)


def _with_provenance(table: pd.DataFrame) -> pd.DataFrame:
    """Text and labels from roentgen's own marks in the files; rows of other files stay as they are."""
    rows = [_row_of(marks) if (marks := marks_of(Path(image))) else {} for image in table["image"]]
    if not any(rows):
        return table
    table = table.copy()
    known = pd.DataFrame(rows, index=table.index)
    for column in known:
        is_number = column in FINDINGS or column == "age"
        table[column] = known[column].astype("float64") if is_number else known[column].fillna("")
    return table


def _row_of(marks: dict[str, str]) -> dict[str, object]:
    text = marks.get("prompt", "")
    labels = parse(text)
    rest = 0.0 if NO_FINDING in labels.findings else np.nan
    row: dict[str, object] = {name: 1.0 if name in labels.findings else rest for name in FINDINGS}
    if labels.findings and NO_FINDING not in labels.findings:
        row[NO_FINDING] = 0.0
    row |= {f"{name}{SIDE_SUFFIX}": side for name, side in labels.sides.items()}
    row |= {"text": text, "seed": marks.get("seed", ""), "prompt_id": marks.get("prompt_id", "")}
    return row | {
        "view": labels.view or "",
        "sex": labels.sex or "",
        "age": np.nan if labels.age is None else labels.age,
    }
