"""``roentgen data prepare``, ``check`` and ``shard``, as functions of their flags.

The command line is made from these signatures and docstrings; nothing heavy is imported until they run.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from roentgen.config import (
    Count,
    CountFromZero,
    PathOrName,
    Pixels,
    Positional,
    Range,
    Seed,
    Short,
    did_you_mean,
    parse_groups,
    yaml_text,
)
from roentgen.config.settings import Setting, dataclass_of, settings_of
from roentgen.data.sources import SOURCES
from roentgen.errors import UserError
from roentgen.files import user_path

if TYPE_CHECKING:
    Name = str
else:  # the parser offers these as choices
    Name = Literal[tuple(SOURCES)]

# Settings of prepare itself; every other belongs to the sources whose reader has a parameter of that name.
OWN = ("source", "root", "out", "sides", "copy_images", "size", "seed", "overwrite", "limit", "blank_text")


def prepare_main(argv: Sequence[str], prog: str) -> int:
    """``roentgen data prepare``: the flags of the command and those of the source that is named, no others."""
    source = next((word for word in argv if word in SOURCES), None) or _source_of_files(argv)
    if source is None:
        if {"-h", "--help"} & set(argv):
            parse_groups([dataclass_of(prepare)], ["--help"], prog=prog, about=prepare.__doc__)
        named = next((word for word in argv if not word.startswith("-")), "")
        near = did_you_mean(named, list(SOURCES))
        raise UserError(f"{named or 'SOURCE'}: name the kind of collection: {', '.join(SOURCES)}{near}")
    prog = f"{prog} {source}"
    asked = bool({"-h", "--help"} & set(argv))
    own = dataclass_of(prepare, leave_out=("source",) if asked else ())
    theirs = dataclass_of(SOURCES[source].reader, leave_out=OWN)
    flags = {word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    known = {one.key for one in settings_of(own, theirs)} | {"config", "help"}
    _refuse_strangers(source, flags - known, strict=False)
    groups = [own, theirs] if settings_of(theirs) else [own]
    made = parse_groups(groups, argv, prog=prog, about=_about(source, settings_of(theirs)))
    values = {field.name: getattr(one, field.name) for one in made for field in dataclasses.fields(one)}
    return prepare(**values)


def _about(source: str, theirs: Sequence[Setting]) -> str:
    """The help of ``prepare`` with examples of this source."""
    text = inspect.cleandoc(prepare.__doc__ or "")
    needed = "".join(f" {one.flag} reports.csv" for one in theirs if one.default is dataclasses.MISSING)
    example = f"    roentgen data prepare {source} --root downloads/{source}{needed} --out data/{source}"
    return re.sub(
        r"^    roentgen .*\n    .*$", f"{example}\n{example} --limit 200 --copy-images --size 256", text, flags=re.M
    )


def _source_of_files(argv: Sequence[str]) -> str | None:
    """The source that a ``--config`` file names."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    files = [word.partition("=")[2] or after for word, after in pairs if word.partition("=")[0] == "--config"]
    found = [yaml_text.read(user_path(file)).get("source") for file in files if file]
    return next((name for name in reversed(found) if name in SOURCES), None)


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
    **flags: Any,
) -> int:
    """Write a manifest, the table that training and evaluation read, from a collection of images.

    Each source has flags of its own; ``roentgen data prepare SOURCE --help`` lists them.

        roentgen data prepare nih --root downloads/nih --out data/nih
        roentgen data prepare csv --root images --csv reports.csv --text-column impression --out data/mine

    What is read:
        source: The kind of collection; csv is a folder of images with a CSV of your own, dicom a folder of DICOM files
            with a CSV of reports.
        root: Folder of the collection, as downloaded and unpacked.
        limit: At most this many patients, the first by a hash, to try things out.
        sides: CSV with the columns file, finding, side (left, right, bilateral) that fills unknown sides.
        seed: Seed of composed texts, random splits and --limit.

    What is written:
        out: Manifest to write (.csv or .parquet), or the folder for its manifest.csv.
        copy_images: Copy the images below the manifest's folder, so that it can be moved as a whole.
        size: With --copy-images: resize the shorter side to this many pixels, crop the centre, save as PNG.
        overwrite: Replace an existing manifest.
        blank_text: On a blank text stop (error), compose one from the findings, or drop the image. Left out: chexpert,
            nih and padchest compose, as they have no English reports; mimic-cxr-jpg, chexpert-plus and openi drop the
            images whose report lacks the section, if these are not most (so does dicom); the others stop.

    ``flags`` are the reader's own. Returns exit code 0; the path of the manifest is printed.
    """
    from roentgen.data import assemble
    from roentgen.prompts import MAX_WORDS

    target = _manifest_of(out, overwrite)
    if size is not None and not copy_images:
        raise UserError("--size changes images, so it needs --copy-images; the originals are left as they are")
    if source == "openchest" and blank_text is not None:
        raise UserError("--blank-text is not for openchest, whose texts are composed; leave it out")

    said, reader = _given(source, flags), SOURCES[source].reader
    shared = {"seed": seed, "limit": limit}.items()  # that some readers take too
    takes = inspect.signature(reader).parameters
    table, counts = reader(root, **said, **{name: value for name, value in shared if name in takes})
    _say_counts(counts)
    if limit is not None:
        kept = table["patient_id"].isin(assemble.first_patients(table["patient_id"], limit, seed=seed))
        table = table[kept].reset_index(drop=True)
    if table.empty:
        why = "fix what the lines above say" if counts else "there is none of this collection; name another folder"
        raise UserError(f"--root {root}: no image is left for a manifest; {why}")
    table = _with_sides(table, sides)
    if source == "openchest":
        table = assemble.compose_texts(table, seed=seed, max_words=MAX_WORDS)
    else:
        how, flag = SOURCES[source].blank(said)
        table = assemble.fill_texts(
            table, blank_text or how, seed=seed, flag=flag, drop_unlabelled=source not in ("csv", "dicom")
        )

    if source in ("csv", "dicom"):  # anybody's folders, an exported set's too
        table = assemble.mark_synthetic(table)
    if copy_images:
        table = assemble.copy_images(table, target.parent, size=size)
    assemble.validate_and_write(table, target)
    splits = table["split"].value_counts()
    _say(", ".join(f"{split} {splits.get(split, 0)}" for split in ("train", "val", "test")) + " images")
    print(target)
    return 0


def _manifest_of(out: str, overwrite: bool) -> Path:
    """The manifest that ``--out`` names, itself or by its folder; UserError if it is there and is to stay."""
    target = Path(out) if Path(out).suffix.lower() in (".csv", ".parquet") else Path(out) / "manifest.csv"
    if target.exists() and not overwrite:
        raise UserError(f"--out {target} exists; choose another name or add --overwrite")
    return target


def _say_counts(counts: Mapping[str, int]) -> None:
    if any(counts.values()):
        _say("left out, unless the line says otherwise:")
    for what, count in counts.items():
        if count:
            _say(f"  {count:,} {what}")


def _given(source: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that say something else than the reader's own defaults, ``section`` as names."""
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    _refuse_strangers(source, given)
    parameters = inspect.signature(SOURCES[source].reader).parameters
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name != "root" and name not in given:
            raise UserError(f"{_flag(name)} is missing; {source} needs it (roentgen data prepare {source} --help)")
    if "section" in given:
        words = [given["section"]] if isinstance(given["section"], str) else given["section"]
        names = [name.strip().lower() for word in words for name in word.split(",") if name.strip()]
        if not names:
            raise UserError("--section is blank; name a section of the reports, such as impression")
        given["section"] = tuple(names)
    from roentgen.data.sources.common import check_shares

    shares = {name: given.get(name, p.default) for name, p in parameters.items() if name.endswith("_share")}
    check_shares(shares.get("val_share", 0.0), shares.get("test_share", 0.0))  # before tables are read, for minutes
    return {name: value for name, value in given.items() if value != parameters[name].default}


def _refuse_strangers(source: str, names: Collection[str], *, strict: bool = True) -> None:
    """UserError on a flag of another source; ``strict``: on one of none, too."""
    if not strict and not names:
        return  # the other readers need not be imported
    takes = {name: set(inspect.signature(known.reader).parameters) for name, known in SOURCES.items()}
    for name in names:
        if name not in takes[source]:
            users = ", ".join(other for other in takes if name in takes[other])
            if users or strict:
                raise UserError(f"{_flag(name)} is not for {source}, only for {users or 'no source'}; leave it out")


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

        roentgen data check data/nih/manifest.csv
        roentgen data check data/nih/manifest.csv --out reports/nih.html --overwrite

    What is read:
        manifest: The manifest, .csv or .parquet.
        max_words: Texts of more words are named as over-long (CLIP's window of 77 tokens holds about 60).
        tokenizer: Pipeline or tokenizer folder that counts tokens; left out, they are estimated from words.

    What is written:
        out: HTML page to write, or its folder; left out, the manifest's name with .check.html.
        thumbnails: Images to show for each kind of problem.
        overwrite: Replace an existing page at --out.

    Returns:
        Exit code 1 when there are errors, else 0.
    """
    from roentgen.data.check import check_manifest, summary_lines
    from roentgen.data.check_page import write_page

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

        roentgen data shard data/nih/manifest.csv --out data/nih-shards
        roentgen data shard data/nih/manifest.csv --out data/nih-256 --size 256

    What is read:
        manifest: The manifest, .csv or .parquet.
        seed: Seed of the order of rows, so that each shard is a random sample of its split.
        keep_order: Write rows in the manifest's order instead.

    What is written:
        out: Folder for the shards.
        size: Store images resized to this shorter side, centre-cropped, 8-bit PNG; left out, the files as they are.
        shard_mb: Megabytes of a shard, about.
        overwrite: Replace shards of another manifest or of other options.

    Returns:
        Exit code 0; the folder is printed.
    """
    from roentgen.data.shards import write_shards

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
