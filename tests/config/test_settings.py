"""Settings of the recipes: YAML and flags, and what is wrong with them in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from roentgen.config import as_dict, flat, parse_settings
from roentgen.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Settings of a test.

    Args:
        out: folder.
        batch_size: count.
        sure: flag.
    """

    out: Path
    batch_size: int = 4
    sure: bool = False


def parse(*argv: str) -> Settings:
    return parse_settings(Settings, argv, prog="test")


def test_flags_win_over_yaml(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("out: here\nbatch_size: 8\n")
    assert parse("--config", str(config)) == Settings(Path("here"), 8)
    assert parse("--config", str(config), "--batch_size", "2").batch_size == 2


def test_a_file_may_have_a_base(tmp_path: Path) -> None:
    base, config = tmp_path / "base.yaml", tmp_path / "c.yaml"
    base.write_text("out: there\nbatch_size: 8\nsure: true\n")
    config.write_text(f"base: {base}\nout: here\n")
    assert parse("--config", str(config)) == Settings(Path("here"), 8, True)
    assert parse("--config", str(config), "--no-sure").sure is False
    for wrong in (config, tmp_path / "none.yaml", "[a, b]", '""'):
        config.write_text(f"base: {wrong}\nout: here\n")
        with pytest.raises(UserError, match=r"none\.yaml" if "none" in str(wrong) else r"c\.yaml: base"):
            parse("--config", str(config))


def test_dashes_and_a_boolean_alone() -> None:
    assert parse("--out", "x", "--sure", "--batch-size=3") == Settings(Path("x"), 3, True)
    assert parse("--out", "x", "--sure", "false").sure is False
    assert as_dict(parse("--out", "x")) == {"out": "x", "batch_size": 4, "sure": False}


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--out", "x", "--batch_size", "many"], "--batch-size"),
        (["--out", "x", "--size", "3"], "size"),
        ([], "out"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_mistakes_name_the_key(argv: list[str], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


def test_unknown_yaml_key(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("out: here\nbtach_size: 8\n")
    with pytest.raises(UserError, match="btach_size"):
        parse("--config", str(config))


@dataclass(frozen=True)
class Section:
    """A section.

    Args:
        rate: number.
        on: flag.
    """

    rate: float = 1.0
    on: bool = False


@dataclass(frozen=True)
class Nested:
    """Settings with a section.

    Args:
        out: folder.
        loss: section.
    """

    out: Path
    loss: Section = Section()


def test_sections_are_yaml_mappings_and_dotted_flags(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("out: here\nloss: {rate: 3.0}\n")
    made = parse_settings(Nested, ["--config", str(config), "--loss.on"], prog="test")
    assert made == Nested(Path("here"), Section(3.0, True))
    assert flat(as_dict(made)) == {"out": "here", "loss.rate": 3.0, "loss.on": True}
    with pytest.raises(UserError, match=r"rat\b"):
        parse_settings(Nested, ["--out", "x", "--loss.rat", "3"], prog="test")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sure: "false"\n', Settings(Path("here"), 4, False)),
        ("sure: no\nbatch-size: 1_6\n", Settings(Path("here"), 16, False)),
        ("sure: maybe\n", "sure: expected true or false, got 'maybe'"),
        ("batch_size:\n", "batch_size: is blank"),
        ("out: null\n", "out: is blank"),
        ("batch_size: [1]\n", "batch_size: expected a whole number, got a list"),
        ("batch_size: 1\nbatch-size: 2\n", "given twice"),
        ("a: &a [1]\nb: *a\n", "references"),
        ("a: !!python/object:os.system x\n", "tags such as"),
        ("[" * 5000, "nested more than 20 deep"),
        ("batch_size: " + "9" * 5000, "expected a whole number"),
        ("a: 1\n---\nb: 2\n", "several documents"),
        ("just words\n", "lines of the form key: value"),
        ("out: [\n", "not YAML"),
    ],
)
def test_yaml_is_typed_by_the_settings(text: str, said: object, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    flags = ["--config", str(config), *([] if "out:" in text else ["--out", "here"])]
    if isinstance(said, Settings):
        assert parse(*flags) == said
        return
    with pytest.raises(UserError, match=r"c\.yaml: ") as caught:
        parse(*flags)
    assert str(said) in str(caught.value) and len(str(caught.value)) < 400 and "class" not in str(caught.value)


def test_files_that_are_no_text_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        parse("--config", str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="is a folder"):
        parse("--config", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("out: ~/run\n")
    assert parse("--config", "~/c.yaml").out == tmp_path / "run"
    assert parse("--out=~/x", "--no-sure").out == tmp_path / "x"
