"""What the adapters of public collections share: finding their files, splitting patients, their columns.

Every message names the file and the mend, because a collection of 100,000 images is rarely downloaded whole at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pandas as pd

from roentgen.data.manifest import CORE, MAX_AGE, SIDE_SUFFIX, SPLITS, simple_name
from roentgen.errors import UserError
from roentgen.files import sha256
from roentgen.prompts.vocabulary import FINDINGS

Missing = Annotated[Literal["error", "drop"], "stop, or drop the row, when an image file is not there"]
SIDED = tuple(name for name, finding in FINDINGS.items() if finding.can_have_side)
SPLIT_WORDS = {"validate": "val", "valid": "val", "validation": "val", "training": "train", "testing": "test"}
AGE_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}  # to the year, of DICOM's ages
THREADS, CHUNK = 16, 256  # threads that wait for a disk, and items that one of them takes in one go
S = TypeVar("S")
T = TypeVar("T")


def check_root(root: str | Path, advice: str) -> Path:
    """``root`` as an absolute path; UserError with ``advice`` where it is no folder."""
    if not Path(root).is_dir():
        raise UserError(f"--root {root} is not a folder; {advice}")
    return Path(root).absolute()


def find_table(root: Path, names: Sequence[str], *, below: str = "") -> Path:
    """The one file of these names (or the same with ``.gz``) in ``root``, or in a folder of the pattern ``below``.

    An earlier name wins over a later one, and ``root`` over the folders below it.

    Raises:
        UserError: when ``root`` is no folder, or it holds none or, in several folders below, more than one.
    """
    check_root(root, "name the folder of the collection")
    for folders in ([root], sorted(root.glob(below)) if below else []):
        for name in names:
            found = [folder / end for folder in folders for end in (name, f"{name}.gz") if (folder / end).is_file()]
            if len(found) > 1 and found[0].parent != found[1].parent:
                raise UserError(f"--root {root} has two collections, {found[0].parent} and {found[1].parent}; name one")
            if found:
                return found[0]
    raise UserError(f"--root {root} has no {names[0]}; name the folder that holds it, or download it there")


def find_images(
    root: Path, suffixes: Sequence[str], keys: Callable[[str], Iterable[str]] = lambda name: (name,)
) -> dict[str, list[str]]:
    """Absolute paths of every image below ``root`` by each of the ``keys`` of its file name, links followed."""
    found: dict[str, list[str]] = {}
    for folder, names in walk(root):
        for name in names:
            if name.lower().endswith(tuple(suffixes)):
                path = os.path.join(folder, name)  # noqa: PTH118 - a Path for each of 200,000 files takes seconds
                for key in keys(name):
                    found.setdefault(key, []).append(path)
    return found


def only_image(found: Mapping[str, list[str]], key: str, otherwise: str, *, flag: str = "--root") -> str:
    """The image of ``key`` in what ``find_images`` gave, ``otherwise`` where it has none.

    Raises:
        UserError: when there are several, as originals and a resized copy would be.
    """
    paths = found.get(key) or [otherwise]
    if len(paths) > 1:
        raise UserError(f"image {key!r} is there twice, as {paths[0]} and {paths[1]}; name one folder by {flag}")
    return paths[0]


def walk(root: Path) -> Iterable[tuple[str, list[str]]]:
    """(folder, its file names) below ``root``, sorted; links to folders are followed, each folder once.

    Pipes, devices and links that lead nowhere are no files.
    """
    seen: set[str] = set()
    for folder, folders, _ in os.walk(Path(root).absolute(), followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        with os.scandir(folder) as entries:  # they know their kind, unless they are links
            yield folder, sorted(entry.name for entry in entries if _is_file(entry))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder that may not be looked into
        return False


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """``function`` of each item, in order, in threads, as network disks answer slowly."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [answer for chunk in answers for answer in chunk]


def are_files(paths: Sequence[str]) -> list[bool]:
    """Whether each path is a file."""
    return in_threads(os.path.isfile, paths)


def keep_present(
    table: pd.DataFrame,
    counts: Counter[str],
    *,
    missing: Missing,
    root: Path,
    present: Sequence[bool] | None = None,
) -> pd.DataFrame:
    """The rows whose image is there; absent ones stop (``missing`` = "error") or are dropped and counted.

    ``present``: whether each is, where that is known; None asks the disk.

    Raises:
        UserError: when an image is missing and may not be, or all are.
    """
    known = are_files(table["image"].tolist()) if present is None else present
    kept = pd.Series(known, index=table.index, dtype=bool)
    absent = int((~kept).sum())
    if absent and (missing == "error" or absent == len(table)):
        first = table["image"][~kept].iloc[0]
        mend = "mend --root" if absent == len(table) else "download them or add --missing drop"
        raise UserError(f"{absent} of {len(table)} images are not below {root}, the first is {first}; {mend}")
    return drop_rows(table, ~kept, counts, "images missing on disk")


def check_shares(val_share: float, test_share: float) -> None:
    """Raise UserError when the shares leave no patients for training."""
    if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
        raise UserError("--val-share and --test-share must be at least 0 and leave some patients for training")


def hashed_split(patient: str, val_share: float, test_share: float, *, seed: int) -> str:
    """train, val or test, by a hash of (seed, patient): independent of order and of other patients.

    Raises:
        UserError: when the shares leave no patients for training.
    """
    check_shares(val_share, test_share)
    place = int(sha256(f"{seed}:{patient}")[:16], 16) / 2**64
    train, val, test = SPLITS
    if place < test_share:
        return test
    return val if place < test_share + val_share else train


def hashed_splits(patients: pd.Series, val_share: float, test_share: float, *, seed: int) -> pd.Series:
    """``hashed_split`` of every patient, each looked at once."""
    split = {patient: hashed_split(patient, val_share, test_share, seed=seed) for patient in patients.unique()}
    return patients.map(split)


def years_of(cells: pd.Series) -> pd.Series:
    """Years as float64 from "58", 58.0 and DICOM's "058Y", "005M", "010W" and "026D"; NaN for anything else.

    Months, weeks and days give years to two decimals.
    """
    parts = cells.str.strip().str.upper().str.extract(r"^(-?\d+(?:\.\d*)?)([YMWD]?)$")
    number = pd.to_numeric(parts[0], errors="coerce").astype("float64")
    whole = parts[1].isin(["", "Y"])
    return number.where(whole, (number / parts[1].map(AGE_UNITS)).round(2))


def ages(cells: pd.Series, counts: Counter[str]) -> pd.Series:
    """``years`` of text cells; above ``MAX_AGE`` or not an age is blank, and counted."""
    years = years_of(cells)
    good = years.between(0, MAX_AGE)
    bad = int(((cells != "") & ~good).sum())
    if bad:
        counts["impossible ages left blank"] += bad
    return years.where(good)


def manifest_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a manifest in its order; what the table lacks is blank."""
    blank, unknown = pd.Series("", index=table.index), pd.Series(float("nan"), index=table.index)
    columns = {name: table.get(name, unknown if name == "age" else blank) for name in CORE}
    for name in FINDINGS:
        columns[name] = table.get(name, unknown).astype("float64")
        if name in SIDED:
            columns[name + SIDE_SUFFIX] = table.get(name + SIDE_SUFFIX, blank).astype(str)
    return pd.DataFrame(columns)


def drop_rows(table: pd.DataFrame, bad: pd.Series, counts: Counter[str], why: str) -> pd.DataFrame:
    """The table without the ``bad`` rows, counted under ``why``; rows are numbered anew."""
    if bad.any():
        counts[why] += int(bad.sum())
    return table[~bad].reset_index(drop=True)


def check_cells(cells: Iterable[str], allowed: Collection[str], what: str, *, path: object) -> None:
    """UserError that names the file ``path`` where one of the ``cells``, called ``what``, is none of ``allowed``."""
    unknown = sorted(set(cells) - set(allowed))
    if unknown:
        words = ", ".join(filter(None, allowed))
        raise UserError(f"{path} has the {what} {unknown[0]!r}, which is none of {words}; download it again")


def one_side(said: Collection[str]) -> str:
    """The side of a finding of which these sides were said; "" where one of them is not known, or none was said."""
    if not said or "" in said:
        return ""
    return next(iter(said)) if len(said) == 1 else "bilateral"


def finding_map(names: list[str], given: Mapping[str, str] | None, *, csv: Path) -> dict[str, str]:
    """The user's columns that hold findings -> roentgen's finding, by the given map or by their names."""
    simple = {simple_name(finding): finding for finding in FINDINGS}
    found = {name: simple[simple_name(name)] for name in names if simple_name(name) in simple}
    for name, finding in (given or {}).items():
        if name not in names:
            raise UserError(f"--finding-columns: {csv} has no column {name!r}; it has {', '.join(names)}")
        if finding not in FINDINGS:
            raise UserError(f"--finding-columns: unknown finding {finding!r}; use {', '.join(FINDINGS)}")
        found[name] = finding
    targets = list(found.values())
    twice = sorted({finding for finding in targets if targets.count(finding) > 1})
    if twice:
        raise UserError(f"--finding-columns: two columns of {csv} give {twice[0]!r}; rename or drop one")
    return found
