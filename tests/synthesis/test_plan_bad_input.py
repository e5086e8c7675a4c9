"""Bad plans: each gives one sentence that names the flag, file or entry and the mend."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from roentgen.errors import UserError
from roentgen.prompts import NO_FINDING
from roentgen.synthesis.plan import MAX_ROWS
from roentgen.synthesis.plan_file import read_plan
from roentgen.synthesis.sources import resolve_plan


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three train rows, all with a mass, two with effusion."""
    path = tmp_path / "m.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "patient_id", "split", NO_FINDING, "Effusion", "Mass"])
        writer.writerows([f"{n}.png", "", n, "train", 0, int(n > 0), 1] for n in range(3))
    return path


def group(**keys: Any) -> dict[str, Any]:
    return {"groups": [{"findings": ["Effusion"], "count": 1, **keys}]}


BAD_SETTINGS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "--per-finding", "exactly one"),
    ({"per_finding": 1, "like": "m.csv"}, "--per-finding and --like", "exactly one"),
    ({"per_finding": 1, "count": 5}, "--count", "--like"),
    ({"per_finding": 1, "num_images": 2}, "--num-images", "--prompts"),
    ({"per_finding": 0}, "--per-finding", "at least 1"),
    ({"per_finding": {"Edema": -3}}, "--per-finding, Edema", "at least 1"),
    ({"per_finding": {"Edema": 2.5}}, "--per-finding, Edema", "whole number"),
    ({"per_finding": {}}, "--per-finding", "name at least one"),
    ({"per_finding": {"Oedema": 3}}, "--per-finding", "did you mean 'Edema'"),
    ({"per_finding": 1, "findings": ["Efusion"]}, "--findings", "did you mean 'Effusion'"),
    ({"per_finding": 1, "findings": "Effusion,Effusion"}, "--findings", "twice"),
    ({"per_finding": 1, "findings": [3]}, "--findings", "unknown finding 3"),
    ({"per_finding": {"Edema": 1}, "findings": ["Mass"]}, "--findings", "drop one"),
    ({"per_finding": 10**8}, "--per-finding", f"{MAX_ROWS:,}"),
    ({"per_finding": 1, "demographics": "race"}, "--demographics race", "sex, view, age"),
    ({"per_finding": 1, "max_tries": 0}, "--max-tries", "at least 1"),
    ({"per_finding": 1, "shard_size": 0}, "--shard-size", "at least 1"),
    ({"per_finding": 1, "seed": -1}, "--seed", "from 0"),
    ({"per_finding": 1, "seed": 2**63 - 2}, "--seed", "2^63"),
    ({"per_finding": 1, "steps": 0}, "--steps", "at least 1"),
    ({"per_finding": 1, "sampler": "euler"}, "--sampler", "dpm++"),
    ({"per_finding": 1, "name": "a/b"}, "--name", "slashes"),
    ({"like": "none.csv"}, "none.csv", "does not exist"),
    ({"groups": []}, "groups", "at least one entry"),
    ({"groups": ["Effusion"]}, "groups, entry 1", "expected keys"),
    ({"groups": [{"findings": ["Mass"], "count": 1}] * 2}, "groups, entry 2", "entry 1"),
    ({"groups": [{"findings": ["Mass"]}]}, "groups, entry 1", "'count' is missing"),
    ({"groups": [{"count": 1}]}, "groups, entry 1", "'findings' is missing"),
    (group(count=0), "groups, entry 1", "at least 1"),
    (group(count=True), "groups, entry 1", "a whole number"),
    (group(findings=[]), "groups, entry 1", "name at least one"),
    (group(findings=["Pleural effusion"]), "groups, entry 1", "did you mean 'Effusion'"),
    (group(findings=[NO_FINDING, "Mass"]), "groups, entry 1", "contradict"),
    (group(side="left"), "groups, entry 1", "did you mean 'sides'"),
    (group(sides={"Mass": "left"}), "groups, entry 1", "not asked for"),
    (group(sides={"Effusion": "up"}), "groups, entry 1", "left, right, bilateral"),
    (group(findings=["Edema"], sides={"Edema": "left"}), "groups, entry 1", "no side"),
    (group(view="lateral"), "groups, entry 1", "PA or AP"),
    (group(sex="female"), "groups, entry 1", "M or F"),
    (group(age=-1), "groups, entry 1", "0 to 120"),
    (group(age=float("nan")), "groups, entry 1", "0 to 120"),
    (group(age=[60, 40]), "groups, entry 1", "lower one first"),
    (group(age=[60]), "groups, entry 1", "first, last"),
    (group(age=[60, 130]), "groups, entry 1", "0 to 120"),
    (group(age="old"), "groups, entry 1", "a number or a list"),
    (group(prompt="left mass"), "groups, entry 1", "'Mass'"),
    (group(prompt="no effusion"), "groups, entry 1", "denies 'Effusion'"),
    (group(prompt="normal chest"), "groups, entry 1", "'No Finding'"),
    (group(prompt="right effusion", sides={"Effusion": "left"}), "groups, entry 1", "right in the prompt"),
    (group(prompt="effusion", sides={"Effusion": "left"}), "groups, entry 1", "without a side"),
    (group(prompt="AP view, effusion", view="PA"), "groups, entry 1", "view is PA"),
    (group(prompt="woman with effusion", sex="M"), "groups, entry 1", "sex is M"),
    (group(prompt="50 year old man, effusion", age=60), "groups, entry 1", "age is 60"),
    (group(prompt="effusion", age=[50, 60]), "groups, entry 1", "50-60"),
    (group(prompt="..."), "groups, entry 1", "no words"),
]


@pytest.mark.parametrize(("settings", "where", "mend"), BAD_SETTINGS)
def test_a_bad_setting_gives_one_sentence(settings: dict[str, Any], where: str, mend: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_plan(**settings)
    message = str(caught.value)
    assert where in message and mend in message and "\n" not in message, message


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"like": "M", "split": "val"}, "split val"),
        ({"like": "M", "split": "all"}, "--split all"),
        ({"like": "M", "count": 0}, "--count 0"),
        ({"balance": "M", "target": 1}, "nothing is missing"),
        ({"balance": "M", "target": -1}, "--target -1"),
        ({"balance": "M", "by": ["race"]}, "--by race"),
        ({"balance": "M", "findings": [NO_FINDING]}, "--target"),
    ],
)
def test_a_bad_choice_of_a_manifest_gives_one_sentence(manifest: Path, settings: dict[str, Any], mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        resolve_plan(**{key: manifest if value == "M" else value for key, value in settings.items()})


@pytest.mark.parametrize(
    ("content", "mend"),
    [
        ("per_finding: 3\nsead: 1\n", "'sead'; did you mean 'seed'"),
        ("per-finding: 3\n", "'per-finding'; did you mean 'per_finding'"),
        ("per_finding: many\n", "key 'per_finding': expected a whole number or a mapping, got 'many'"),
        ("per_finding: yes\n", "key 'per_finding'"),
        ("per_finding: 1\nseed: 1.5\n", "key 'seed': expected a whole number"),
        ("groups: {findings: [Mass]}\n", "key 'groups': expected a list"),
        ("per_finding: {Edema: 1, Edema: 2}\n", "Edema is given twice"),
        ("seed: 1\nseed: 2\n", "seed is given twice"),
        ("per_finding: [1\n", "not YAML.*line 2"),
        ("- Edema\n", "key: value"),
        ("", "keys and values"),
        ("a: \x00", "not YAML"),
        (b"a: \xff", "UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_plan_file_gives_one_sentence(tmp_path: Path, content: str | bytes | None, mend: str) -> None:
    path = tmp_path / "plan.yaml"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=mend) as caught:
        read_plan(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "mend"),
    [
        ("a,left effusion,Effusion:right,,", "right by its label and left"),
        ("a,left effusion,Edema:left,,", "not asked for|no side"),
        ("a,left effusion and mass,Effusion,,", "says 'Mass'"),
        ("a,effusion,No Finding;Effusion,,", "contradict"),
        ("a,effusion,Effusion,old,", "column 'age'"),
        ("a,effusion,Effusion,150,", "0 to 120"),
        ("a,effusion,Effusion,,3", "clear the column 'seed'"),
        ("a,effusion,Efusion,,", "unknown finding 'Efusion'"),
    ],
)
def test_a_bad_prompt_list_gives_one_sentence(tmp_path: Path, row: str, mend: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"id,prompt,labels,age,seed\n{row}\n")
    with pytest.raises(UserError, match=mend) as caught:
        resolve_plan(prompts=path)
    assert str(path) in str(caught.value)
