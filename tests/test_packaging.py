"""The package as a user meets it: versions, weights, make goals, and every command of README and docs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from recipe import load_script

import roentgen
from roentgen import cli, errors
from roentgen.config import parse_call
from roentgen.images import read_provenance
from roentgen.models.hub import MINI

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (MINI / "README.md").read_text(encoding="utf-8")
MAX_WEIGHTS = 90e6


DOCUMENTS = {"README.md": README} | {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}


def fenced(language: str, text: str) -> list[str]:
    """Code blocks of a document in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every command of a document's bash blocks, split into words, without assignments in front."""
    lines = [line for block in fenced("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line) for line in lines if line.strip()]
    return [[*itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), each)] for each in words]


ALL = [words for text in DOCUMENTS.values() for words in commands(text)]


def of(program: str) -> list[list[str]]:
    """The documents' commands that start with ``program``, without it, each once; there must be some."""
    found = [words[1:] for words in ALL if words[0] == program]
    assert found, f"no document has a `{program}` command"
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


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


PAGES = [
    *DOCUMENTS,
    "roentgen/models/mini/README.md",
    "roentgen/models/mini_report/README.md",
    "CHANGELOG.md",
    "train/configs/roentgen/README.md",
]
PAGES += [name for name in ("CONTRIBUTING.md", "SECURITY.md") if (ROOT / name).exists()]


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


TABLES = {
    "README.md": ("quality", "speed-summary"),
    "docs/evaluate.md": ("suite",),
    "docs/benchmarks.md": ("speed", "profile", "guided-share", "load", "train-speed", "eval-speed"),
    "docs/training.md": ("memory", "text-encoder"),
    "docs/augmentation.md": ("augmentation",),
    "docs/reports.md": ("reports-clinical", "reports-findings", "reports-places", "reports-radfact", "reports-text"),
}


@pytest.mark.parametrize(("document", "name"), [(page, name) for page, names in TABLES.items() for name in names])
def test_tables_are_filled(document: str, name: str) -> None:
    assert re.search(r"\| ?---", region(DOCUMENTS[document], name))
    assert "Not measured" not in region(DOCUMENTS[document], name)


@pytest.mark.parametrize("name", ["mini", "speed"])
def test_tables_of_the_card_are_filled(name: str) -> None:
    assert re.search(r"\| ?---", region(CARD, name)) and "Not measured" not in region(CARD, name)


def test_speed_tables_are_those_of_the_result_file() -> None:
    bench = load_script("benchmarks/generate.py")
    result = json.loads((ROOT / "benchmarks" / "results" / "generate-cpu.json").read_text())
    assert region(DOCUMENTS["docs/benchmarks.md"], "speed") == region(CARD, "speed") == bench.table(result)
    assert region(README, "speed-summary") == bench.summary_table(result)


def test_mini_tables_are_those_of_the_result_files() -> None:
    pages = ["README.md", "docs/evaluate.md", "roentgen/models/mini/README.md"]
    run_python(["eval/table.py", "eval/results/mini-suite", *pages, "--check"], ROOT)


def test_tables_of_reports_are_those_of_the_result_files() -> None:
    script = load_script("eval/reports.py")
    for name, text in script.tables(ROOT / "eval/results/reports").items():
        assert region(DOCUMENTS["docs/reports.md"], name) == text, name
    for name, file in (("reports-ceiling", "report_ceiling"), ("reports-int8", "int8")):
        result = json.loads((ROOT / f"eval/results/reports/{name.removeprefix('reports-')}.json").read_text())
        text = load_script(f"eval/{file}.py").as_table(result)
        assert region(DOCUMENTS["docs/reports.md"], name) == text, name


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180
    for name in ("quality", "speed-summary"):
        assert len(re.findall(r"^\|", region(README, name), flags=re.MULTILINE)) == 2 + 6


# ----------------------------------------------------------------------------------- make and CI


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text and "make check" in text and "make test" in text


@pytest.mark.parametrize("goal", ["demo", "test", "test-fast", "check", "docs"])
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


# --------------------------------------------------------------------------- commands of the documents


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    assert {words[0] for words in ALL} <= {"roentgen", "make", "source", "accelerate", "torchrun", "python"}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_blocks_that_no_test_runs_say_what_they_need(page: str) -> None:
    """A block is bash or Python, which are run below, or console with a line in front that says what it needs."""
    blocks = re.findall(r"(?:^(.*)\n)?^```(\w*)\n", DOCUMENTS[page], flags=re.MULTILINE)
    for before, language in blocks:
        if language:  # a closing fence has none
            assert language in ("bash", "python", "console"), language
            assert language != "console" or re.fullmatch("<!-- needs: .+ -->", before), f"{page}: {before}"


def test_make_commands_are_goals() -> None:
    goals = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in of("make"):
        assert words[0] in goals, words


def unrun() -> list[list[str]]:
    """The commands of the console blocks, which need what a test does not have."""
    lines = [line for text in DOCUMENTS.values() for block in fenced("console", text) for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ").partition(" >> ")[0]) for line in lines]


def test_flags_are_spelled_with_hyphens() -> None:
    assert not [word for words in [*ALL, *unrun()] for word in words if re.match(r"--[a-z.-]+_", word)]


WITH_ROENTGEN = [*of("roentgen"), *(words[1:] for words in unrun() if words[0] == "roentgen")]


@pytest.mark.parametrize("words", WITH_ROENTGEN, ids=named)
def test_roentgen_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] in ("--help", "--version") or words[-1] in ("--help", "--list"):
        return
    name = next(name for name in cli.COMMANDS if words[: len(name.split())] == name.split())
    command = cli.COMMANDS[name]
    rest = words[len(name.split()) :]
    if not command.raw:
        parse_call(command.find(), rest, prog=f"roentgen {name}")
        return
    # It parses for itself: what it calls with the settings is put out of action, or only tells what it would do.
    if name == "train":
        assert importlib.import_module(f"roentgen.recipes.{rest[0]}") and {"--config", "--manifest"} & set(rest)
        return
    from roentgen.commands import data

    monkeypatch.setattr(data, "prepare", functools.wraps(data.prepare)(lambda *_, **__: 0))
    assert command.find()(rest, f"roentgen {name}") == 0


@pytest.mark.parametrize("words", ALL, ids=named)
def test_files_of_the_commands_exist(words: list[str]) -> None:
    for before, word in itertools.pairwise(["", *words]):
        if re.match(r"(data|prompts|train|eval|benchmarks|examples)/", word) and before != "--out":
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


FEWER = {
    "generate": ["--steps", "2"],
    "edit": ["--steps", "4"],
    "eval": ["--steps", "2", "--num-prompts", "12", "--limit", "40", "--resamples", "20"],
    "train": ["--dry-run"],
}
"""What makes a command of the documents short enough for a test."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in DOCUMENTS.items() if "```bash\nroentgen" in text])
def test_roentgen_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order and in one folder, as a reader would; few steps and prompts will do."""
    visit(tmp_path, monkeypatch)
    shutil.copytree(MINI, tmp_path / "runs/quickstart/pipeline")  # what the training command before would have made
    for words in (words[1:] for words in commands(DOCUMENTS[page]) if words[0] == "roentgen"):
        if "--help" in words[1:]:
            with pytest.raises(SystemExit, match="0"):
                cli.main(words)
            continue
        fewer = FEWER.get(words[0], []) if "--compare" not in words else []
        if words[0] == "train":  # each training of a page is a process of its own; here they share accelerate's state
            from accelerate.state import AcceleratorState, GradientState

            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        code = errors.run(lambda words=[*words, *fewer]: cli.main(words), prog="roentgen")  # type: ignore[misc]
        assert code == 0, words


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for text in DOCUMENTS.values() for code in fenced("python", text)])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(tmp_path, monkeypatch)
    assert run_python(["-c", code], tmp_path).strip()


def visit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in ``folder``, with the repository's data in it, so that the repository stays as it is."""
    for name in ("data", "prompts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)


def run_python(words: list[str], folder: Path) -> str:
    """Run Python with ``words`` in ``folder`` and return its stdout; it must succeed."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_tests_that_the_reliability_page_names_are_there() -> None:
    table = DOCUMENTS["docs/reliability.md"].partition("## What was reported")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and ".py" in row]
    assert len(rows) >= 42
    for row in rows:
        file = ""
        for name, test in re.findall(r"`([\w/]*(?:\.py)?)(?:::(\w+))?`", row.split(" | ")[1]):
            if not name.endswith(".py") and not test:
                continue
            file = name or file
            code = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not test or f"def {test}(" in code, f"{file}::{test}"
