"""The images of the augmentation-gain experiment: real ones and synthetic sets, looked over before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from roentgen.config import require
from roentgen.data.images import load_pixels
from roentgen.data.manifest import finding_columns, read_manifest
from roentgen.errors import UserError
from roentgen.experiments.augmentation.gain import NO_FINDING, enough_cases
from roentgen.files import require_writable, sha256
from roentgen.metrics.adherence.scored import MIN_CASES

Rows = NDArray[np.int64]
RARE_SHARE = 0.025
"""Findings positive in less than this share of the train images are rare, unless others are named."""


@dataclass(frozen=True, eq=False)
class Source:
    """A set of images as the runs see it; row i of everything is one image.

    labels float32 (N, F): 1, 0, NaN; patients, splits (N,) str; hash: of pixels at ``size``, labels, patients, splits.
    """

    name: str
    images: tuple[str, ...]
    labels: NDArray[np.float32]
    patients: NDArray[np.str_]
    splits: NDArray[np.str_]
    size: int
    cache: Path
    hash: str

    def rows(self, split: str) -> Rows:
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The images: real ones with their rows, synthetic sets by name, what is learned and which of it is rare."""

    table: pd.DataFrame
    real: Source
    sets: Mapping[str, Source]
    manifests: Mapping[str, Path]
    findings: tuple[str, ...]
    rare: tuple[str, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of the rare findings."""
        return tuple(self.findings.index(name) for name in self.rare)

    @property
    def test(self) -> pd.DataFrame:
        return self.table[self.table["split"] == "test"]


def load_source(name: str, table: pd.DataFrame, findings: Sequence[str], *, size: int, cache: Path) -> Source:
    """Images of a manifest's rows, decoded once into ``cache``. A finding without a column is unknown throughout."""
    images = tuple(table["image"])
    nothing = pd.Series(np.nan, index=table.index)
    labels = np.column_stack([table.get(f, nothing).to_numpy(np.float32, na_value=np.nan) for f in findings])
    patients, splits = (table[column].to_numpy(dtype=str) for column in ("patient_id", "split"))
    pixels = np.ascontiguousarray(open_pixels(images, size, cache))
    digest = sha256(pixels.data, labels.tobytes(), "\n".join([*findings, *patients, *splits]))
    return Source(name, images, labels, patients, splits, size, cache, digest[:16])


@lru_cache(maxsize=8)
def open_pixels(images: tuple[str, ...], size: int, cache: Path) -> NDArray[np.uint8]:
    """uint8 (N, size, size) of the files, memory-mapped from ``cache`` once they are there."""
    return load_pixels(images, size=size, cache=cache).pixels


def check_real(real: Source, flag: str) -> None:
    """UserError where a picture of val or test is in another split too; the manifest's reader looks at patients."""
    parts = {split: _prints(real, real.rows(split)) for split in ("train", "val", "test")}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        copies = parts[one] & parts[other]
        if copies:
            raise UserError(f"{flag}: {len(copies)} images of {other} are in {one} too; remove them from one")


def check_synthetic(real: Source, synthetic: Source, flag: str) -> None:
    """UserError where a synthetic set holds rows, patients or pictures of the real val or test split."""
    outside = synthetic.splits != "train"
    if outside.any():
        raise UserError(f"{flag}: {outside.sum()} rows are of split {synthetic.splits[outside][0]}; all must be train")
    check_patients(real, synthetic.patients, flag)
    copies = _prints(real, np.flatnonzero(real.splits != "train")) & _prints(synthetic, synthetic.rows("train"))
    if copies:
        raise UserError(f"{flag}: {len(copies)} of its images are images of --real's val or test split; remove them")


def check_patients(real: Source, patients: NDArray[np.str_], flag: str) -> None:
    """UserError where one of ``patients``, seen in training, is in the real val or test split."""
    shared = np.intersect1d(real.patients[real.splits != "train"], patients)
    if len(shared):
        raise UserError(
            f"{flag}: patient {shared[0]} and {len(shared) - 1} more are in --real's val or test split; use data "
            "without them"
        )


def _prints(source: Source, rows: Rows) -> set[str]:
    """Hashes of the pixels of some rows."""
    pixels = open_pixels(source.images, source.size, source.cache)
    return {sha256(np.ascontiguousarray(pixels[row]).data) for row in rows}


def open_inputs(
    real: Path,
    synthetic: Sequence[str],
    generator: Sequence[Path],
    *,
    size: int,
    work: Path,
    min_positive: int,
    rare: Sequence[str],
) -> Inputs:
    """The images, looked over: what is labelled, what is rare, and that nobody in val or test is trained on.

    Args:
        real: manifest with train, val and test.
        synthetic: sets as MANIFEST or NAME=MANIFEST.
        generator: manifests that the generator was trained on.
        size: side of the images in pixels.
        work: folder for decoded images.
        min_positive: positive train images that a finding must have.
        rare: rare findings; none: those in less than ``RARE_SHARE`` of the train images.

    Raises:
        UserError: no labels to learn or to test, or an image or patient of val or test where it must not be.
    """
    table = read_manifest(real, allow_empty_text=True)
    findings = chosen_findings(table, min_positive, f"--real {real}")
    scarce = rare_findings(table, findings, rare)
    manifests = named_manifests(synthetic)
    require_writable(work, "--work")
    cache = work / "cache"
    source = load_source("real", table, findings, size=size, cache=cache)
    sets = {name: load_set(name, path, findings, size, cache) for name, path in manifests.items()}
    check_real(source, f"--real {real}")
    for name, each in sets.items():
        check_synthetic(source, each, f"--synthetic {manifests[name]}")
    for path in generator:
        trained_on = read_manifest(path, splits=("train",), allow_empty_text=True, check_files=False)
        check_patients(source, trained_on["patient_id"].to_numpy(dtype=str), f"--generator {path}")
    return Inputs(table, source, sets, manifests, tuple(findings), tuple(scarce))


def chosen_findings(table: pd.DataFrame, least: int, flag: str) -> list[str]:
    """Findings to learn; UserError where there are no labels to learn or to test."""
    split = {name: table[table["split"] == name] for name in ("train", "val", "test")}
    for name, rows in split.items():
        require(len(rows) > 0, f"{flag} has no {name} images; fill its split column")
    found = [name for name in finding_columns(table) if (split["train"][name] == 1).sum() >= least]
    require(
        bool(found), f"{flag}: no finding has {least} positive train images; add labels or "
        "lower --min-positive",
    )  # fmt: skip
    scored = enough_cases(split["test"][found].to_numpy(np.float64), found)
    require(bool(scored), f"{flag}: no finding has {MIN_CASES} positive and negative test images; add some")
    return found


def rare_findings(table: pd.DataFrame, findings: Sequence[str], asked: Sequence[str]) -> list[str]:
    unknown = [name for name in asked if name not in findings]
    require(not unknown, f"--rare {', '.join(unknown)}: not among the findings that are learned: {', '.join(findings)}")
    share = table.loc[table["split"] == "train", list(findings)].mean()
    return list(asked) or [name for name in findings if share[name] < RARE_SHARE and name != NO_FINDING]


def named_manifests(given: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH``, or a path that names itself: by its folder where the file is a mere manifest.csv."""
    found: dict[str, Path] = {}
    for word in given:
        name, equals, rest = word.partition("=")
        path = Path(rest if equals else word)
        if not equals:
            name = path.absolute().parent.name if path.stem == "manifest" else path.stem
        require(bool(name) and "@" not in name and "/" not in name, f"--synthetic {word}: the name may hold no / or @")
        require(name not in found, f"--synthetic: two sets are called {name}; tell them apart with NAME=MANIFEST")
        found[name] = path
    return found


def load_set(name: str, path: Path, findings: Sequence[str], size: int, cache: Path) -> Source:
    source = load_source(name, read_manifest(path, allow_empty_text=True), findings, size=size, cache=cache)
    known = np.isfinite(source.labels).any()
    require(bool(known), f"--synthetic {path} has no label of {', '.join(findings)}; export it with labels")
    return source


def origin(path: Path) -> dict[str, Any]:
    """How a synthetic set was made, where its manifest tells it as `roentgen export` does."""
    table = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path)
    told = [name for name in ("model", "model_hash", "sampler", "steps", "guidance") if name in table]
    return {name: ", ".join(sorted({str(value) for value in table[name]})) for name in told}
