"""The command line as people expect it: spellings, mistakes, completion, terminals of any encoding."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from roentgen import cli
from roentgen.commands.train import RECIPES
from roentgen.data.sources import SOURCES

ROOT = Path(__file__).parents[2]


def roentgen(*words: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(env or {})}
    command = [sys.executable, "-m", "roentgen", *(str(word) for word in words)]
    return subprocess.run(command, env=environment, text=True, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


def test_first_words_say_what_to_do(run_cli) -> None:
    code, out, _ = run_cli()
    assert code == 0 and 'roentgen generate "' in out and "roentgen --help" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generat"], "did you mean generate?"),
        (["data", "prepair"], "did you mean data prepare?"),
        (["generate", "x", "--num_image", "2"], "did you mean --num-images?"),
        (["generate", "x", "--seed"], "--seed needs a value"),
        (["generate", "x", "-n", "0"], "--num-images 0: must be at least 1"),
        (["generate", "x", "-n0"], "--num-images 0: must be at least 1"),
        (["generate", "x", "--num_images=0"], "--num-images 0: must be at least 1"),
        (["generate", "x", "-q"], "unknown flag '-q'"),
        (["generate", "x", "--grid=maybe"], "--grid: expected true or false"),
        (["models", "mini"], "'mini' belongs to no flag"),
        (["generate", "\udcff"], "prompt '\\udcff': is not text in UTF-8"),
        (["completion", "csh"], "choose one of bash, zsh, fish"),
        (["train", "finetun"], "did you mean finetune?"),
        (["train", "text_encoder", "--manifest", "a.csv", "-o", "b", "-n", "0"], "--texts 0: must be at least 1"),
        (["train", "finetune", "--manifst", "a.csv"], "did you mean --manifest?"),
    ],
)
def test_mistakes(words: list[str], said: str, run_cli) -> None:
    code, _, err = run_cli(*words)
    assert code == 2 and said in err and len(err.splitlines()) == 1


HELPS = [name for name in cli.COMMANDS if name != "train"]
HELPS += [f"train {name}" for name in RECIPES] + [f"data prepare {name}" for name in SOURCES]


@pytest.mark.parametrize("name", HELPS)
def test_helps_have_examples_defaults_and_short_lines(name: str, run_cli, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        run_cli(*name.split(), "--help")
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    before, _, examples = out.partition("examples:")
    assert examples.count(f" roentgen {name}") >= 2
    assert name == "data prepare" or set(re.findall(r" (--[\w.-]+)", examples)) <= set(
        re.findall(r"^  (?:-\w, )?(--[\w.-]+)", before, flags=re.M)
    )
    assert "\n  --out " not in before and ("default: " in before or name in ("models", "info", "completion", "push"))
    assert "_" not in "".join(line.split()[0] for line in out.splitlines() if line.startswith("  --"))


def test_a_group_lists_its_commands(run_cli) -> None:
    code, out, _ = run_cli("data")
    assert code == 0 and all(f"roentgen {name} " in out for name in cli.COMMANDS if name.startswith("data "))


def test_completion_knows_commands_and_flags() -> None:
    script = roentgen("completion", "bash", capture_output=True).stdout
    ask = script + '\nCOMP_WORDS=({}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _roentgen; echo "${{COMPREPLY[@]}}"'

    def complete(words: str) -> str:
        bash = ["bash", "-c", ask.replace("{}", words, 1).replace("{{", "{").replace("}}", "}")]
        return subprocess.run(bash, capture_output=True, text=True, check=True).stdout.strip()

    assert complete("roentgen gen") == "generate"
    assert complete("roentgen data sh") == "shard"
    assert complete("roentgen generate --num") == "--num-images"
    assert complete("roentgen data prepare --patient-c") == "--patient-column"
    for shell in ("zsh", "fish"):
        assert "num-images" in roentgen("completion", shell, capture_output=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_output_in_any_encoding(encoding: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    words = ["generate", "effusion ≥ 1 cm 🫁", "--json", "--model", tiny_pipeline, "--out", tmp_path / "ä≥.png"]
    done = roentgen(*words, env={"PYTHONIOENCODING": encoding, "LC_ALL": "C"}, capture_output=True, encoding=encoding)
    assert done.returncode == 0, done.stderr
    import json

    assert json.loads(done.stdout)["prompt"] == "effusion ≥ 1 cm 🫁"
    done = roentgen(
        *words[:-1], tmp_path / "b≥.png", env={"PYTHONIOENCODING": encoding}, capture_output=True, encoding=encoding
    )
    assert done.returncode == 0


def test_stdout_full_or_closed(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = roentgen("models", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and "stdout: cannot be written" in done.stderr and "Traceback" not in done.stderr
    shell = f'"{sys.executable}" -m roentgen models >&- 2>err; echo $?; cat err'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "0" and "Traceback" not in done.stdout


@pytest.mark.parametrize("script", ["eval/augmentation_gain.py", "train/finetune.py"])
def test_scripts_whose_stdout_is_full_or_closed(script: str) -> None:
    """Every way in, not the command alone; `--list-arms` and `--dry-run` print and stop."""
    words = ["--list-arms"] if script.startswith("eval") else ["--help"]
    start = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "cwd": ROOT, "text": True, "stderr": subprocess.PIPE}
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, script, *words], stdout=full, **start)
    assert done.returncode == 2 and "stdout" in done.stderr and "Traceback" not in done.stderr
    gone, closed = os.pipe()
    os.close(gone)
    done = subprocess.run([sys.executable, script, *words], stdout=closed, **start)
    os.close(closed)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.parametrize("when", ["import", "settle", "run"])
def test_ctrl_c_in_the_first_instants_is_quiet(when: str, tmp_path: Path) -> None:
    """From the first line of the command on; before it Python itself starts."""
    how = {
        "import": "class Stop:\n def find_spec(self, name, *_):\n  if name == 'roentgen.cli': raise KeyboardInterrupt"
        "\nsys.meta_path.insert(0, Stop())",
        "settle": "import roentgen.threads as t\ndef stop(): raise KeyboardInterrupt\nt.settle = stop",
        "run": "import roentgen.cli as c\ndef stop(_): os.kill(os.getpid(), 2)\nc.main = stop",
    }[when]
    # A job in the background of a shell is started with Ctrl-C ignored: not this one.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}\nimport os, sys\nfrom roentgen.__main__ import main\n{how}\nsys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert ("everything already written is kept" in done.stderr) == (when == "run")


def test_package_lists_what_it_has() -> None:
    code = "import sys, roentgen; print(dir(roentgen)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names, heavy = done.stdout.splitlines()
    assert all(repr(name) in names for name in ("generate", "load_model", "Sample", "UserError")) and heavy == "False"
    import roentgen as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert (ROOT / "roentgen" / "py.typed").is_file()


@pytest.mark.slow
def test_types_check_from_outside(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(
        "import roentgen\n\nmodel = roentgen.load_model()\n"
        "for sample in roentgen.generate(model, 'left pleural effusion', progress=True):\n"
        "    sample.save('a.png')\n    reveal_type(sample.seed)\n"
    )
    # Other packages' types are not the matter, and torch's take ten seconds.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,transformers.*,diffusers.*]\nfollow_imports = skip\n")
    words = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--follow-imports=silent", "use.py"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert done.returncode == 0 and 'Revealed type is "int"' in done.stdout.replace("builtins.", ""), done.stdout


def test_no_sentence_is_longer_than_a_person_reads(run_cli, tmp_path):
    for name in ("9" * 5000, "a/" + "9" * 5000):
        code, _, err = run_cli(
            "eval", "--real", tmp_path, "--synthetic", tmp_path, f"--extractors={name}", "-o", tmp_path
        )
        assert code == 2 and len(err) < 1000, err
