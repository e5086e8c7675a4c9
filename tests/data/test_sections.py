"""Report sections and cleaned text: made-up reports in the layouts that occur, and the real ones of Open-i."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from roentgen.data.sections import (
    BLANKS,
    clean_text,
    count_blanks,
    last_paragraph,
    pick_text,
    split_sections,
)

ROOT = Path(__file__).parents[2]
# A report in MIMIC-CXR's layout, written for this test.
MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  ___ year old woman with cough // eval for pneumonia

 COMPARISON:  ___

 FINDINGS:

 Lines and tubes: The tube ends 3.5 cm above the carina.
 Other findings: none.  As compared to ___, no change
 in the small effusion.

 IMPRESSION:

 1.  Mild edema, worse since ___
 2.  3 cm mass (___) at the left base.

 NOTIFICATION:  Discussed with Dr. ___ by phone at ___ p.m.
"""


def test_mimic_layout() -> None:
    sections = split_sections(MIMIC)
    assert list(sections) == ["examination", "indication", "comparison", "findings", "impression", "notification"]
    assert sections["examination"] == "CHEST (PORTABLE AP)"
    assert sections["findings"].startswith("Lines and tubes:") and "Other findings: none." in sections["findings"]
    assert clean_text(sections["impression"]) == "Mild edema, worse. 3 cm mass at the left base."
    assert clean_text(sections["findings"]).endswith("no change in the small effusion.")
    assert clean_text(sections["indication"]) == "woman with cough // eval for pneumonia"
    assert split_sections(MIMIC.replace("\n", "\r\n")) == sections


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("History: Cough. Findings: Clear. Impression: Normal.", {"history": "Cough.", "findings": "Clear."}),
        ("Chest pain FINDINGS: Clear IMPRESSION: Normal", {"": "Chest pain", "findings": "Clear"}),
        ("right lateral chest FINDINGS: Clear.", {"": "right lateral chest", "findings": "Clear."}),
        ("IMPRESSION\nNormal.\nRECOMMENDATION(S): CT.", {"impression": "Normal.", "recommendation": "CT."}),
        ("CONCLUSION : Normal.", {"impression": "Normal."}),
        ("**Impression:** Normal.", {"impression": "Normal."}),
        ("IMPRESSION (PRELIMINARY): Normal.", {"impression": "Normal."}),
        ("THE LUNGS ARE CLEAR. IMPRESSION: NORMAL", {"": "THE LUNGS ARE CLEAR.", "impression": "NORMAL"}),
        ("FINDINGS AND IMPRESSION: Clear.", {"findings": "Clear.", "impression": "Clear."}),
        ("FINDINGS/IMPRESSION: Clear. IMPRESSION: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("IMPRESSION AND RECOMMENDATION(S): No edema.", {"impression": "No edema."}),
        ("IMPRESSION(S): No edema.", {"impression": "No edema."}),
        ("IMPRESSION (S): No edema.", {"impression": "No edema."}),
        ("FINDINGS - IMPRESSION: Clear.", {"findings": "Clear.", "impression": "Clear."}),
        ("IMPRESSION AS FOLLOWS: No edema.", {"impression": "No edema."}),
        ("IMPRESSION IN BRIEF: No edema.", {"impression": "No edema."}),
        ("FINDINGS COMPARED WITH PRIOR: Clear.", {"findings": "Clear."}),
        ("TECHNIQUE: PA.\nINTERPRETATION: Clear.", {"technique": "PA.", "impression": "Clear."}),
        ("FINDINGS/ IMPRESSION: Clear.", {"findings": "Clear.", "impression": "Clear."}),
        ("FINDINGS AND IMPRESSIONS: Clear.", {"findings": "Clear.", "impression": "Clear."}),
        ("Findings(s) & Conclusion(s): Clear.", {"findings": "Clear.", "impression": "Clear."}),
        ("IMPRESSION /FINDINGS:\nClear.", {"findings": "Clear.", "impression": "Clear."}),
        ("CLINICAL HISTORY/INDICATION: Cough.", {"history": "Cough."}),
        ("IMPRESSION AND FOLLOW-UP PLAN(S): No edema.", {"impression": "No edema."}),
        ("Findings and Discussion: Clear.", {"findings": "Clear."}),
        ("IMPRESSION OF CHEST: No edema.", {"impression": "No edema."}),
        ("FINDINGS, PORTABLE AP CHEST: Clear.", {"findings": "Clear."}),
        ("IMPRESSION FOR THE CHEST:\nNormal.", {"impression": "Normal."}),
        ("INDICATION: Cough. FINDINGS OF CHEST, TWO VIEWS: Clear.", {"indication": "Cough.", "findings": "Clear."}),
        ("FINDINGS Lines and tubes: none.", {"findings": "Lines and tubes: none."}),
        ("IMPRESSION NO CHANGE AND STABLE: Yes", {"impression": "NO CHANGE AND STABLE: Yes"}),
        ("FINDINGS: Dry. The impression and plan were discussed.", {"impression": None}),
        ("PORTABLE AP CHEST: The lungs are clear.", {"findings": "The lungs are clear."}),
        ("CHEST, TWO VIEWS: 3/16/2012", {"": "CHEST, TWO VIEWS: 3/16/2012"}),
        ("IMPRESSION: Left.\n\nIMPRESSION: Right.", {"impression": "Right."}),
        # An addendum overrules the report that it is printed before.
        ("ADDENDUM: Corrected.\nIMPRESSION: Left.\nFINAL REPORT\nIMPRESSION: Right.", {"impression": "Left."}),
        ("IMPRESSION: Left.\nADDENDUM: On.\nIMPRESSION: Both.\nIMPRESSION: Right.", {"impression": "Right."}),
        ("IMPRESSION: Normal. END OF IMPRESSION: SUMMARY: 2-abnormal", {"impression": "Normal."}),
        ("FINAL REPORT EXAMINATION: CHEST. FINDINGS: Clear.", {"examination": "CHEST.", "findings": "Clear."}),
        # No headers: in a sentence, within the findings, wrapped by the printer.
        ("FINDINGS: Comparison is made to 2009. Impression of a mass.", {"comparison": None, "impression": None}),
        ("FINDINGS: Dry. Other Findings: none. Lungs: ok.", {"findings": "Dry. Other Findings: none. Lungs: ok."}),
        ("IMPRESSION: See the\nfindings: none is new.", {"findings": None}),
        ("", {}),
    ],
)  # fmt: skip
def test_headers(report: str, expected: dict[str, str | None]) -> None:
    sections = split_sections(report)
    assert {name: sections.get(name) for name in expected} == expected
    if not expected:
        assert sections == {}


def test_wet_read_is_not_the_impression() -> None:
    report = (
        f"WET READ: ___ 5:12 PM\n No pneumothorax.\n{'_' * 40}\n FINAL REPORT\n AP CHEST\n\n Old.\n\n Clear lungs.\n"
    )
    assert split_sections(report)["wet read"].startswith("___ 5:12 PM")
    assert not {"impression", "findings"} & set(split_sections(report))
    assert last_paragraph(report) == "Clear lungs."
    assert last_paragraph(report + "\n NOTIFICATION: by phone.") == "Clear lungs."
    assert last_paragraph("") == ""


def test_pick_text_takes_the_first_that_says_something() -> None:
    report = "FINDINGS: Clear.\n\nIMPRESSION: ___."
    assert pick_text(report) == ""
    assert pick_text(report, ["impression", "findings"]) == "Clear."
    assert pick_text("One paragraph.\n\nAnother.", ["impression", "last paragraph"]) == "Another."


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Normal chest x-XXXX.", "Normal chest."),
        ("Chest X-___: clear. Dual-XXXX pacemaker, post-[**Hospital**].", "Chest: clear. pacemaker."),
        ("Left-XXXX effusion, right-___-sided catheter, XXXX-sided mass", "Left effusion, right catheter, mass"),
        ("Left XXXX-A-XXXX remains; out of XXXX-of-view.", "Left remains; out of view."),
        ("Mild XXXX-distention. T8-XXXX fracture. XXXX-XXXX.", "Mild distention. T8 fracture."),
        ("As compared to ___, the lungs are clear.", "the lungs are clear."),
        ("AP chest compared to ___ and ___:\n\n Lungs clear.", "AP chest: Lungs clear."),
        ("No change since ___. No effusion or XXXX.", "No change. No effusion."),
        ("unchanged from the study of ___", "unchanged from the study of"),
        ("XXXX-year-old male; seen by Dr. ___ at ___ a.m.", "male; seen"),
        ("[**2101-1-1**] Clear. **NAME[AAA] [DATE]", "Clear."),
        ("Opacity on XXXX view, XXXX/XXXX.", "Opacity on view."),
        ("Stable (as compared to ___), clear", "Stable, clear"),
        ("the___lung", "the lung"),
        ("Xxx, XXXL and BOXXX stay", "Xxx, XXXL and BOXXX stay"),
        ("___", ""),
        ("XXXX XXXX.", ""),
        ("Tip .5 cm lower, ratio 1:2, 3.5 cm.", "Tip .5 cm lower, ratio 1:2, 3.5 cm."),
        ("1. no effusion. 2. no edema", "no effusion. no edema"),
        ("1.Foo 2.Bar", "Foo. Bar"),
        ("1. No effusion. 2., Mild edema", "No effusion. Mild edema"),
        ("- small effusion\n- no pneumothorax", "small effusion. no pneumothorax"),
        ("1. 8 mm nodule.", "1. 8 mm nodule."),  # one item, or 1.8 mm with a stray blank: left alone
        ("1. 8 mm nodule\n2. Clear.", "8 mm nodule. Clear."),
        ("on image 2. Left lung clear", "on image 2. Left lung clear"),
        ("Nodule at T4. 5.2 cm mass", "Nodule at T4. 5.2 cm mass"),
        ("No\u00a0acute \r\n disease. .", "No acute disease."),
    ],
)
def test_clean_text(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned
    assert clean_text(cleaned) == cleaned
    assert count_blanks(cleaned) == 0


def test_open_i_reports_keep_their_words() -> None:
    """On every second real report: no blank is left, no word is made, and none is lost but those beside a blank."""
    pytest.importorskip("torchxrayvision")
    from roentgen.data.sources.openi import REPORTS_ARCHIVE, carried_file, openi_reports

    table = openi_reports(carried_file(REPORTS_ARCHIVE))
    assert len(table) == 3955
    may_go = {"compared", "comparison", "as", "when", "to", "with", "in", "since", "from", "dated", "on", "at", "of",
              "until", "and", "or", "by", "dr", "drs", "mr", "mrs", "ms", "doctor", "year", "years", "old", "yr", "yrs",
              "y", "o", "am", "pm", "a", "p", "m", "hours", "hrs", "s", "yo", "x", "dual"}  # fmt: skip
    for column in ("impression", "findings"):
        for text in table[column][::2]:
            cleaned = clean_text(text)
            before = re.findall(r"[^\W\d_]+", BLANKS.sub(" ", text))
            after = re.findall(r"[^\W\d_]+", cleaned)
            assert count_blanks(cleaned) == 0 and clean_text(cleaned) == cleaned
            assert set(after) <= set(before)
            assert not re.search(r"[A-Za-z]-(?=[\s.,;:)]|$)|(?:^|\s)-(?=[A-Za-z])", cleaned), text
            lost = [word for word in before if word.lower() not in may_go]
            assert lost == [word for word in after if word.lower() not in may_go], text


@pytest.mark.slow
def test_measurement_script(tmp_path: Path) -> None:
    pytest.importorskip("torchxrayvision")
    out = tmp_path / "sections.json"
    done = subprocess.run(
        [sys.executable, "eval/sections.py", "--out", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result, committed = json.loads(out.read_text()), json.loads((ROOT / "eval/results/sections.json").read_text())
    assert result["details"]["reports"] == 3955 and result["value"] > 0.999
    assert result["details"] == committed["details"]
    assert min(row["all"] for row in result["details"]["styles"]) > 0.99
    bad = subprocess.run(
        [sys.executable, "eval/sections.py", "--out", str(out), "--reports", str(tmp_path / "no.tgz")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert bad.returncode == 2 and "does not exist" in bad.stderr and "Traceback" not in bad.stderr
