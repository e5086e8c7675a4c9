"""The card of a synthetic data set: ``README.md`` for people and Hugging Face, ``summary.json`` for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from roentgen.files import write_atomic
from roentgen.provenance import __version__
from roentgen.synthesis.plan import AGE_BANDS, band_text
from roentgen.synthesis.writers.parts import LICENCE, WORK, Record, SetInfo, columns

UNKNOWN = "unknown"
TABLE_LINES = 60  # longer tables, and a longer plan, are whole in summary.json only
# What a format leaves in the finished set; the first that is there is what ``datasets.load_dataset(FOLDER)`` opens,
# because one card can name one kind of files only. Parquet first: it has the types.
_DATA_FILES: dict[str, tuple[str, list[str]]] = {
    "parquet": ("parquet", ["parquet/*.parquet"]),
    "folder": ("images", ["metadata.csv", "images/**/*.png"]),
    "webdataset": ("webdataset", ["webdataset/*.tar"]),
    "dicom": ("dicom", ["dicom/index.csv"]),
}


def tally(records: Iterable[Record]) -> dict[str, Any]:
    """Images, and images by finding, side, view, sex, age band and group: plain values, for ``add_tallies``."""
    images = 0
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("findings", "sides", "views", "sexes", "ages", "groups")
    }
    for record in records:
        labels = record.row.labels
        images += 1
        counts["findings"].update(labels.findings)
        counts["sides"].update(f"{name}, {side}" for name, side in labels.sides.items())
        counts["views"][labels.view or UNKNOWN] += 1
        counts["sexes"][labels.sex or UNKNOWN] += 1
        counts["ages"][_age_band(labels.age)] += 1
        counts["groups"][record.row.group] += 1
    return {"images": images, **{name: dict(sorted(counter.items())) for name, counter in counts.items()}}


def add_tallies(tallies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of several ``tally``, whatever their order."""
    total = tally([])
    for one in tallies:
        total["images"] += one["images"]
        for name, counts in one.items():
            if name != "images":
                total[name] = dict(sorted((Counter(total[name]) + Counter(counts)).items()))
    return total


def _age_band(age: float | None) -> str:
    if age is None:
        return UNKNOWN
    youngest, oldest = AGE_BANDS[0][0], AGE_BANDS[-1][1]
    if age < youngest:
        return band_text((0, youngest - 1))
    return next((band_text(band) for band in AGE_BANDS if age < band[1] + 1), f"{oldest + 1}+")


def write_card(out: Path, info: SetInfo, counts: Mapping[str, Any]) -> None:
    """Write ``README.md`` and ``summary.json`` beside the finished formats in ``out``.

    Args:
        counts: what ``tally`` gives, ``images`` of it at least, and whatever else is known as numbers or as mappings
            from names to numbers: ``asked`` (by group), ``drawn`` (images generated), ``rejected`` (by stage of the
            filter), ``shortfalls`` (by group). All of it goes into both files.
    """
    formats = [name for name, (folder, _) in _DATA_FILES.items() if (out / folder).is_dir()]
    scratch = out / WORK / "scratch"
    summary = json.dumps(_summary(info, counts, formats), indent=1, ensure_ascii=False) + "\n"
    write_atomic(out / "summary.json", summary.encode(), scratch=scratch)
    header = yaml.safe_dump(_header(info, formats), sort_keys=False, allow_unicode=True)
    write_atomic(out / "README.md", f"---\n{header}---\n{_text(info, counts, formats)}".encode(), scratch=scratch)


def _summary(info: SetInfo, counts: Mapping[str, Any], formats: Sequence[str]) -> dict[str, Any]:
    """COCO's sections, with numbers of images instead of the images."""
    found = counts.get("findings", {})
    return {
        "info": {
            "description": f"{info.name}: synthetic chest X-rays, of no patient",
            "contributor": f"roentgen {__version__}",
            "synthetic": True,
            "use": "research only, not for diagnosis",
            "model": dict(info.model),
            "command": info.command,
            "formats": sorted(formats),
        },
        "licenses": [{"id": 1, "name": LICENCE}],
        "categories": [
            {"id": number, "name": name, "supercategory": "finding", "images": found.get(name, 0)}
            for number, name in enumerate(info.findings, start=1)
        ],
        "images": counts["images"],
        "asked_images": info.rows,
        "counts": {name: value for name, value in counts.items() if name != "images"},
        "filter": info.filter,
        "plan": info.plan,
    }


def _header(info: SetInfo, formats: Sequence[str]) -> dict[str, Any]:
    """The YAML that the Hugging Face hub and ``datasets`` read."""
    header: dict[str, Any] = {
        "pretty_name": info.name,
        "license": "other",
        "license_name": "as-the-model",
        "tags": ["synthetic", "chest-x-ray", "medical", "not-for-diagnosis"],
    }
    if formats:
        config: dict[str, Any] = {
            "config_name": "default",
            "data_files": [{"split": "train", "path": _DATA_FILES[formats[0]][1]}],
        }
        if formats[0] == "folder":
            config["features"] = _csv_features(info)
        header["configs"] = [config]
    return header


def _csv_features(info: SetInfo) -> list[dict[str, str]]:
    """Types of ``metadata.csv``: from a piece of the table, which may be blank, ``datasets`` would guess them wrong."""
    # pandas reads blanks among numbers as floats only.
    kinds = {column.name: "float64" if column.blank else column.kind for column in columns(info)}
    return [{"name": name, "dtype": kind} for name, kind in (kinds | {"image": "image"}).items()]


def _text(info: SetInfo, counts: Mapping[str, Any], formats: Sequence[str]) -> str:
    images = counts["images"]
    parts = [
        f"# {info.name}: synthetic chest X-rays",
        "**Every image of this set is synthetic: made from text by a model, of no patient. For research only; not for "
        "diagnosis, and not for any decision about a patient.** "
        f"It has {images:,} images of the {info.rows:,} that its plan asks for.",
        "## Load it",
        *_load(formats),
        "## The model",
        _table(("setting", "value"), info.model),
        f"Made by roentgen {__version__} with",
        f"    {info.command}",
        "## The plan",
        _block(info.plan),
        "## The filter",
        *_filter(info, counts),
        "## What it holds",
        *_counts(info, counts),
        "## Labels",
        _LABELS,
        "## Known limits",
        _LIMITS,
        "## Licence",
        f"Licence: {LICENCE}.",
        "## Check the files",
        "    sha256sum --check --quiet SHA256SUMS",
    ]
    return "\n\n".join(parts) + "\n"


def _load(formats: Sequence[str]) -> list[str]:
    parts = [text for name, text in _LOAD.items() if name in formats]
    if formats and formats[0] != "dicom":  # of which ``datasets`` would give the table only
        parts.insert(0, _LOAD_DATASETS.format(files=_DATA_FILES[formats[0]][0]))
    return parts


def _filter(info: SetInfo, counts: Mapping[str, Any]) -> list[str]:
    if info.filter is None:
        return ["No filter: every image that the model drew was kept, whatever it shows."]
    rejected = counts.get("rejected", {})
    parts = ["Stages, with their thresholds:", _block(info.filter)]
    if "drawn" in counts:
        parts.append(
            f"Drawn {counts['drawn']:,}, kept {counts['images']:,}; each rejected image was drawn again with the next "
            "seed, up to the plan's limit."
        )
    parts.append(_table(("stage", "rejected"), rejected) if rejected else "Nothing was rejected.")
    return parts


def _counts(info: SetInfo, counts: Mapping[str, Any]) -> list[str]:
    findings = {name: counts.get("findings", {}).get(name, 0) for name in info.findings}
    parts = [_table(("finding", "images"), findings)]
    parts.append("An image of two findings counts for both.")
    told = {"images", "drawn", "findings", "rejected", "shortfalls"}
    for name, values in counts.items():
        if name in told:
            continue
        if not isinstance(values, Mapping):
            parts.append(f"{name.capitalize()}: {values}.")
        elif values:
            parts.append(_table((name, "images"), values))
    missing = {name: number for name, number in counts.get("shortfalls", {}).items() if number}
    if missing:
        parts += ["**Short of the plan**, as too many of their images were rejected:", _table(("", "missing"), missing)]
    elif counts["images"] == info.rows:
        parts.append("Nothing is missing: the plan's counts are reached.")
    else:
        parts.append(f"**Short of the plan** by {info.rows - counts['images']:,} images.")
    return parts


def _table(header: tuple[str, str], values: Mapping[str, Any]) -> str:
    right = ":" if all(isinstance(value, int) for value in values.values()) else "-"
    lines = [f"| {header[0]} | {header[1]} |", f"|---|--{right}|"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in list(values.items())[:TABLE_LINES]]
    if len(values) > TABLE_LINES:
        lines.append(f"| ... and {len(values) - TABLE_LINES:,} more, see `summary.json` | |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", r"\|").replace("\n", " ")


def _block(values: Mapping[str, Any]) -> str:
    """Plain values as YAML in a fence; the end of long ones is left to ``summary.json``."""
    lines = yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True).splitlines()
    if len(lines) > TABLE_LINES:
        lines = [*lines[:TABLE_LINES], f"# ... and {len(lines) - TABLE_LINES:,} more lines, see summary.json"]
    return "```yaml\n" + "\n".join(lines) + "\n```"


_LOAD_DATASETS = """Hugging Face `datasets`, from the files in `{files}`:

```python
import datasets

folder = "path/of/this/folder"
images = datasets.load_dataset(folder, split="train")
print(len(images), images[0])
```"""

_LOAD = {
    "folder": """torchxrayvision, whose class for NIH's layout counts what is not asked for as absent:

```python
import torchxrayvision as xrv

folder = "path/of/this/folder"
images = xrv.datasets.NIH_Dataset(
    imgpath=f"{folder}/images", csvpath=f"{folder}/Data_Entry_synthetic.csv", views=["*"]
)
print(len(images), images[0]["img"].shape, images[0]["lab"])
```

roentgen itself: `manifest.csv` goes wherever a manifest is asked for.

```python
from roentgen.data.manifest import read_manifest

folder = "path/of/this/folder"
table = read_manifest(f"{folder}/manifest.csv")
print(table[["image", "text", "seed"]].head())
```""",
    "webdataset": """webdataset, or `datasets.load_dataset("webdataset", data_files=...)`. A shard in which nothing
was kept has no file, so take the names from the folder. In the JSON, labels and age are text: "1", "0", or "" for
unknown.

```python
from pathlib import Path

import webdataset

folder = "path/of/this/folder"
tars = sorted(str(path) for path in Path(folder, "webdataset").glob("*.tar"))
for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("l8"):
    print(sample["png"].shape, sample["txt"], sample["json"]["seed"])
```""",
    "dicom": """pydicom; `dicom/index.csv` lists image, report and labels, and is a manifest of roentgen too:

```python
from pathlib import Path

import pandas
import pydicom

folder = "path/of/this/folder"
for row in pandas.read_csv(Path(folder, "dicom", "index.csv")).itertuples():
    image = pydicom.dcmread(Path(folder, "dicom", row.image))
    report = pydicom.dcmread(Path(folder, "dicom", row.report))
    print(image.PatientID, image.pixel_array.shape, report.ContentSequence[-1].ContentSequence[0].TextValue)
```""",
}

_LABELS = """A label says what the prompt asked for, not what a reader saw: 1 asked for, 0 known to be absent, blank
unknown. `No Finding` is 0 where any other finding is asked for. `<Finding>_side` is the patient's side; the patient's
left is on the image's right. `slot` is the place in the plan, `attempt` how many images of it were rejected before,
`scores` what the filter measured. The same model, prompt, seed, steps, guidance and sampler give the same image."""

_LIMITS = """- A generator draws what it has learned: its errors, gaps and biases are in the images, and a filter that
  is trained on similar data shares some of them.
- The labels are not a radiologist's. Do not test with this set; train with it, and test on real images of patients
  that neither the generator nor the classifier has seen.
- Words of severity and size in a prompt need not show in its image.
- A filter for near-copies misses some: this set is no proof that no training image can be recognised.
- Patients are made up, one an image, and named by the slot alone: rename them before two such sets are joined."""
