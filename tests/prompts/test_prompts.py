"""Prompts: composing, parsing, reading files, and the lists in prompts/."""

from __future__ import annotations

import csv
import json
import os
import random
import re
from pathlib import Path

import pytest

from roentgen.data.prompt_table import read_labelled_prompts, read_prompts
from roentgen.errors import UserError
from roentgen.prompts import (
    FINDINGS,
    NO_FINDING,
    Labels,
    compose,
    labels_from_row,
    lists,
    parse,
    read_labels_text,
    vocabulary,
    words,
)
from roentgen.prompts.vocabulary import NARROWER

LISTS = Path(__file__).parents[2] / "prompts"
NAMES = [name for name in FINDINGS if name != NO_FINDING]


def random_labels(rng: random.Random, most: int = 6) -> Labels:
    """Any labels a manifest row may hold, sides and unknowns included."""
    findings = tuple(rng.sample(NAMES, rng.randint(1, most)))
    if rng.random() < 0.2:
        findings = (NO_FINDING,)
    sides = {
        name: rng.choice(("left", "right", "bilateral"))
        for name in findings
        if FINDINGS[name].can_have_side and rng.random() < 0.6
    }
    age = rng.choice((None, float(rng.randint(1, 95))))
    return Labels(findings, sides, rng.choice((None, "PA", "AP")), rng.choice((None, "M", "F")), age)


def samples(seed: int, n: int, most: int = 6, **options: bool) -> list[tuple[Labels, str]]:
    rng = random.Random(seed)
    return [(labels, compose(labels, rng, **options)) for labels in (random_labels(rng, most) for _ in range(n))]


# --- compose ---------------------------------------------------------------------------------------------


def test_parse_recovers_nothing_that_compose_was_not_told() -> None:
    for labels, text in samples(1, 500):
        back = parse(text)
        assert back.findings and set(back.findings) <= set(labels.findings), text
        assert all(labels.sides.get(name) == side for name, side in back.sides.items()), text
        assert back.view in (None, labels.view) and back.sex in (None, labels.sex), text
        assert back.age in (None, labels.age), text


def test_one_finding_is_always_mentioned() -> None:
    rng = random.Random(2)
    for name in FINDINGS:
        for _ in range(20):
            text = compose(Labels((name,), {}, "PA", "F", 40), rng)
            assert parse(text).findings == (name,), text


def test_complete_text_parses_back_to_the_same_labels() -> None:
    for labels, text in samples(3, 500, most=8, complete=True):
        back = parse(text)
        assert set(back.findings) == set(labels.findings), text
        assert (back.sides, back.view, back.sex, back.age) == (
            labels.sides,
            labels.view,
            labels.sex,
            labels.age,
        ), text


def test_rates_are_those_documented() -> None:
    rng = random.Random(4)
    effusion = Labels(("Effusion",), {"Effusion": "left"}, "PA", "F", 54)
    texts = [compose(effusion, rng) for _ in range(2000)]
    with_side = sum("left" in text.lower() for text in texts) / len(texts)
    bare = sum(parse(text).view is None and "54" not in text and len(text.split()) <= 6 for text in texts) / len(texts)
    sized = sum(bool({"small", "moderate", "large"} & set(words(text))) for text in texts) / len(texts)
    denying = sum(bool({"no", "normal"} & set(words(text))) for text in texts) / len(texts)
    assert 0.81 < with_side < 0.89
    assert 0.33 < bare < 0.55  # the bare finding, and sentences whose other parts were left out
    assert 0.07 < sized < 0.13
    assert 0.03 < denying < 0.1
    three = Labels(("Mass", "Nodule", "Hernia"))
    subset = sum(len(parse(compose(three, rng)).findings) < 3 for _ in range(2000)) / 2000
    assert 0.21 < subset < 0.29


def test_texts_vary_and_are_short() -> None:
    rng = random.Random(5)
    labels = Labels(("Effusion", "Atelectasis"), {"Effusion": "right"}, "AP", "M", 66)
    assert len({compose(labels, rng) for _ in range(300)}) > 200
    everything = Labels(tuple(NAMES), dict.fromkeys(NAMES, "left"), "AP", "M", 66)
    for complete in (False, True):
        for _ in range(50):
            text = compose(everything, rng, complete=complete)
            assert len(text.split()) < 60, text
            if complete:
                assert set(parse(text).findings) == set(NAMES), text


def test_sides_are_said_only_of_findings_that_have_one() -> None:
    said = {"left", "right", "bilateral", "both", "bibasilar"}
    for labels, text in samples(6, 500):
        if not labels.sides:
            assert not said & set(words(text)), text
    rng = random.Random(7)
    for _ in range(200):
        text = compose(Labels(("Cardiomegaly",), {"Cardiomegaly": "left"}), rng)
        assert not said & set(words(text)), text


def test_denied_findings_are_absent_and_do_not_contradict() -> None:
    rng = random.Random(8)
    seen = 0
    for _ in range(4000):
        text = compose(Labels(("Pneumonia",), {}, "PA", "M", 40), rng).lower()
        seen += " no " in f" {text}"
        assert "no focal consolidation" not in text and "consolidation" not in text, text
        assert "no pneumonia" not in text
    assert seen > 50


def test_age_and_sex_words() -> None:
    def people(age: float | None, sex: str | None) -> set[str]:
        rng = random.Random(9)
        return {word for _ in range(300) for word in words(compose(Labels(("Mass",), {}, None, sex, age), rng))}

    assert {"elderly", "81", "woman", "female"} <= people(81, "F")
    assert {"child", "boy"} <= people(5, "M") and "man" not in people(5, "M")
    assert "infant" in people(0.5, "F") and "0" not in people(0.5, "F")
    assert not {"elderly", "child", "infant"} & people(50, "M")
    assert not {"412", "old"} & people(412, "M")  # an error of the source


def test_compose_is_deterministic_and_rejects_unknown_findings() -> None:
    assert samples(10, 20) == samples(10, 20)
    with pytest.raises(ValueError, match="Broken Rib"):
        compose(Labels(("Broken Rib",)), random.Random(0))
    assert compose(Labels(), random.Random(0))  # never an empty text


def test_a_narrower_pneumonia_is_not_called_pneumonia_twice() -> None:
    rng = random.Random(11)
    for narrow in NARROWER["Pneumonia"]:
        for _ in range(50):
            assert "Pneumonia" not in parse(compose(Labels(("Pneumonia", narrow)), rng)).findings


def test_vocabulary_is_exactly_what_compose_emits() -> None:
    emitted = {word for _, text in samples(12, 6000, most=3) for word in words(text)}
    emitted |= {w for _ in range(300) for w in words(compose(Labels(("Mass",), {}, None, "M", 0.5), random.Random(_)))}
    assert emitted <= vocabulary()
    unused = {word for word in vocabulary() - emitted if not word.isdigit()}
    assert not unused
    assert {"small", "moderate", "large", "mild", "severe", "54", "covid"} <= vocabulary()


# --- parse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_synonym_and_plural_is_recognised(name: str) -> None:
    finding = FINDINGS[name]
    for noun in filter(None, finding.synonyms + finding.plurals):
        assert parse(noun).findings == (name,), noun
        assert parse(f"No {noun}.").findings == (), noun
        if finding.can_have_side:
            assert parse(f"Right {noun}").sides == {name: "right"}, noun
            assert parse(f"{noun} on the left").sides == {name: "left"}, noun


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Small left pleural effusion with adjacent atelectasis. Heart size is normal.",
            "Effusion:left;Atelectasis",
        ),
        ("enlarged cardiac silhouette", "Cardiomegaly"),
        ("The heart is mildly enlarged", "Cardiomegaly"),
        ("The heart is not enlarged", ""),
        ("right-sided pneumothorax", "Pneumothorax:right"),
        ("bibasilar atelectasis", "Atelectasis:bilateral"),
        ("Left lower lobe consolidation", "Consolidation:left"),
        ("In the left lung, there is a nodule", "Nodule:left"),
        ("nodule in the right lung and left effusion", "Nodule:right;Effusion:left"),
        ("Right nodule and pleural effusion", "Nodule:right;Effusion"),
        ("Small left and moderate right pleural effusions", "Effusion:bilateral"),
        ("Left greater than right pleural effusions", "Effusion:bilateral"),
        ("left effusion. right effusion", "Effusion:bilateral"),
        ("thickening of the left pleura", "Pleural_Thickening:left"),
        ("Left heart failure with pleural effusion", "Effusion"),
        ("pericardial effusion", ""),
        ("subcutaneous emphysema", ""),
        ("ground-glass opacities in both lungs", "Lung Opacity:bilateral"),
        ("No focal consolidation, effusion or pneumothorax.", ""),
        ("No focal consolidation, pleural effusion, or left pneumothorax.", ""),
        ("no pneumothorax, left pleural effusion", "Effusion:left"),
        ("Cardiomegaly without pulmonary edema", "Cardiomegaly"),
        ("Cardiomegaly but no effusion", "Cardiomegaly"),
        ("No effusion but there is cardiomegaly", "Cardiomegaly"),
        ("Pneumothorax is not seen", ""),
        ("Left effusion, pneumothorax is no longer seen", "Effusion:left"),
        ("No change in left effusion", "Effusion:left"),
        ("There is no evidence of pneumonia", ""),
        ("bacterial pneumonia", "Bacterial Pneumonia"),
        ("COVID 19 pneumonia", "COVID-19"),
        ("no acute cardiopulmonary process", "No Finding"),
        ("No acute cardiopulmonary process. Cardiomegaly.", "Cardiomegaly"),
        ("No finding of pneumothorax", ""),
        ("Normal chest X-ray of a 30 year old man", "No Finding"),
        ("The lungs are clear.", "No Finding"),
        ("The lungs are not clear.", ""),
        ("Normal", "No Finding"),
        ("Heart size is normal.", ""),
        ("a photograph of a cat", ""),
        ("", ""),
    ],
)
def test_free_text(text: str, expected: str) -> None:
    labels = parse(text)
    assert (labels.findings, labels.sides) == read_labels_text(expected)


@pytest.mark.parametrize(
    ("text", "view", "sex", "age"),
    [
        ("PA view. 54-year-old woman. Effusion", "PA", "F", 54),
        ("portable film, 71 yo M", "AP", "M", 71),
        ("AP supine, 8F", "AP", "F", 8),
        ("frontal chest radiograph, 6-month-old boy", None, "M", 0.5),
        ("elderly gentleman", None, "M", None),
        ("nodule of 12 mm", None, None, None),
    ],
)
def test_view_sex_and_age(text: str, view: str | None, sex: str | None, age: float | None) -> None:
    labels = parse(text)
    assert (labels.view, labels.sex, labels.age) == (view, sex, age)


# --- rows of a manifest ----------------------------------------------------------------------------------


def test_labels_from_a_row_of_any_reader() -> None:
    row = {
        "Effusion": 1.0,
        "Effusion_side": "left",
        "Mass": "1",
        "Nodule": 0,
        "Hernia": float("nan"),
        "Edema": "",
    }
    labels = labels_from_row({**row, "No Finding": 1, "view": "PA", "sex": float("nan"), "age": "54.0"})
    assert labels == Labels(("Effusion", "Mass"), {"Effusion": "left"}, "PA", None, 54.0)
    assert labels_from_row({"No Finding": 1}).findings == (NO_FINDING,)
    assert labels_from_row({}) == Labels()


@pytest.mark.parametrize("row", [{"Effusion": 2}, {"view": "lateral"}, {"age": "old"}, {"Mass": 1, "Mass_side": "up"}])
def test_a_wrong_value_names_its_column(row: dict[str, object]) -> None:
    with pytest.raises(UserError, match=list(row)[-1]):
        labels_from_row(row)


# --- files of prompts ------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_three_kinds_of_file(tmp_path: Path) -> None:
    txt = read_prompts(write(tmp_path / "a.txt", "left effusion\ncardiomegaly\n\n"))
    assert [(r.id, r.prompt, r.seed) for r in txt] == [
        ("0001", "left effusion", None),
        ("0002", "cardiomegaly", None),
    ]
    table = read_prompts(write(tmp_path / "a.csv", '\ufeffid,prompt,seed\na,"mass, left",7\nb,nodule,\n'))
    assert [(r.id, r.prompt, r.seed) for r in table] == [("a", "mass, left", 7), ("b", "nodule", None)]
    lines = "\n".join(json.dumps(d) for d in ({"id": 3, "prompt": "mass"}, {"prompt": "ödem", "seed": 1}))
    assert [(r.id, r.prompt, r.seed) for r in read_prompts(write(tmp_path / "a.jsonl", lines))] == [
        ("3", "mass", None),
        ("0002", "ödem", 1),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,text\n1,mass\n", "lacks the column 'prompt' (it has id, text)"),
        ("a.csv", "id,prompt\n1,mass\n2,  \n", "line 3: empty prompt"),
        ("a.csv", "id,prompt,seed\n1,mass,x\n", "line 2: seed 'x'"),
        ("a.csv", "prompt,seed\nmass,-1\n", "seed '-1'"),
        ("a.csv", "prompt,seed\nmass,99999999999999999999\n", "seed"),
        ("a.csv", "id,prompt\n1,mass\n1,nodule\n", "line 3: id '1' was already used in line 2"),
        ("a.csv", "id,prompt\n1,mass, left\n", "line 2: more fields"),
        ("a.csv", "id,prompt\n../1,mass\n", "path separator"),
        ("a.csv", 'id,prompt\n1,"mass', "not valid CSV"),
        ("a.csv", "id,prompt\n", "has no rows; it needs a column 'prompt' and one row a prompt"),
        ("a.csv", "", "it is empty; it needs a column 'prompt'"),
        ("a.txt", "mass\n\nnodule\n", "line 2: empty prompt"),
        ("a.txt", "", "holds no prompt"),
        ("a.txt", b"\xff\xfe\x00m", "not UTF-8"),
        ("a.jsonl", '{"prompt": 5}\n', "line 1: empty prompt"),
        ("a.jsonl", '{"prompt": "mass", "seed": true}\n', "seed True"),
        ("a.jsonl", '{"prompt": "mass"\n', "not valid JSON"),
        ("a.jsonl", '["mass"]\n', "no key 'prompt'"),
        ("a.csv", "id,prompt\n1,mass,\n2,mass, left,\n", "line 3: more fields"),
        ("a.csv", b"id,prompt\n1,\xf6dem\n", "line 2: not UTF-8 text (byte 0xf6"),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000 + "\n", "line 1 is not valid JSON"),
        ("a.jsonl", '{"prompt": "mass", "seed": ' + "9" * 5000 + "}\n", "line 1 is not valid JSON"),
        ("a.docx", "mass", "unknown extension '.docx'"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_prompts(write(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "txt", "jsonl"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"pipe.{ending}")
    with pytest.raises(UserError, match="no regular file"):
        read_prompts(tmp_path / f"pipe.{ending}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Effusion:up,PA,,", "unknown side 'up' of Effusion"),
        ("Edema:left,PA,,", "Edema can have no side"),
        ("Effusion,oblique,,", "unknown view 'oblique'"),
        ("Effusion,,X,", "unknown sex 'X'"),
        ("Effusion,,,old", "column 'age'"),
        ("Effusion,,,nan", "column 'age'"),
        (",,,", "no finding"),
    ],
)
def test_labels_of_a_list_are_looked_at(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path / "a.csv", f"id,prompt,labels,view,sex,age\n7,effusion,{row}\n")
    assert len(read_prompts(path)) == 1
    with pytest.raises(UserError, match=message) as caught:
        read_labelled_prompts(path)
    assert "id 7" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_prompts(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv cannot be read"):
        read_prompts(tmp_path / "folder.csv")


# --- the lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_per_finding", "sides", "combinations", "evaluation"])
def test_lists_say_what_their_labels_say(name: str) -> None:
    path = LISTS / f"{name}.csv"
    records = read_prompts(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    for row in rows:
        findings, sides = read_labels_text(row["labels"])
        labels = parse(row["prompt"])
        assert set(labels.findings) == set(findings) and labels.sides == sides, row
        assert (labels.view or "", labels.sex or "") == (row["view"], row["sex"]), row
        assert labels.age == (float(row["age"]) if row["age"] else None), row
    assert not re.search(r"\.jpg|\.png|/", path.read_text(encoding="utf-8"))


def test_evaluation_list_has_its_thousand() -> None:
    with (LISTS / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        labels = [row["labels"] for row in csv.DictReader(file)]
    assert len(labels) == 1000
    assert labels.count(NO_FINDING) == 381


def test_generator_writes_the_lists_that_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lists.main(["--write", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["combinations.csv", "one_per_finding.csv", "sides.csv"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (LISTS / name).read_bytes(), name
    assert capsys.readouterr().out.count("\n") == 3


def test_evaluation_uses_test_rows_only(tmp_path: Path) -> None:
    header = "file,split,view,sex,age,findings,region\n"
    lines = [
        "a.jpg,test,PA,F,54,Effusion;Mass,Effusion:left lower;Lung Opacity:right mid",
        "b.jpg,train,AP,M,60,Hernia,",
        "c.jpg,test,AP,M,paediatric (1-5 y),No Finding,",
        "d.jpg,test,AP,M,3,ARDS,",
    ]
    metadata = write(tmp_path / "metadata.csv", header + "\n".join(lines) + "\n")
    entries = lists.evaluation([metadata])
    by_findings = {labels.findings: labels for _, _, labels in entries}
    assert by_findings == {
        ("Effusion", "Mass"): Labels(("Effusion", "Mass"), {"Effusion": "left"}, "PA", "F", 54.0),
        (NO_FINDING,): Labels((NO_FINDING,), {}, "AP", "M", None),
    }
    assert entries == lists.evaluation([metadata])
    assert {e[0] for e in entries} == {"evaluation-a", "evaluation-c"}


def test_generator_names_a_wrong_metadata_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'age'"):
        lists.main(["--write", str(tmp_path), "--metadata", str(write(tmp_path / "m.csv", "split\n"))])
    with pytest.raises(UserError, match="cannot be read"):
        lists.main(["--write", str(tmp_path), "--metadata", str(tmp_path / "none.csv")])


def test_a_known_severity_is_said_and_no_other_word() -> None:
    labels = Labels(("Effusion",), {"Effusion": "left"}, severities={"Effusion": "large"})
    texts = [compose(labels, random.Random(seed)).lower() for seed in range(400)]
    said = [text for text in texts if "large" in text]
    assert 0.5 < len(said) / len(texts) < 0.7
    assert not any(word in text for text in texts for word in ("small", "moderate"))
    complete = compose(labels, random.Random(0), complete=True)
    assert "large" in complete.lower() and parse(complete).findings == ("Effusion",)


@pytest.mark.parametrize("name", ["evaluation", "combinations", "one_per_finding", "sides"])
def test_lists_that_ship_use_words_that_mini_knows(name: str) -> None:
    from roentgen.generators.base import roentgen_json, words
    from roentgen.models.hub import MINI

    known = set(roentgen_json(MINI)["vocabulary"])
    with (LISTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        unknown = {word for row in csv.DictReader(file) for word in words(row["prompt"])} - known
    assert not unknown
