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
