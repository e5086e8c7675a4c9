"""The package as a user meets it: versions, weights, make goals, and every command of the README."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import roentgen
from roentgen import cli, errors
from roentgen.config import parse_call
from roentgen.images import read_provenance
from roentgen.models.hub import MINI

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (MINI / "README.md").read_text(encoding="utf-8")
MAX_WEIGHTS = 90e6


def fenced(language: str) -> list[str]:
    """Code blocks of the README in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every command of the README's bash blocks, split into words."""
    lines = [line for block in fenced("bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line) for line in lines if line.strip()]
    return [[*itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), each)] for each in words]


def of(program: str) -> list[list[str]]:
    """The README's commands that start with ``program``, without it; there must be some."""
    found = [words[1:] for words in commands() if words[0] == program]
    assert found, f"the README has no `{program}` command"
    return found


def named(words: list[str]) -> str:
    """A command as the name of its test."""
    return " ".join(words)[:60]


# ------------------------------------------------------------------------------------------- package


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "roentgen.provenance.__version__"}
    version = re.escape(roentgen.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None and newest[1] == roentgen.__version__


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) > 1500


def test_torch_and_torchvision_are_not_pinned() -> None:
    """A pair that fits comes from the index together; one pinned version would break the other."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "torchvision"):
        assert any(re.fullmatch(rf"{name}>=[\d.]+", one) for one in wanted)


def test_model_that_ships_is_whole_small_and_in_the_package() -> None:
    from roentgen.models import loading

    loading.check_folder(MINI)
    files = [path for path in MINI.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert size <= MAX_WEIGHTS, f"{size / 1e6:.0f} MB"
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = Path(roentgen.__file__).parent
    packed = {path for pattern in patterns["roentgen"] for path in package.glob(pattern)}
    assert set(files) <= packed, sorted(set(files) - packed)
    assert (MINI / "roentgen.json").is_file()


def test_picture_of_the_readme_is_marked_and_made_by_mini() -> None:
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert picture is not None
    marks = read_provenance(ROOT / picture[1])
    assert marks["synthetic"] == "true" and marks["model"] == "mini"


PAGES = ["README.md", "roentgen/models/mini/README.md", "CHANGELOG.md", "train/configs/roentgen/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            lines = file.read_text(encoding="utf-8").splitlines()
            headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in lines}
            assert anchor in headings, target


# ------------------------------------------------------------------------------------ result tables


def region(text: str, name: str) -> str:
    found = re.findall(rf"<!-- results:{name} -->\n(.*?)<!-- /results:{name} -->", text, flags=re.DOTALL)
    assert len(found) == 1, f"results:{name} must be there once"
    return found[0].strip("\n")


@pytest.mark.parametrize("text", [README, CARD], ids=["readme", "card"])
def test_tables_are_filled(text: str) -> None:
    for name in ("mini", "speed"):
        assert re.search(r"\| ?---", region(text, name)) and "Not measured" not in region(text, name)


@pytest.mark.parametrize("text", [README, CARD], ids=["readme", "card"])
def test_speed_table_is_that_of_the_result_file(text: str) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_generate", ROOT / "benchmarks" / "generate.py")
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = json.loads((ROOT / "benchmarks" / "results" / "generate-cpu.json").read_text())
    assert region(text, "speed") == bench.table(result)


def test_mini_tables_are_those_of_the_result_files() -> None:
    pages = ["README.md", "roentgen/models/mini/README.md"]
    run_python(["eval/table.py", "eval/results/mini", *pages, "--check"], ROOT)


# ----------------------------------------------------------------------------------- make and CI


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text and "make check" in text and "make test" in text


@pytest.mark.parametrize("goal", ["demo", "test", "test-fast", "check"])
def test_make_goal_installs_first(goal: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "-n", goal], cwd=tmp_path, capture_output=True, text=True, check=True)
    steps = done.stdout
    assert steps.index("-m venv") < steps.index("pip install") < steps.rindex(".venv/bin/python -m")
    if goal == "test":
        assert "HF_HUB_OFFLINE=1" in steps and "not slow" not in steps


def test_make_says_when_python_is_too_old(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "demo", "PYTHON=./old-python"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "3.11 or newer" in done.stderr and "Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()


# --------------------------------------------------------------------------- commands of the README


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    assert {words[0] for words in commands()} <= {"roentgen", "make", "pip", "accelerate", "torchrun", "python"}


def test_make_commands_are_goals() -> None:
    goals = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in of("make"):
        assert words[0] in goals, words


@pytest.mark.parametrize("words", of("roentgen"), ids=named)
def test_roentgen_commands_parse(words: list[str]) -> None:
    name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
    command = cli.COMMANDS[name]
    rest = words[len(name.split()) :]
    parse_call(command.find(), rest, prog=f"roentgen {name}")


@pytest.mark.parametrize("words", commands(), ids=named)
def test_files_of_the_commands_exist(words: list[str]) -> None:
    for word in words:
        if re.match(r"(data|prompts|train|eval|benchmarks)/", word) and words[words.index(word) - 1] != "--out":
            assert (ROOT / word).exists(), word


@pytest.mark.slow
@pytest.mark.parametrize("words", [*of("accelerate"), *of("torchrun")], ids=named)
def test_recipes_accept_their_settings(words: list[str], tmp_path: Path) -> None:
    """Each recipe for real up to the point where it would train: it knows the flags, YAML keys and data."""
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    out = ["--out", str(tmp_path / "run"), "--dry-run"]
    run_python([*words[script:], *out], ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("words", of("python"), ids=named)
def test_scripts_know_the_flags(words: list[str]) -> None:
    help_text = run_python([words[0], "--help"], ROOT)
    for flag in (word for word in words[1:] if word.startswith("--")):
        assert flag in help_text, flag


@pytest.mark.slow
def test_roentgen_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the README's order and in one folder, as a reader would; two steps an image will do."""
    visit(tmp_path, monkeypatch)
    for words in of("roentgen"):
        if any(word.startswith(("runs/", "models/")) for word in words):
            continue  # made by training, or fetched
        fewer = ["--steps", "2"] if words[0] == "generate" else []
        code = errors.run(lambda words=[*words, *fewer]: cli.main(words), prog="roentgen")  # type: ignore[misc]
        assert code == 0, words


@pytest.mark.slow
@pytest.mark.parametrize("code", fenced("python"), ids=lambda code: code.splitlines()[0])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(tmp_path, monkeypatch)
    assert run_python(["-c", code], tmp_path).strip()


def visit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in ``folder``, with the repository's data in it, so that the repository stays as it is."""
    for name in ("data", "prompts"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)


def run_python(words: list[str], folder: Path) -> str:
    """Run Python with ``words`` in ``folder`` and return its stdout; it must succeed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
