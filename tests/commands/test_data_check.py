"""``roentgen data check``: every problem of a set and only those; and the sample."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees_b import film

from roentgen.commands.data import check
from roentgen.data import check as checks
from roentgen.data import near
from roentgen.data.check import (
    MIN_CONTRAST,
    MIN_SYMMETRY,
    check_manifest,
    frontal_measures,
    severity_of,
)
from roentgen.data.manifest import read_manifest
from roentgen.errors import UserError
from roentgen.images import read_image

SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "manifest.csv"


# ------------------------------------------------------------------------------------------- check


def broken_set(folder: Path) -> Path:
    """A manifest with one of everything; the comments give the row."""
    arrays = {f"good{index}": film(index) for index in range(4)}  # 1 to 4
    arrays["tiny"] = np.full((1, 1), 128, np.uint8)  # 5
    arrays["black"] = np.zeros((80, 80), np.uint8)  # 6
    arrays["copy"] = arrays["good0"]  # 7
    arrays["leak"] = arrays["good1"]  # 8
    arrays["near"] = np.clip(arrays["good2"].astype(int) + 2, 0, 255).astype(np.uint8)  # 9
    arrays["wide"] = film(9, (80, 160))  # 10
    arrays["turned"] = np.rot90(film(11)).copy()  # 11
    colour = np.stack([film(12), film(12) // 2, film(12) // 4], axis=2)  # 12
    for name, pixels in (arrays | {"colour": colour}).items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes((folder / "good0.png").read_bytes()[:200])  # 13
    names = [*arrays, "colour", "bad", "gone"]  # gone: 14
    count = len(names)
    table = pd.DataFrame(
        {
            "image": [f"{name}.png" for name in names],
            "text": ["clear lungs"] * count,
            "patient_id": [f"p{index}" for index in range(count)],
            "split": ["train"] * count,
            "view": ["PA"] * count,
            "No Finding": ["1"] * count,
            "Effusion": ["0"] * count,
            "ward": ["x"] * count,
        }
    )
    table.loc[7, "split"] = "test"
    table.loc[1, "text"] = ""
    table.loc[2, "text"] = "word " * 61
    table.loc[3, "Effusion"] = "1"
    table.loc[8, "Effusion"] = "maybe"
    table.loc[9, ["patient_id", "split"]] = ["p0", "val"]
    path = folder / "manifest.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("search", ["pairs", "index"])
def test_near_duplicates_in_blocks_are_those_of_all_pairs(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest earlier row, the first of several, however many rows a block has; equal pixels are no near ones."""
    if search == "index":
        pytest.importorskip("faiss")
    monkeypatch.setattr(near, "search_of", lambda count: search)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    bits[20], bits[30], bits[35], bits[12] = bits[3], bits[3], bits[7], bits[7]
    bits[20, 0] ^= 0b111
    bits[35, 5] ^= 0xFF
    facts = [
        checks.ImageFacts(digest=str(7 if row == 12 else row), bits=each.tobytes()) for row, each in enumerate(bits)
    ]
    facts[5] = checks.ImageFacts(digest="black")
    wanted = [(21, "like row 4: 3 of"), (31, "like row 4: 0 of"), (36, "like row 8: 8 of")]
    for rows in (1, 7, 1000):
        monkeypatch.setattr(near, "MEMORY", rows * 4 * 39)
        monkeypatch.setattr(near, "BLOCK", rows)
        found = checks.near_duplicates(facts)
        assert [(problem.row, problem.message[:16]) for problem in found] == wanted


def test_index_finds_what_all_pairs_find() -> None:
    """Up to the last bit of the limit, and the first of several that are as near."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(1)
    bits = np.unpackbits(rng.integers(0, 256, (300, 32), dtype=np.uint8), axis=1)[rng.integers(0, 300, 3000)]
    bits ^= rng.random(bits.shape) < rng.uniform(0, 0.1, (len(bits), 1))
    packed = np.packbits(bits, axis=1)
    by_pairs, by_index = (near.nearest_earlier(packed, 10, search=search) for search in ("pairs", "index"))
    assert set(range(11)) <= set(by_pairs[1].tolist())
    np.testing.assert_array_equal(by_index, by_pairs)


@pytest.mark.parametrize(
    ("installed", "count", "search"),
    [(True, 50_000, "pairs"), (True, 50_001, "index"), (True, 10**6, "index"), (False, 50_001, "pairs"),
     (False, 200_000, "pairs"), (False, 200_001, "none")],
)  # fmt: skip
def test_large_sets_are_searched_with_an_index_where_there_is_one(
    installed: bool, count: int, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    assert near.search_of(count) == search


def test_the_report_says_how_a_large_set_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = broken_set(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(near, "INDEXED", 3)
    assert any("all pairs" in note and "[near]" in note for note in check_manifest(path).notes)
    monkeypatch.setattr(near, "LIMIT", 3)
    report = check_manifest(path)
    assert any("not looked for" in note and "[near]" in note for note in report.notes)
    assert "near-duplicate image" not in report.problems


def test_check_lists_every_problem_and_only_those(tmp_path: Path) -> None:
    report = check_manifest(broken_set(tmp_path), max_words=60)
    found = {kind: [problem.row for problem in problems] for kind, problems in report.problems.items()}
    assert found == {
        "empty text": [2],
        "over-long text": [3],
        "contradicting labels": [4],
        "image too small": [5],
        "near-constant image": [6],
        "same image twice": [7],
        "same image in two splits": [8],
        "bad finding value": [9],
        "near-duplicate image": [9],
        "does not look frontal": [10, 11],
        "patient in two splits": [10],
        "colour image": [12],
        "unreadable image": [13],
        "image file missing": [14],
    }
    assert report.errors == 8 and report.notes == ["columns that are not read: ward"]
    assert severity_of("patient in two splits") == "error"


def test_check_command_exit_codes_and_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = broken_set(tmp_path)
    assert check(str(manifest), out=str(tmp_path / "look")) == 1
    out = capsys.readouterr().out
    assert "8 errors" in out and "error: unreadable image: 1, the first in row 13" in out
    page = (tmp_path / "look" / "check.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 20 and "http" not in page  # needs no network
    assert "patient in two splits" in page and "Effusion" in page
    # Short texts are never broken letter by letter, long ones between words; dark where the reader's machine is.
    assert "td.text { white-space: nowrap; }" in page and "min-width: 24ch" in page
    assert "prefers-color-scheme: dark" in page
    with pytest.raises(UserError, match="--overwrite"):
        check(str(manifest), out=str(tmp_path / "look"))
    with pytest.raises(UserError, match="does not exist"):
        check(str(tmp_path / "none.csv"))


def test_check_escapes_texts(tmp_path: Path) -> None:
    Image.fromarray(film(0)).save(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("image,text,patient_id,split\na.png,<script>alert(1)</script>,1,train\n")
    assert check(str(tmp_path / "m.csv")) == 0
    assert "<script" not in (tmp_path / "m.check.html").read_text()


def test_frontal_heuristic_finds_most_turned_films() -> None:
    images = read_manifest(SAMPLE)["image"].tolist()[::12]
    turned = [frontal_measures(np.rot90(read_image(image)).copy()) for image in images]
    found = sum(symmetry < MIN_SYMMETRY or contrast < MIN_CONTRAST for symmetry, contrast in turned)
    assert found > 0.7 * len(images)


# ------------------------------------------------------------------------------------ data/sample


def test_sample_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert check(str(SAMPLE), out=str(tmp_path / "sample.html")) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings, 0 notes" in said


def test_sample_is_what_its_readme_says() -> None:
    frame = read_manifest(SAMPLE)
    size = sum(Path(image).stat().st_size for image in frame["image"])
    assert size < 9_000_000 and 600 < len(frame) < 900
    assert len(list((SAMPLE.parent / "images").iterdir())) == len(frame)
    shares = frame["split"].value_counts(normalize=True)
    assert 0.65 < shares["train"] < 0.75 and 0.15 < shares["test"] < 0.25
    for finding in ("Effusion", "Pneumothorax", "Cardiomegaly", "COVID-19", "No Finding"):
        assert (frame[frame["split"] == "train"][finding] == 1).sum() >= 10, finding
        assert (frame[frame["split"] == "test"][finding] == 1).sum() >= 5, finding
    text = (SAMPLE.parent / "LICENCES.md").read_text()
    for source, licence in set(zip(frame["source"], frame["licence"], strict=True)):
        assert f"| {source} | {licence} |" in text
    readme = (SAMPLE.parent / "README.md").read_text()
    assert readme.startswith(f"# Sample data\n\n{len(frame)} openly licensed")
    assert json.dumps(frame["text"].tolist()).isascii()
