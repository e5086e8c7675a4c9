"""Text statistics of ``roentgen data check``."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from roentgen.data.check import check_manifest, severity_of, summary_lines
from roentgen.data.check_page import page
from roentgen.data.text_statistics import (
    foreign,
    identifiers,
    negations_only,
    text_line,
    text_notes,
    text_problems,
    text_tables,
    token_counter,
)
from roentgen.errors import UserError
from roentgen.models.hub import MINI

TEXTS = ["No effusion.", "No effusion.", "Unchanged small effusion since ___.", "word " * 60 + "end", "", "clear lungs"]


def parts(texts: list[str] = TEXTS) -> dict[str, pd.DataFrame]:
    return {"all": pd.DataFrame({"text": texts})}


def test_table_by_hand() -> None:
    row = text_tables(parts())["Texts"].iloc[0]
    assert row["texts"] == 6 and row["different"] == 5 and row["longest"] == 61 and row["median"] == 2
    assert row["empty"] == "16.7 %" and row["over 77 tokens (estimate)"] == "16.7 %"
    assert row["said of another image too"] == "33.3 %"
    assert row["with blanks (___)"] == "16.7 %" and row["mention a prior"] == "16.7 %"
    assert row["deny only"] == "50.0 %" and row["not English"] == "0.0 %"
    frequent = text_tables(parts())["Most frequent texts"]
    assert frequent.iloc[0].tolist() == ["No effusion.", 2, "33.3 %"]
    assert "5 different of 6" in text_line(text_tables(parts()))
    assert text_notes(parts()["all"])[0].startswith("16.7 %")
    assert text_tables(parts(["", ""]))["Texts"].iloc[0]["longest"] == 0


def test_real_tokenizer_counts() -> None:
    count, window = token_counter(MINI)
    assert window == 64 and count(["no effusion"]) == count(["no effusion", "x"])[:1] and count([""]) == [2]
    row = text_tables(parts(["word " * 70, "no effusion"]), tokenizer=MINI / "tokenizer")["Texts"].iloc[0]
    assert row["over 64 tokens"] == "50.0 %"
    with pytest.raises(UserError, match=r"--tokenizer .*tokenizer_config.json"):
        token_counter(Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lungs are clear without effusion.", False),
        ("left pleural effusion", False),
        ("", False),
        ("Kein Nachweis eines Pneumothorax, Herz normal.", True),
        ("derrame pleural en el hemitorax izquierdo sin neumotorax", True),
        ("cambi pulmonar cronic sever .", True),
        ("心影增大，双肺纹理增粗。", True),
        ("Pas de pneumothorax.", True),
    ],
)
def test_foreign(text: str, expected: bool) -> None:
    assert foreign(text) is expected


def test_negations_only() -> None:
    assert negations_only("No effusion. Lungs are clear; heart not enlarged")
    assert not negations_only("No effusion. Cardiomegaly.")
    assert not negations_only("")


def test_problems_and_severity() -> None:
    found = {problem.kind: problem for problem in text_problems(parts()["all"])}
    assert set(found) == {"de-identification blank"} and found["de-identification blank"].row == 3
    assert severity_of("de-identification blank") == severity_of("text not in English") == "warning"
    problems = text_problems(pd.DataFrame({"text": ["", "", "Keine Stauung, kein Erguss."]}))
    assert {problem.kind for problem in problems} == {"text not in English", "most texts are empty"}
    assert "2 of 3 texts are empty" in next(p.message for p in problems if p.kind == "most texts are empty")
    assert severity_of("most texts are empty") == "error"


def test_check_shows_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for index, text in enumerate(TEXTS):
        Image.fromarray(rng.integers(0, 255, (80, 80), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": text, "patient_id": index, "split": "train"})
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    report = check_manifest(tmp_path / "m.csv", max_words=100)
    lines = "\n".join(summary_lines(report))
    assert "warning: de-identification blank: 1" in lines and "texts: 5 different of 6" in lines
    assert "note: 16.7 % of the texts compare" in lines
    html = page(report, thumbnails=2)
    assert "Most frequent texts" in html and "over 77 tokens (estimate)" in html and "deny only" in html


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Discussed with Dr. Smith by phone.", ["a name with a title"]),
        ("Mrs O'Brien has an effusion. MRN: 1234567", ["a name with a title", "a record number"]),
        ("Accession number AB-123456, 12345678", ["a record number"]),
        ("Call (415) 555-0132 or pager 51234.", ["a telephone number"]),
        ("Tel: +49 511 532 0", ["a telephone number"]),
        ("Compared to 3/16/2012.", ["a date"]),
        ("CT of 16.03.2012, or 2012-03-16", ["a date"]),
        ("As of March 3rd, 2012 stable; 4 Jan 2010", ["a date"]),
        ("Write to a.b@ward.example.org", ["an e-mail address"]),
        ("Compared to ___, seen by Dr. ___ at 5:12 pm on XXXX.", []),
        ("A 3.5 cm mass, 1.25 x 2.5 x 3.5 cm, ratio 1/2, T8-T9, L4/5, 54-year-old, 100 mL in 2 of 12 ribs.", []),
        ("Case of pneumonia; image 10 of 24. May 2 be seen. Dr to review.", []),
    ],
)
def test_identifiers_are_told_by_their_form(text: str, kinds: list[str]) -> None:
    assert identifiers(text) == kinds
    found = [
        problem for problem in text_problems(pd.DataFrame({"text": [text]})) if problem.kind == "identifier in text"
    ]
    assert [kind in found[0].message for kind in kinds] == [True] * len(kinds) if kinds else not found
    assert severity_of("identifier in text") == "warning"
