"""Choose ``data/sample``, the images that the repository holds, out of openchest.

    python train/data_sample.py --root OPENCHEST --out data/sample

Seven of ten images are from ``train``, one from ``val``, two from ``test``, in openchest's own splits. Within
a split, images are taken one by one for the finding that has fewest so far (No Finding counts a third),
images with a known side and of the rarer view first, one a patient as long as there are others. Images that
``roentgen data check`` would name are left out, and reports that `mini` does not read whole give way to texts of their
labels. Files are copied byte for byte, with a manifest and licences.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd

from roentgen.config import Short, parse_settings
from roentgen.data import assemble
from roentgen.data.check import ImageFacts, image_problems, look
from roentgen.data.manifest import finding_columns, side_columns
from roentgen.data.sources.openchest import read_openchest
from roentgen.errors import UserError, run
from roentgen.files import sha256
from roentgen.generators.generate import load_model, reads
from roentgen.prompts import MAX_WORDS

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
IMAGES = {"nih128": 460, "cxr320": 235}
NO_FINDING_WEIGHT = 1 / 3  # of an image's count, so that three times as many are taken as of any finding
MAX_BYTES = 9_000_000

LICENCES = """# Licences and attribution of the sample images

Every image is named with its source and licence in `manifest.csv`. None is under a credentialed or
no-derivatives licence. Images are unchanged copies of openchest's files, which are downsampled from the
sources' own.

| source | licence | images |
|---|---|---|
{rows}

- **NIH ChestX-ray14**: use unrestricted, with acknowledgement of the NIH Clinical Center and citation of
  Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017.
- **Kermany 2018 paediatric**: Kermany et al., "Identifying Medical Diagnoses and Treatable Diseases by
  Image-Based Deep Learning", Cell 2018; CC BY 4.0. Patients of 1 to 5 years (age 3 in the manifest is the
  middle of that range); the view is assumed AP.
- **Hannover COVID-19 Image Repository**: Winther et al., "COVID-19 Image Repository", Hannover Medical
  School; CC BY 3.0.
- **ieee8023/covid-chestxray-dataset**: Cohen et al., "COVID-19 Image Data Collection", 2020; per image, only
  images marked CC BY, CC BY-SA or free for everyone.
- **Boxes**: `Lung Opacity` and {sided} images' sides come from boxes by NIH or by the RSNA Pneumonia
  Detection Challenge 2018: Shih et al., "Augmenting the National Institutes of Health Chest Radiograph
  Dataset with Expert Annotations of Possible Pneumonia", Radiology: Artificial Intelligence 2019; RSNA's
  terms of use and attribution apply.

Texts in the manifest are composed from the labels by `roentgen.prompts.compose`, except for {reports}
image(s) whose report came with the image. NIH's labels were mined from reports by the authors of that set
and are noisy.
Research only; not for diagnosis.
"""

README = """# Sample data

{images} openly licensed frontal chest X-rays ({size:.1f} MB) for the quick start, the tests and a first
fine-tuning: {splits}.
`manifest.csv` is a roentgen manifest; sources, licences and attribution are in [LICENCES.md](LICENCES.md).
Splits are by patient. The shipped model was trained on openchest's `train` split, never on `test`.

Look at it with `roentgen data check data/sample/manifest.csv --out out/`.

Made from openchest by

    python train/data_sample.py --root OPENCHEST --out data/sample

which takes images for the rarest finding first, so findings are far more frequent here than in the source:

| finding | train | val | test |
|---|---|---|---|
{findings}

Images that `roentgen data check` would name (not frontal-looking, low contrast) were left out.
"""


def choose(table: pd.DataFrame, *, images: int) -> list[int]:
    """Index labels of the chosen rows, ``images`` of them shared over the splits by ``SHARES``."""
    findings, sides = finding_columns(table), side_columns(table)
    present = {row: [name for name in findings if table.at[row, name] == 1] for row in table.index}
    sided = {row: any(table.at[row, column] for column in sides) for row in table.index}
    draw = {row: sha256(Path(table.at[row, "image"]).name) for row in table.index}
    chosen: list[int] = []
    for split, share in SHARES.items():
        left = set(table.index[table["split"] == split])
        counts: dict[str, float] = defaultdict(float)
        views: Counter[str] = Counter()
        patients: Counter[str] = Counter()
        for _ in range(round(images * share)):
            wanted = {name for row in left for name in present[row]}
            if not wanted:
                break
            target = min(sorted(wanted), key=lambda name: counts[name])
            row = min(
                (row for row in left if target in present[row]),
                key=lambda row: (
                    patients[table.at[row, "patient_id"]],
                    not sided[row] if target != "No Finding" else False,
                    views[table.at[row, "view"]],
                    draw[row],
                ),
            )
            left.remove(row)
            chosen.append(row)
            for name in present[row]:
                counts[name] += NO_FINDING_WEIGHT if name == "No Finding" else 1
            views[table.at[row, "view"]] += 1
            patients[table.at[row, "patient_id"]] += 1
    return chosen


@dataclass(frozen=True)
class Settings:
    """Settings of the sample."""

    root: Annotated[Path, "openchest, with nih128/ and cxr320/"]
    out: Annotated[Path, Short("-o"), "folder to write; it must not hold a manifest"]
    sides: Annotated[Path | None, "CSV of weak side labels, as in `roentgen data prepare`"] = None


def main(argv: Sequence[str] | None = None) -> int:
    """Choose, copy and describe the sample; returns the exit code."""
    s = parse_settings(Settings, argv, prog="train/data_sample.py", about=__doc__)
    if (s.out / "manifest.csv").exists():
        raise UserError(f"--out {s.out} holds a manifest already; remove that folder first")

    table, _ = read_openchest(s.root)
    if s.sides:
        table, _ = assemble.merge_sides(table, s.sides)
    facts: list[ImageFacts] = assemble.map_images(look, table["image"], desc="reading images")
    table = table[[not image_problems(fact) for fact in facts]]
    from_folder = table["image"].map(lambda image: Path(image).parents[1].name)
    rows: list[int] = []
    taken: set[str] = set()
    for folder in IMAGES:
        # The same patient is in both folders at times; the sample shows each once.
        pool = table[(from_folder == folder) & ~table["patient_id"].isin(taken)]
        rows += choose(pool, images=IMAGES[folder])
        taken |= set(table.loc[rows, "patient_id"])
    sample = table.loc[sorted(rows)].reset_index(drop=True)
    size = sum(Path(image).stat().st_size for image in sample["image"])
    if size > MAX_BYTES:
        raise UserError(f"the chosen images have {size:,} bytes, more than {MAX_BYTES:,}; lower IMAGES")

    given = sample["text"]
    model = load_model("mini", device="cpu")
    sample["text"] = given.where([reads(model, text) for text in given], "")  # a quick start that cuts no text
    sample = assemble.compose_texts(sample, max_words=MAX_WORDS)
    reports = int((sample["text"] == given).sum())
    sample = assemble.copy_images(sample, s.out, size=None)
    sided = int((sample[side_columns(sample)] != "").any(axis=1).sum())
    counts = sample.groupby(["source", "licence"]).size()
    lines = [f"| {source} | {licence} | {count} |" for (source, licence), count in counts.items()]
    (s.out / "LICENCES.md").write_text(
        LICENCES.format(rows="\n".join(lines), sided=sided, reports=reports), encoding="utf-8"
    )
    splits = ", ".join(f"{(sample['split'] == split).sum()} {split}" for split in SHARES)
    findings = [
        f"| {name} | " + " | ".join(str(int((part[name] == 1).sum())) for part in by_split) + " |"
        for by_split in [[sample[sample["split"] == split] for split in SHARES]]
        for name in finding_columns(sample)
    ]
    (s.out / "README.md").write_text(
        README.format(images=len(sample), size=size / 1e6, splits=splits, findings="\n".join(findings)),
        encoding="utf-8",
    )
    assemble.validate_and_write(sample, s.out / "manifest.csv")  # last, so that it says the rest is there
    print(s.out / "manifest.csv")
    print(f"{len(sample)} images, {size / 1e6:.2f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, prog="train/data_sample.py"))
