"""The card of a synthetic set: what it counts, its licence, and the code that it shows."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from records import INFO, SHARDS, make_record, write_set

from roentgen.models.card import model_licence
from roentgen.models.hub import MINI
from roentgen.prompts import Labels
from roentgen.synthesis.card import tally, write_card
from roentgen.synthesis.writers import FORMATS

RECORDS = [record for shard in SHARDS for record in shard]


pytestmark = pytest.mark.usefixtures("own_cache")


def test_card_counts(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["images"] == len(RECORDS) == 7 and summary["asked_images"] == 9
    assert {one["name"]: one["images"] for one in summary["categories"]} == {
        **{"No Finding": 2, "COVID-19": 1, "Effusion": 3, "Edema": 1, "Lung Opacity": 0}
    }
    assert summary["counts"]["views"] == {"AP": 2, "PA": 2, "unknown": 3}
    assert summary["counts"]["sexes"] == {"F": 2, "M": 1, "unknown": 4}
    assert summary["counts"]["ages"] == {"0-17": 1, "40-59": 2, "unknown": 4}
    assert summary["counts"]["groups"] == {"COVID-19": 1, "Effusion": 3, "No Finding": 2, "other": 1}
    assert summary["counts"]["sides"] == {"Effusion, bilateral": 1, "Effusion, left": 2}
    assert summary["filter"] == INFO.filter and summary["plan"] == INFO.plan
    text = (whole / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "other" and "synthetic" in header["tags"]
    assert header["task_categories"] == ["text-to-image", "image-classification"]
    assert header["size_categories"] == ["n<1K"]
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4 and all((whole / picture).is_file() for picture in pictures)
    for piece in (
        *("of no patient", "not for diagnosis", "0123456789012345", INFO.command, "threshold: 0.321"),
        *("| classifier | 5 |", "Drawn 12, kept 7", "| Effusion | 2 |", "7 images of the 9", "| Effusion | 3 |"),
    ):
        assert piece.lower() in text.lower(), piece
    assert "| Edema | 0 |" not in text  # a shortfall of none is none
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_age_bands():
    ages = [0, 17.9, 18, 39.5, 40, 79.9, 80, 100]
    record = make_record(0)
    made = [replace(record, row=replace(record.row, labels=Labels(age=age))) for age in ages]
    assert tally(made)["ages"] == {"0-17": 2, "18-39": 2, "40-59": 1, "60-79": 1, "80+": 2}


def test_card_of_a_model_with_a_licence(tmp_path):
    assert model_licence(MINI) == "apache-2.0" and model_licence(tmp_path) is None
    write_card(tmp_path, replace(INFO, licence="apache-2.0"), tally(RECORDS))
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert "Licence: apache-2.0, as the model that made it" in text and "@software{roentgen" in text
    assert json.loads((tmp_path / "summary.json").read_text())["licenses"][0]["name"].startswith("apache-2.0")


def test_card_without_filter(tmp_path):
    write_card(tmp_path, replace(INFO, filter=None, rows=7), tally(RECORDS))
    text = (tmp_path / "README.md").read_text()
    assert "No filter" in text and "the plan's counts are reached" in text


@pytest.mark.parametrize(
    ("formats", "number"),
    [(tuple(FORMATS), 5), (("folder",), 3), (("parquet",), 1), (("webdataset",), 2), (("dicom",), 1)],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_cards_code_runs(tmp_path, capsys, formats, number):
    out = write_set(tmp_path / "set", formats=formats)
    text = (out / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text.replace("path/of/this/folder", str(out)), re.S)
    assert len(blocks) == number
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        assert capsys.readouterr().out.strip()
