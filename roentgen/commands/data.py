"""``roentgen data prepare``, ``check`` and ``shard``, as functions of their flags.

The command line is made from these signatures and docstrings; nothing heavy is imported until they run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from roentgen.config import Count, CountFromZero, PathOrName, Pixels, Positional, Range, Seed, ShareBelowOne, Short
from roentgen.data.sources import SOURCES
from roentgen.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    Name = str
else:  # the parser offers these as choices
    Name = Literal[tuple(SOURCES)]

# Settings of prepare itself; every other belongs to the sources whose reader has a parameter of that name.
OWN = ("source", "root", "out", "sides", "copy_images", "size", "seed", "overwrite", "limit", "blank_text")


def prepare(
    source: Annotated[Name, Positional()],
    *,
    root: PathOrName,
    out: Annotated[PathOrName, Short("-o")],
    limit: Count | None = None,
    sides: PathOrName | None = None,
    copy_images: bool = False,
    size: Pixels | None = None,
    seed: Seed = 0,
    overwrite: bool = False,
    blank_text: Literal["error", "compose", "drop"] | None = None,
    missing: Literal["error", "drop"] | None = None,
    uncertain: Literal["blank", "0", "1"] | None = None,
    val_share: ShareBelowOne | None = None,
    test_share: ShareBelowOne | None = None,
    section: str | None = None,
    reports: PathOrName | None = None,
    labels: PathOrName | None = None,
    images: PathOrName | None = None,
    split: Literal["official", "roentgen"] | None = None,
    patients: PathOrName | None = None,
    views: PathOrName | None = None,
    text: Literal["labels", "report"] | None = None,
    labelled_by: Literal["all", "physician"] | None = None,
    join: Literal["AccessionNumber", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "path"] | None = None,
    key_column: str | None = None,
    pseudonymise: bool = False,
    salt: str | None = None,
    csv: PathOrName | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    view_column: str | None = None,
    sex_column: str | None = None,
    age_column: str | None = None,
    finding_columns: dict[str, str] | None = None,
    other_views: Literal["error", "drop"] | None = None,
    source_name: str | None = None,
    licence: str | None = None,
) -> int:
    """Write a manifest, the table that training and evaluation read, from a collection of images. A flag that is not
    for the chosen source is an error.

    Args:
        source: The kind of collection; csv is a folder of images with a CSV of your own, dicom a folder of DICOM files
            with a CSV of reports.
        root: Folder of the collection, as downloaded and unpacked.
        out: Manifest to write (.csv or .parquet), or the folder for its manifest.csv.
        limit: Only the first so many patients by a hash, to try things out.
        sides: CSV with the columns file, finding, side (left, right, bilateral) that fills unknown sides.
        copy_images: Copy the images below the manifest's folder, so that it can be moved as a whole.
        size: With --copy-images: resize the shorter side to this many pixels, crop the centre, save as PNG.
        seed: Seed of composed texts, random splits and --limit.
        overwrite: Replace an existing manifest.
        blank_text: On a blank text stop (error), compose one from the findings, or drop the image. Left out: chexpert,
            nih and padchest compose, as they have no English reports; mimic-cxr-jpg, chexpert-plus and openi drop the
            images whose report lacks the section, if these are not most (so does dicom); the others stop.
        missing: For the public collections and xreport: on an image that is not on the disk stop (default), or drop it.
        uncertain: For csv, dicom, mimic-cxr-jpg, chexpert, chexpert-plus: what a finding of -1 (uncertain) becomes
            (default blank).
        val_share: Share of the patients for val, where the source has no split of its own or none for val (default 0.1;
            chexpert 0.05; mimic-cxr-jpg 0.02).
        test_share: For csv, openi, padchest, dicom, xreport: share of the patients for test (default 0.1).
        section: For mimic-cxr-jpg, chexpert-plus, openi, dicom: sections of the report, such as impression or
            impression,findings; the first that is not blank is the text (default impression; dicom: report is all).
        reports: For mimic-cxr-jpg: mimic-cxr-reports.zip or its folder, or none for texts composed from the labels. For
            openi: NLMCXR_reports.tgz or its folder. Left out, they are looked for below --root.
        labels: For mimic-cxr-jpg: chexpert (default), negbio or none. For chexpert-plus: file of CheXbert's labels.
        images: For chexpert-plus and padchest: folder of the images, where it is not below --root.
        split: For mimic-cxr-jpg: roentgen (default; patients p10 to p18 for training, p19 for test) or official.
        patients: For mimic-cxr-jpg: MIMIC-IV's patients.csv.gz, for sex and age.
        views: For openi: Kaggle's indiana_projections.csv; left out, the tables of torchxrayvision are read.
        text: For padchest: labels (default; texts are composed) or report (Spanish).
        labelled_by: For padchest: all (default), or only what a physician labelled.
        join: For dicom: what joins an image to a row of --csv: this DICOM tag (default AccessionNumber), or its
            path below --root.
        key_column: For dicom: column of --csv that holds it (default: of the name that --join gives).
        pseudonymise: For dicom: replace the patient's number by a keyed hash; file names and texts stay as they are.
        salt: For dicom with --pseudonymise: the key, at least 8 characters (default random, and thrown away).
        csv: For csv, xreport: the CSV file, one row an image. For dicom: one row a report.
        image_column: For csv: column of the image path below --root (default image).
        text_column: For csv: column of the report or prompt; left out, texts are composed from the findings. For dicom:
            column of the report (default report).
        patient_column: For csv: column of the patient; left out, each image counts as a patient.
        split_column: For csv, dicom: column of the split; left out, patients are split at random.
        view_column: For csv: column of the view (PA or AP).
        sex_column: For csv: column of the sex.
        age_column: For csv: column of the age in years.
        finding_columns: For csv: columns of findings under other names, {"Pleural Effusion": "Effusion"}.
        other_views: For csv: on a view other than PA, AP or blank stop (default), or drop the row; the collections
            always leave them out.
        source_name: For csv, dicom, xreport: name of the collection, for the column source.
        licence: For csv, dicom, xreport: its licence, for the column licence.

    Returns:
        Exit code 0; the path of the manifest is printed.
    """
    given = {name: value for name, value in locals().items() if name not in OWN}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    from roentgen.data import assemble
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
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves no patient; choose 1 or more")
    if source == "openchest" and blank_text is not None:
        raise UserError("--blank-text is not for openchest, whose texts are composed; leave it out")

    table, counts = _read(source, root, given, seed=seed, limit=limit)
    if any(counts.values()):
        _say("left out, unless the line says otherwise:")
    for what, count in counts.items():
        if count:
            _say(f"  {count:,} {what}")
    if limit is not None:
        kept = table["patient_id"].isin(assemble.first_patients(table["patient_id"], limit, seed=seed))
        table = table[kept].reset_index(drop=True)
    if table.empty:
        raise UserError(f"--root {root}: no image is left for a manifest; mend what the lines above say")
    table = _with_sides(table, sides)
    if source == "openchest":
        table = assemble.compose_texts(table, seed=seed, max_words=MAX_WORDS)
    else:
        how, flag = SOURCES[source].blank(given)
        table = assemble.fill_texts(
            table, blank_text or how, seed=seed, flag=flag, drop_unlabelled=source not in ("csv", "dicom")
        )

    if copy_images:
        table = assemble.copy_images(table, target.parent, size=size)
    assemble.validate_and_write(table, target)
    splits = table["split"].value_counts()
    _say(", ".join(f"{split} {splits.get(split, 0)}" for split in ("train", "val", "test")) + " images")
    print(target)
    return 0


def _read(
    source: str, root: str, given: Mapping[str, Any], *, seed: int, limit: int | None
) -> tuple[pd.DataFrame, Counter[str]]:
    """Call the reader of ``source`` with the flags that were given."""
    import inspect

    takes = {name: set(inspect.signature(known.reader).parameters) for name, known in SOURCES.items()}
    for name in given:
        if name not in takes[source]:
            users = ", ".join(other for other in takes if name in takes[other])
            raise UserError(f"{_flag(name)} is not for {source}, only for {users}; leave it out")
    reader = SOURCES[source].reader
    required = [
        name
        for name, parameter in inspect.signature(reader).parameters.items()
        if parameter.default is parameter.empty and name != "root" and name not in given
    ]
    if required:
        raise UserError(f"{_flag(required[0])} is missing; {source} needs it (see `roentgen data prepare --help`)")
    settings: dict[str, Any] = dict(given)
    if "section" in settings:
        settings["section"] = tuple(name.strip().lower() for name in settings["section"].split(",") if name.strip())
        if not settings["section"]:
            raise UserError("--section is blank; name a section of the reports, such as impression")
    if "seed" in takes[source]:
        settings["seed"] = seed
    if "limit" in takes[source]:
        settings["limit"] = limit
    return reader(root, **settings)


def _flag(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")


def check(
    manifest: Annotated[PathOrName, Positional()],
    *,
    out: Annotated[PathOrName | None, Short("-o")] = None,
    max_words: Count = 60,
    tokenizer: PathOrName | None = None,
    thumbnails: CountFromZero = 24,
    overwrite: bool = False,
) -> int:
    """Look for everything wrong or odd in a data set, and write an HTML page to look at.

    Errors (exit code 1): rows that training would refuse, a patient in two splits, image files that are
    missing, unreadable, smaller than 64 pixels or near-constant, empty texts, the same image in two splits.
    Warnings (exit code 0): the same image twice, images that do not look like a frontal view, colour images,
    over-long texts, texts with blanks of a de-identification or not in English, labels that contradict each
    other. Notes: near-duplicate images, columns that are not read. A manifest that cannot be read at all
    gives exit code 2.

    Args:
        manifest: The manifest, .csv or .parquet.
        out: HTML page to write, or its folder; left out, the manifest's name with .check.html.
        max_words: Texts of more words are named as over-long (CLIP's window of 77 tokens holds about 60).
        tokenizer: Pipeline or tokenizer folder that counts tokens; left out, they are estimated from words.
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
    report = check_manifest(path, max_words=max_words, tokenizer=None if tokenizer is None else Path(tokenizer))
    for line in summary_lines(report):
        print(line)
    write_page(report, page, thumbnails=thumbnails)
    print(page)
    return 1 if report.errors else 0


def shard(
    manifest: Annotated[PathOrName, Positional()],
    *,
    out: Annotated[PathOrName, Short("-o")],
    size: Pixels | None = None,
    shard_mb: Annotated[float, Range(0, 1e6, above=True)] = 256.0,
    seed: Seed = 0,
    keep_order: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the images, texts and labels of a manifest as WebDataset tar files, which training reads in sequence.

    Run the same command again after it was broken off: finished shards are checked and kept. It also writes damaged
    ones again. The shards hold what the manifest and the images hold, patient identifiers too.

    Args:
        manifest: The manifest, .csv or .parquet.
        out: Folder for the shards.
        size: Store images resized to this shorter side, centre-cropped, 8-bit PNG; left out, the files as they are.
        shard_mb: Megabytes of a shard, about.
        seed: Seed of the order of rows, so that each shard is a random sample of its split.
        keep_order: Write rows in the manifest's order instead.
        overwrite: Replace shards of another manifest or of other options.

    Returns:
        Exit code 0; the folder is printed.
    """
    from roentgen.data.shards import write_shards

    if size is not None and size < 8:
        raise UserError(f"--size {size} is too small for an image; choose 64 or more")
    if not shard_mb > 0:
        raise UserError(f"--shard-mb {shard_mb:g} must be above 0")
    folder = Path(out)
    counts = write_shards(
        Path(manifest),
        folder,
        size=size,
        shard_mb=shard_mb,
        seed=None if keep_order else seed,
        overwrite=overwrite,
    )
    for split, (shards, images) in counts.items():
        _say(f"{split}: {images} images in {shards} shard(s)")
    _say("rows in the manifest's order" if keep_order else f"rows shuffled with --seed {seed}")
    print(folder)
    return 0


def _with_sides(table, sides: str | None):  # type: ignore[no-untyped-def]  # pandas is not imported here
    from roentgen.data.assemble import merge_sides

    if sides is None:
        return table
    table, counts = merge_sides(table, Path(sides))
    _say("--sides: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return table


def _say(message: str) -> None:
    print(message, file=sys.stderr)
