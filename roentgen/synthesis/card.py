"""The card of a synthetic data set: ``README.md`` for people and Hugging Face, ``summary.json`` for programs."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChainableUndefined, Environment

from roentgen.files import write_atomic
from roentgen.provenance import __version__
from roentgen.synthesis.plan import AGE_BANDS, band_text
from roentgen.synthesis.writers.parts import LICENCE, WORK, Record, SetInfo, columns

UNKNOWN = "unknown"
SAMPLES = 4  # pictures in the card
TABLE_LINES = 60  # longer tables, and a longer plan, are whole in summary.json only
_SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}
_SIZES |= {"10M<n<100M": 10**8}
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
    header = yaml.safe_dump(_header(info, counts["images"], formats), sort_keys=False, allow_unicode=True)
    text = f"---\n{header}---\n{_text(info, counts, formats, _samples(out))}"
    write_atomic(out / "README.md", text.encode(), scratch=scratch)


def _samples(out: Path) -> list[tuple[str, str]]:
    """Path and prompt of the first images of an image folder."""
    if not (out / "manifest.csv").is_file():
        return []
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return [(row["image"], row["text"]) for row in itertools.islice(csv.DictReader(file), SAMPLES)]


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
        "licenses": [{"id": 1, "name": _licence(info)}],
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


def _licence(info: SetInfo) -> str:
    return LICENCE if info.licence is None else f"{info.licence}, {LICENCE}"


def _header(info: SetInfo, images: int, formats: Sequence[str]) -> dict[str, Any]:
    """The YAML that the Hugging Face hub and ``datasets`` read."""
    header: dict[str, Any] = {
        "pretty_name": info.name,
        "license": info.licence or "other",
        **({} if info.licence else {"license_name": "as-the-model"}),
        "language": ["en"],
        "task_categories": ["text-to-image", "image-classification"],
        "size_categories": [next((name for name, most in _SIZES.items() if images < most), "100M<n<1B")],
        "tags": ["synthetic", "chest-x-ray", "medical", "not-for-diagnosis"],
    }
    if not formats:
        return header
    config: dict[str, Any] = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": _DATA_FILES[formats[0]][1]}],
    }
    header["configs"] = [config]
    kinds = {column.name: column.kind for column in columns(info)}
    if formats[0] == "folder":  # pandas reads blanks among numbers as floats only
        kinds |= {column.name: "float64" for column in columns(info) if column.blank} | {"image": "image"}
        config["features"] = _features(kinds)
    if formats[0] == "webdataset":
        features = _features({"__key__": "string", "__url__": "string", "png": "image", "txt": "string"})
        header["dataset_info"] = {"features": [*features, {"name": "json", "struct": _features(kinds)}]}
    return header


def _features(kinds: Mapping[str, str]) -> list[dict[str, str]]:
    """Types as ``datasets`` has them in a card: from the first rows, which may be blank, it would guess them wrong."""
    return [{"name": name, "dtype": kind} for name, kind in kinds.items()]


def _text(info: SetInfo, counts: Mapping[str, Any], formats: Sequence[str], samples: Sequence[tuple[str, str]]) -> str:
    template = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    # Not HTML: Markdown shows what an escape would spoil, and its tables have their own.
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined, keep_trailing_newline=True)
    jinja.filters["cell"] = _cell
    told = {"images", "drawn", "findings", "rejected", "shortfalls"}
    text = jinja.from_string(template).render(
        info=info, counts=counts, formats=formats, samples=samples, table=_table, block=_block, version=__version__,
        first=_DATA_FILES[formats[0]][0] if formats else "", licence=_licence(info),
        findings={name: counts.get("findings", {}).get(name, 0) for name in info.findings},
        others={name: values for name, values in counts.items() if name not in told and values},
        missing={name: number for name, number in counts.get("shortfalls", {}).items() if number},
    )  # fmt: skip
    return re.sub("\n{3,}", "\n\n", text)


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
