"""Steps that every adapter shares between its table and the written manifest."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from roentgen.data.images import map_images
from roentgen.data.manifest import (
    SEVERITY_SUFFIX,
    SIDE_SUFFIX,
    SIDES,
    as_cells,
    empty_texts,
    finding_columns,
    refuse,
    row_problems,
    side_columns,
    typed,
    write_manifest,
)
from roentgen.data.tables import read_table
from roentgen.errors import UserError
from roentgen.files import open_atomic, regular, sha256
from roentgen.prompts import FINDINGS, compose, labels_from_row

MIN_REPORT_WORDS = 5  # shorter "reports" are fragments such as "with co-infection"
COMPOSE_BLOCK = 10_000  # rows


def first_patients(patients: Iterable[str], limit: int, *, seed: int) -> set[str]:
    """The first ``limit`` patients by a hash of (seed, patient), so that a larger limit keeps the smaller's."""
    # Not the hash of the random split: the first patients by that one would all be in one split.
    places = {sha256(f"limit:{seed}:{patient}"): patient for patient in set(patients)}
    return {places[place] for place in sorted(places)[:limit]}


def typed_labels(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Validate a table of text cells from ``path`` and give its labels the manifest's types."""
    refuse(row_problems(table), lambda row: f"{path}, image {Path(table.at[row - 1, 'image']).name}")
    return typed(table, Path())


def fill_texts(
    table: pd.DataFrame,
    blank_text: Literal["error", "compose", "drop", "few"],
    *,
    seed: int = 0,
    flag: str = "--text-column",
    drop_unlabelled: bool = False,
) -> pd.DataFrame:
    """Rows of blank text: "error", "compose" one from the labels, or "drop" them, saying how many.

    "few" drops them where they are at most half, as some reports always lack the wanted section; ``flag`` is what
    chose the texts. An image with neither text nor findings is an error with "compose", or with ``drop_unlabelled``
    left out: a text composed from nothing would call it normal.

    Raises:
        UserError: for a blank text with "error", more than half blank ones with "few", nothing but blank ones with
            "drop", and nothing to compose from with "compose".
    """
    blank = table["text"] == ""
    count, total = int(blank.sum()), len(table)
    if count == 0:
        return table
    image = Path(table["image"][blank].iloc[0]).name
    if blank_text == "error":
        raise UserError(
            f"{flag}: {count} of {total} text(s) are blank, the first is of image {image}; "
            f"fill them or add --blank-text compose or --blank-text drop"
        )
    if count == total and blank_text != "compose":
        raise UserError(f"{flag}: all {total} texts are blank; choose texts that are there")
    if blank_text == "few" and 2 * count > total:
        raise UserError(
            f"{flag}: most texts are blank ({count} of {total}, the first is of image {image}); choose others, "
            f"or add --blank-text drop or --blank-text compose if that is right"
        )
    if blank_text in ("drop", "few"):
        print(f"{count} of {total} image(s) left out: no text in {flag}", file=sys.stderr)
        return table[~blank].reset_index(drop=True)
    unlabelled = blank & table[finding_columns(table)].isna().all(axis=1)
    lost = int(unlabelled.sum())
    if lost and (not drop_unlabelled or lost == total):
        image = Path(table["image"][unlabelled].iloc[0]).name
        raise UserError(
            f"{flag}: {lost} image(s) have neither text nor findings to compose one from, "
            f"the first is {image}; choose other texts or add --blank-text drop"
        )
    if lost:
        print(f"{lost} of {total} image(s) left out: neither text nor findings", file=sys.stderr)
    print(f"{count - lost} text(s) composed from the findings", file=sys.stderr)
    return compose_texts(table[~unlabelled].reset_index(drop=True), seed=seed, min_words=1)


def compose_texts(
    table: pd.DataFrame, *, seed: int = 0, min_words: int = MIN_REPORT_WORDS, max_words: int | None = None
) -> pd.DataFrame:
    """Give every row of fewer than ``min_words`` words of text one composed from its labels.

    With ``max_words``, longer ones are replaced too, as no 77-token text encoder would read them whole.
    The wording is drawn by (seed, image file name), so it does not depend on which other images are there.
    """
    table = table.copy()
    words = table["text"].str.split().str.len()
    wanted = words < min_words
    if max_words is not None:
        wanted |= words > max_words
    needed = ["image", "view", "sex", "age", *finding_columns(table), *side_columns(table)]
    texts = []
    # Blocks, because a dictionary a row of 40 columns is a gigabyte for 400,000 rows.
    chosen = table.loc[wanted, [column for column in needed if column in table.columns]]
    for start in range(0, len(chosen), COMPOSE_BLOCK):
        for row in chosen.iloc[start : start + COMPOSE_BLOCK].to_dict("records"):
            rng = random.Random(f"{seed}:{Path(str(row['image'])).name}")
            texts.append(compose(labels_from_row(row), rng))
    table.loc[wanted, "text"] = texts
    return table


def merge_sides(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, Counter[str]]:
    """Fill blank sides from a CSV with the columns file, finding, side; known sides stay as they are.

    A column ``severity`` fills blank severities in the same way; then either cell of a line may be blank.

    ``file`` is an image's file name, or the end of its path (``cxr320/images/x.jpg``) where one name is in
    two folders and the two differ; a bare name goes to all images of that name.

    Returns:
        The table, and how many lines were ``used``, had ``no image`` in the table, a ``finding not
        present`` in that image, or a ``side already known``.

    Raises:
        UserError: when the file or a column is missing, a finding or side is unknown, or no line is used.
    """
    columns = ("file", "finding", "side")
    fix = "it needs file, finding and side"
    sides = read_table(path, required=columns, optional=("severity",), name=f"--sides {path}", fix=fix, lines=True)
    if "severity" not in sides.columns:
        sides = sides.assign(severity="")
    table = table.reset_index(drop=True)
    by_name: dict[str, list[int]] = {}
    for index, image in enumerate(table["image"]):
        by_name.setdefault(Path(image).name, []).append(index)
    counts: Counter[str] = Counter()
    for line, file, finding, side, severity in sides[[*columns, "severity"]].itertuples():
        blank_side = side == "" and severity != ""
        if finding not in FINDINGS or not (FINDINGS[finding].can_have_side or blank_side):
            raise UserError(f"--sides {path}, line {line}: finding {finding!r} is unknown or has no side")
        if side not in SIDES and not blank_side:
            raise UserError(f"--sides {path}, line {line}: side {side!r} is not one of {', '.join(SIDES)}")
        words = FINDINGS[finding].qualifiers
        if severity not in ("", *words):
            suits = f"one of {', '.join(words)}" if words else "known for it"
            raise UserError(f"--sides {path}, line {line}: severity {severity!r} of {finding} is not {suits}")
        for column, value in ((finding + SIDE_SUFFIX, side), (finding + SEVERITY_SUFFIX, severity)):
            if value and column not in table.columns:
                table[column] = ""
        wanted = Path(file).parts
        matches = [
            row
            for row in by_name.get(Path(file).name, [])
            if Path(table.at[row, "image"]).parts[-len(wanted) :] == wanted
        ]
        if not matches:
            counts["no image"] += 1
        for row in matches:
            if finding not in table.columns or table.at[row, finding] != 1:
                counts["finding not present"] += 1
                continue
            for column, value in ((finding + SIDE_SUFFIX, side), (finding + SEVERITY_SUFFIX, severity)):
                if value and table.at[row, column] != "":
                    counts[f"{column.rsplit('_', 1)[1]} already known"] += 1
                elif value:
                    table.at[row, column] = value
                    counts["used"] += 1
    if not any(counts[key] for key in ("used", "side already known", "severity already known")):
        raise UserError(f"--sides {path} fits no image of the data set; check its file and finding columns")
    return table, counts


def mark_synthetic(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``synthetic`` and the model as ``source`` in rows whose images roentgen's marks call synthetic."""
    from roentgen.images import marks_of

    def model(image: str) -> str:
        marks = marks_of(Path(image))
        return marks.get("model", "unknown") if marks.get("synthetic") == "true" else ""

    models = pd.Series(map_images(model, table["image"], desc="looking for marks"), index=table.index, dtype=str)
    made = models != ""
    if not made.any():
        return table
    return table.assign(
        source=table["source"].mask(made, "synthetic: " + models), synthetic=made.map({True: "true", False: ""})
    )


def copy_images(table: pd.DataFrame, folder: Path, *, size: int | None) -> pd.DataFrame:
    """Copy the images below ``folder/images`` and point the table there.

    Names are kept; where two images of one name come from different folders, they go to subfolders named
    after those, or to the whole path below the images' common folder. Copies are byte for byte, or, with
    ``size``, 8-bit PNG of shorter side ``size``, centre cropped to a square; marks of what made an image stay.

    Raises:
        UserError: when images cannot be read or written, after copying the others.
    """
    from roentgen.images import resized_png

    sources = [Path(image) for image in table["image"]]
    targets = _target_names(sources, suffix=".png" if size else None)

    def copy(pair: tuple[Path, Path]) -> str | None:
        source, target = pair[0], folder / "images" / pair[1]
        try:
            with open_atomic(target) as file:
                if size is not None:
                    file.write(resized_png(source, size))
                else:
                    with regular(source).open("rb") as original:
                        shutil.copyfileobj(original, file)
        except UserError as error:
            return f"image {source} cannot be copied: {error}"
        return None

    pairs = dict(zip(map(str, sources), zip(sources, targets, strict=True), strict=True))
    failures = [
        failure
        for failure in map_images(lambda image: copy(pairs[image]), pairs, desc="copying")
        if failure is not None
    ]
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise UserError(failures[0] + more)
    table = table.copy()
    table["image"] = [str(folder.absolute() / "images" / target) for target in targets]
    return table


def _target_names(sources: list[Path], *, suffix: str | None) -> list[Path]:
    """Relative target paths: bare names if they are unique, else below the name of the nearest folder
    that is not called ``images``, else as they lie below the folder that holds them all."""
    flat = [Path(source.name) for source in sources]
    nested = []
    for source in sources:
        above = source.parent.parent if source.parent.name == "images" else source.parent
        nested.append(Path(above.name) / source.name)
    top = Path(os.path.commonpath([source.parent for source in sources]))
    whole = [source.relative_to(top) for source in sources]  # CheXpert: patient00001/study1/view1_frontal.jpg
    for names in (flat, nested, whole):
        targets = [name.with_suffix(suffix) if suffix else name for name in names]
        if len(set(targets)) == len(set(sources)):
            return targets
    raise UserError("--copy-images: two images of one folder differ in their ending only; leave --size out")


def validate_and_write(table: pd.DataFrame, path: Path) -> Path:
    """Write the manifest if every row is valid; else name the first bad row and write nothing."""
    cells = as_cells(table)
    problems = row_problems(cells) + empty_texts(cells)
    refuse(
        problems,
        lambda row: f"image {Path(cells.at[row - 1, 'image']).name or f'row {row}'}",
        fix="; mend the source data",
    )
    return write_manifest(table, path)
