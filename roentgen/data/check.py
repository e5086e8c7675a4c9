"""Everything wrong or odd in a data set: reads all rows and images, does not stop at a fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from roentgen.data import near
from roentgen.data.images import map_images
from roentgen.data.manifest import (
    CORE,
    SIDE_SUFFIX,
    SIDES,
    SPLITS,
    Problem,
    absolute_images,
    empty_texts,
    finding_columns,
    load_table,
    row_problems,
    side_columns,
)
from roentgen.data.text_statistics import text_line, text_notes, text_problems, text_tables
from roentgen.errors import UserError, install
from roentgen.files import sha256
from roentgen.images import read_image

MIN_SIDE = 64  # pixels; below it ribs and vessels cannot be told apart
MIN_RANGE = 12  # grey levels between the 1st and 99th percentile; real films have 100 and more
MAX_ASPECT = 1.7  # longer to shorter side; openchest's widest film has 1.60
MIN_SYMMETRY = 0.0
MIN_CONTRAST = -0.3
MAX_COLOUR = 8.0  # mean distance between colour channels, grey levels; JPEG grey stored as RGB has below 2
HASH_SIDE = 16
NEAR_BITS = 10  # of 256; see near_duplicates

NEAR_NOTES = {
    "index": "near-duplicates were looked for with an index (faiss), which finds what comparing all pairs finds",
    "pairs": f"near-duplicates were looked for by comparing all pairs; an index is faster: {install('near')}",
    "none": f"near-duplicates were not looked for: more than {near.LIMIT:,} images want an index: {install('near')}",
}
SEVERITY = {
    "image file missing": "error",
    "unreadable image": "error",
    "image too small": "error",
    "near-constant image": "error",
    "empty text": "error",
    "same image in two splits": "error",
    "same image twice": "warning",
    "does not look frontal": "warning",
    "colour image": "warning",
    "over-long text": "warning",
    "contradicting labels": "warning",
    "de-identification blank": "warning",
    "identifier in text": "warning",
    "text not in English": "warning",
    "near-duplicate image": "note",
}  # every kind of row problem that training would refuse is an error too


@dataclass(frozen=True)
class ImageFacts:
    """What one look at an image file gives; ``error`` is why there is nothing more."""

    error: str = ""
    missing: bool = False
    width: int = 0
    height: int = 0
    grey_range: float = 0.0  # 1st to 99th percentile
    colour: float = 0.0
    symmetry: float = 1.0
    contrast: float = 1.0
    digest: str = ""
    bits: bytes = b""


@dataclass
class Report:
    """Problems by kind, and statistics; ``table`` has one row a manifest row, in order."""

    manifest: Path
    table: pd.DataFrame
    facts: list[ImageFacts]
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, pd.DataFrame] = field(default_factory=dict)

    def count(self, severity: str) -> int:
        """Number of problems of a severity: error, warning or note."""
        return sum(len(found) for kind, found in self.problems.items() if severity_of(kind) == severity)

    @property
    def errors(self) -> int:
        return self.count("error")


def severity_of(kind: str) -> str:
    """error, warning or note."""
    return SEVERITY.get(kind, "error")


def check_manifest(path: Path, *, max_words: int = 60, tokenizer: Path | None = None) -> Report:
    """Check every row and every image of a manifest.

    Args:
        path: the manifest.
        max_words: texts of more are named.
        tokenizer: pipeline or tokenizer folder that counts tokens; None: tokens are estimated from words.

    Raises:
        UserError: only when the manifest itself cannot be read or lacks a column, or the tokenizer cannot be read;
            anything about rows and images goes to the report.
    """
    table = load_table(path)
    problems = row_problems(table) + empty_texts(table) + _text_and_label_problems(table, max_words)
    problems += text_problems(table)
    parts = parts_of(table)
    texts = text_tables(parts, tokenizer=tokenizer)  # before the images: a bad tokenizer is said at once
    images = absolute_images(table["image"], path.parent)
    facts_of = dict(zip(images, map_images(look, images, desc="reading images"), strict=True))
    facts = [facts_of[image] for image in images]
    for index, fact in enumerate(facts):
        if table.at[index, "image"] != "":  # the blank cell is a problem already
            problems += [Problem(index + 1, kind, message) for kind, message in image_problems(fact)]
    problems += duplicates(facts, table["split"].tolist())

    report = Report(path, table.assign(image=images), facts)
    search = near.search_of(len(facts))
    if search != "none":
        problems += near_duplicates(facts)
    if len(facts) > near.INDEXED:
        report.notes.append(NEAR_NOTES[search])
    report.notes += text_notes(table)
    known = {*CORE, *finding_columns(table), *side_columns(table)}
    extra = [column for column in table.columns if column not in known]
    if extra:
        report.notes.append(f"columns that are not read: {', '.join(extra)}")
    for problem in sorted(problems, key=lambda problem: problem.row):
        report.problems.setdefault(problem.kind, []).append(problem)
    report.statistics = statistics(parts, facts) | texts
    return report


def look(path: str) -> ImageFacts:
    """Read one image and measure it; a file that cannot be read is a fact, not an exception."""
    if not Path(path).is_file():
        return ImageFacts(error=f"{path}: no such image file", missing=True)
    try:
        pixels = read_image(path)
    except UserError as error:
        return ImageFacts(error=str(error))
    low, high = np.percentile(pixels, [1, 99])
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE or high - low < MIN_RANGE:
        symmetry = contrast = 1.0  # no anatomy to judge
        bits = b""
    else:
        symmetry, contrast = frontal_measures(pixels)
        bits = difference_hash(pixels)
    return ImageFacts(
        width=width,
        height=height,
        grey_range=float(high - low),
        colour=_colour(path),
        symmetry=symmetry,
        contrast=contrast,
        # Of the pixels, so that a copy saved again without loss is found too.
        digest=sha256(f"{width}x{height}:".encode() + pixels.tobytes()),
        bits=bits,
    )


def frontal_measures(pixels: np.ndarray) -> tuple[float, float]:
    """Two rough signs of a frontal chest film, from the image at 32 x 32, standardised.

    Returns:
        Symmetry: correlation with the mirrored image. Contrast: how much brighter the middle third's core
        (spine and heart) is than the darker-by-less of the two lungs, in standard deviations, in the rows
        from a quarter to five eighths.

    With this module's limits (0.0 and -0.3) they flag 3 % of the films in openchest (all frontal: tilted,
    pale or off-centre ones, and white-out lungs), and over 95 % (nih128) or 74 % (cxr320) of the same films
    turned by 90 degrees. They know nothing of anatomy: a warning is a reason to look, no more.
    """
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    standard = (small - small.mean()) / (small.std() + 1e-6)
    symmetry = float((standard * standard[:, ::-1]).mean())
    middle = standard[8:20]
    lungs = max(middle[:, 6:12].mean(), middle[:, 20:26].mean())
    return symmetry, float(middle[:, 14:18].mean() - lungs)


def difference_hash(pixels: np.ndarray) -> bytes:
    """32 bytes: whether each cell of a 16 x 17 thumbnail is brighter than its right neighbour."""
    size = (HASH_SIDE + 1, HASH_SIDE)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, :-1] > small[:, 1:]).tobytes()


def _colour(path: str) -> float:
    """Mean distance between colour channels; 0 for grey files and DICOM."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA", "P", "CMYK"):
                return 0.0
            image.thumbnail((256, 256))
            channels = np.asarray(image.convert("RGB"), dtype=np.int16)
    except OSError:  # DICOM, which Pillow does not know; read_image has read it
        return 0.0
    return float((channels.max(axis=2) - channels.min(axis=2)).mean())


def image_problems(fact: ImageFacts) -> list[tuple[str, str]]:
    """(kind, message) for everything that one image shows by itself."""
    if fact.error:
        return [("image file missing" if fact.missing else "unreadable image", fact.error)]
    found = []
    if min(fact.width, fact.height) < MIN_SIDE:
        found.append(("image too small", f"{fact.width} x {fact.height} pixels, fewer than {MIN_SIDE}"))
    elif fact.grey_range < MIN_RANGE:
        found.append(("near-constant image", f"grey levels span only {fact.grey_range:.0f} of 255"))
    aspect = max(fact.width, fact.height) / min(fact.width, fact.height)
    if aspect > MAX_ASPECT:
        found.append(("does not look frontal", f"sides {fact.width} x {fact.height} are {aspect:.1f} to 1"))
    elif fact.symmetry < MIN_SYMMETRY or fact.contrast < MIN_CONTRAST:
        found.append(("does not look frontal", f"symmetry {fact.symmetry:.2f}, centre contrast {fact.contrast:.2f}"))
    if fact.colour > MAX_COLOUR:
        found.append(("colour image", f"colour channels differ by {fact.colour:.0f} grey levels on average"))
    return found


def duplicates(facts: list[ImageFacts], splits: list[str]) -> list[Problem]:
    """Rows whose pixels equal those of an earlier row; worse where the splits differ."""
    first: dict[str, int] = {}
    problems = []
    for index, fact in enumerate(facts):
        if not fact.digest or not fact.bits:  # black images equal each other and are named as black
            continue
        earlier = first.setdefault(fact.digest, index)
        if earlier != index:
            same = splits[earlier] == splits[index]
            kind = "same image twice" if same else "same image in two splits"
            message = f"same pixels as row {earlier + 1}" + ("" if same else f" ({splits[earlier]})")
            problems.append(Problem(index + 1, kind, message))
    return problems


def near_duplicates(facts: list[ImageFacts]) -> list[Problem]:
    """Rows whose 256-bit difference hash is within ``NEAR_BITS`` of an earlier row's, equal pixels aside.

    Finds the same film at another size or compression: in openchest 492 of the 521 films that are in both
    folders, and nothing else. That is often intended, so it is a note.
    """
    rows = [index for index, fact in enumerate(facts) if fact.bits]
    if len(rows) < 2:
        return []
    packed = np.frombuffer(b"".join(facts[row].bits for row in rows), dtype=np.uint8).reshape(-1, HASH_SIDE**2 // 8)
    nearest, differing = near.nearest_earlier(packed, NEAR_BITS, search=near.search_of(len(facts)))
    problems = []
    for position in np.flatnonzero(nearest >= 0).tolist():
        row, other = rows[position], rows[nearest[position]]
        if facts[row].digest != facts[other].digest:
            message = f"like row {other + 1}: {differing[position]} of {HASH_SIDE**2} hash bits differ"
            problems.append(Problem(row + 1, "near-duplicate image", message))
    return problems


def _text_and_label_problems(table: pd.DataFrame, max_words: int) -> list[Problem]:
    problems = []
    for index, text in enumerate(table["text"]):
        words = len(text.split())
        if words > max_words:
            problems.append(Problem(index + 1, "over-long text", f"{words} words, more than {max_words}"))
    present = table[finding_columns(table)].isin(["1", "1.0"])
    if "No Finding" in present.columns:
        others = present.drop(columns="No Finding")
        for index in present.index[present["No Finding"] & others.any(axis=1)]:
            named = ", ".join(others.columns[others.loc[index]])
            problems.append(Problem(index + 1, "contradicting labels", f"No Finding is 1, and so is {named}"))
    return problems


def parts_of(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All rows, and the rows of each split that has some."""
    splits = [split for split in SPLITS if (table["split"] == split).any()]
    return {"all": table} | {split: table[table["split"] == split] for split in splits}


def statistics(parts: dict[str, pd.DataFrame], facts: list[ImageFacts]) -> dict[str, pd.DataFrame]:
    """Tables of images and findings for the page: title -> table, first column the row names; parts as ``parts_of``."""
    table = parts["all"]

    def by_split(values: dict[str, pd.Series]) -> pd.DataFrame:
        rows = [
            {"": name, **{part: int(mask.loc[rows.index].sum()) for part, rows in parts.items()}}
            for name, mask in values.items()
        ]
        return pd.DataFrame(rows)

    everything = pd.Series(True, index=table.index)
    groups = {"images": everything}
    for column in ("view", "sex", "source", "licence"):
        for value in sorted(set(table[column])):
            groups[f"{column}: {value or 'blank'}"] = table[column] == value
    age = pd.to_numeric(table["age"], errors="coerce")
    for low, high in ((0, 2), (2, 13), (13, 18), (18, 40), (40, 65), (65, 200)):
        groups[f"age {low} to {high - 1}" if high < 200 else f"age {low} and older"] = age.between(
            low, high, inclusive="left"
        )
    groups["age: blank"] = table["age"] == ""
    overview = by_split(groups)
    patients = {part: rows.loc[rows["patient_id"] != "", "patient_id"].nunique() for part, rows in parts.items()}
    overview = pd.concat(
        [overview.iloc[:1], pd.DataFrame([{"": "patients", **patients}]), overview.iloc[1:]],
        ignore_index=True,
    )
    labels = pd.DataFrame(
        [
            {
                "": name,
                **{f"1 in {part}": int(rows[name].isin(["1", "1.0"]).sum()) for part, rows in parts.items()},
                "0": int(table[name].isin(["0", "0.0"]).sum()),
                "unknown": int((table[name] == "").sum()),
                **{
                    side: int((table[name + SIDE_SUFFIX] == side).sum()) if name + SIDE_SUFFIX in table.columns else 0
                    for side in SIDES
                },
            }
            for name in finding_columns(table)
        ]
    )
    sizes = Counter(f"{fact.width} x {fact.height}" for fact in facts if not fact.error)
    shapes = pd.DataFrame([{"": size, "images": number} for size, number in sizes.most_common(12)])
    return {"Images": overview, "Findings": labels, "Most frequent image sizes": shapes}


def summary_lines(report: Report) -> list[str]:
    """The report in a few lines for the terminal; the page has every problem."""
    lines = [
        f"{report.manifest}: {len(report.table)} images, {report.table['patient_id'].nunique()} patients; "
        f"{report.errors} errors, {report.count('warning')} warnings, {report.count('note')} notes",
        text_line(report.statistics),
    ]
    for severity in ("error", "warning", "note"):
        for kind, found in report.problems.items():
            if severity_of(kind) == severity:
                first = found[0]
                lines.append(f"{severity}: {kind}: {len(found)}, the first in row {first.row}: {first.message}")
    return lines + [f"note: {note}" for note in report.notes]
