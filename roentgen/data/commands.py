"""``roentgen data prepare`` and ``roentgen data check``, as functions of their flags.

The command line is made from these signatures and docstrings; nothing heavy is imported until they run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from roentgen.errors import UserError


def prepare(
    source: Literal["openchest", "csv"],
    *,
    root: str,
    out: str,
    csv: str | None = None,
    sides: str | None = None,
    copy_images: bool = False,
    size: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    image_column: str = "image",
    text_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    view_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    finding_columns: dict[str, str] | None = None,
    blank_text: Literal["error", "compose", "drop"] = "error",
    other_views: Literal["error", "drop"] = "error",
    uncertain: Literal["blank", "0", "1"] = "blank",
    val_share: float = 0.1,
    test_share: float = 0.1,
    source_name: str = "",
    licence: str = "",
) -> int:
    """Write a manifest, the table that training and evaluation read, from a collection of images.

    Args:
        source: The kind of collection: openchest, or csv for a folder of images with a CSV of your own.
        root: Folder of the collection (openchest: with nih128/ and/or cxr320/, or one of these).
        out: Manifest to write (.csv or .parquet), or the folder for its manifest.csv.
        csv: For csv: the CSV file, one row an image.
        sides: CSV with the columns file, finding, side (left, right, bilateral) that fills unknown sides.
        copy_images: Copy the images below the manifest's folder, so that it can be moved as a whole.
        size: With --copy-images: resize the shorter side to this many pixels, crop the centre, save as PNG.
        seed: Seed of composed texts and of the random split.
        overwrite: Replace an existing manifest.
        image_column: For csv: column of the image path below --root.
        text_column: For csv: column of the report or prompt; left out, texts are composed from the findings.
        patient_column: For csv: column of the patient; left out, each image counts as a patient.
        split_column: For csv: column of the split; left out, patients are split at random.
        view_column: For csv: column of the view (PA or AP).
        sex_column: For csv: column of the sex.
        age_column: For csv: column of the age in years.
        finding_columns: For csv: columns of findings under other names, {"Pleural Effusion": "Effusion"}.
        blank_text: For csv with --text-column: on a blank text stop, compose one, or drop the row.
        other_views: For csv with --view-column: on a view other than PA, AP or blank stop, or drop the row.
        uncertain: For csv: what a finding of -1 (uncertain) becomes.
        val_share: For csv without --split-column: share of the patients for val.
        test_share: For csv without --split-column: share of the patients for test.
        source_name: For csv: name of the collection, for the column source.
        licence: For csv: its licence, for the column licence.

    Returns:
        Exit code 0; the path of the manifest is printed.
    """
    from roentgen.data import assemble
    from roentgen.data.csv_folder import CsvColumns, read_csv_folder
    from roentgen.data.openchest import read_openchest
    from roentgen.prompts import MAX_WORDS

    target = Path(out)
    if target.suffix.lower() not in (".csv", ".parquet"):
        target = target / "manifest.csv"
    if target.exists() and not overwrite:
        raise UserError(f"--out {target} exists; choose another name or add --overwrite")
    if size is not None and not copy_images:
        raise UserError("--size changes images, so it needs --copy-images; the originals are left as they are")
    if size is not None and size < 8:
        raise UserError(f"--size {size} is too small for an image; choose 64 or more")

    if source == "openchest":
        table, outside = read_openchest(root)
        for finding, count in outside.items():
            _say(f"{count} image(s) with {finding!r}, which is outside the vocabulary: kept without it")
        table = assemble.compose_texts(_with_sides(table, sides), seed=seed, max_words=MAX_WORDS)
    else:
        if csv is None:
            raise UserError("--csv is missing; name the CSV file of the images")
        columns = CsvColumns(
            image=image_column,
            text=text_column,
            patient=patient_column,
            split=split_column,
            view=view_column,
            sex=sex_column,
            age=age_column,
            findings=finding_columns,
        )
        table = read_csv_folder(
            root,
            csv,
            columns,
            val_share=val_share,
            test_share=test_share,
            seed=seed,
            uncertain="" if uncertain == "blank" else uncertain,
            source=source_name,
            licence=licence,
        )
        if patient_column is None:
            _say("no --patient-column: each image counts as a patient, so one person may be in two splits")
        if other_views == "drop":
            kept = table["view"].isin(["PA", "AP", ""])
            _say(f"{(~kept).sum()} image(s) of other views dropped")
            table = table[kept].reset_index(drop=True)
        table = assemble.typed_labels(table, csv)
        table = _with_sides(table, sides)
        table = assemble.fill_texts(table, "compose" if text_column is None else blank_text, seed=seed)

    if copy_images:
        table = assemble.copy_images(table, target.parent, size=size)
    assemble.validate_and_write(table, target)
    counts = table["split"].value_counts()
    _say(", ".join(f"{split} {counts.get(split, 0)}" for split in ("train", "val", "test")) + " images")
    print(target)
    return 0


def check(
    manifest: str,
    *,
    out: str | None = None,
    max_words: int = 60,
    thumbnails: int = 24,
    overwrite: bool = False,
) -> int:
    """Look for everything wrong or odd in a data set, and write an HTML page to look at.

    Errors (exit code 1): rows that training would refuse, a patient in two splits, image files that are
    missing, unreadable, smaller than 64 pixels or near-constant, empty texts, the same image in two splits.
    Warnings (exit code 0): the same image twice, images that do not look like a frontal view, colour images,
    over-long texts, labels that contradict each other. Notes: near-duplicate images, columns that are not
    read. A manifest that cannot be read at all gives exit code 2.

    Args:
        manifest: The manifest, .csv or .parquet.
        out: HTML page to write, or its folder; left out, the manifest's name with .check.html.
        max_words: Texts of more words are named as over-long (CLIP's window of 77 tokens holds about 60).
        thumbnails: Images to show for each kind of problem.
        overwrite: Replace an existing page at --out.

    Returns:
        Exit code 1 when there are errors, else 0.
    """
    from roentgen.data.check import check_manifest, summary_lines
    from roentgen.data.check_page import write_page

    if max_words < 1:
        raise UserError(f"--max-words {max_words} must be at least 1")
    if thumbnails < 0:
        raise UserError(f"--thumbnails {thumbnails} must be at least 0")
    path = Path(manifest)
    page = path.with_suffix(".check.html") if out is None else Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        page = page / "check.html"
    if out is not None and page.exists() and not overwrite:
        raise UserError(f"--out {page} exists; choose another name or add --overwrite")
    report = check_manifest(path, max_words=max_words)
    for line in summary_lines(report):
        print(line)
    write_page(report, page, thumbnails=thumbnails)
    print(page)
    return 1 if report.errors else 0


def _with_sides(table, sides: str | None):  # type: ignore[no-untyped-def]  # pandas is not imported here
    from roentgen.data.assemble import merge_sides

    if sides is None:
        return table
    table, counts = merge_sides(table, Path(sides))
    _say("--sides: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return table


def _say(message: str) -> None:
    print(message, file=sys.stderr)
