"""Faults met in the field: pipes and devices for files, long names, signals, ranks that do not come, counts."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roentgen import devices, errors, images
from roentgen.commands.generate import slugs
from roentgen.config import PathOrName, parse_settings
from roentgen.config.settings import dataclass_of
from roentgen.devices import PeerLost, Process, meeting
from roentgen.errors import UserError
from roentgen.files import file_sha256, read_bytes, read_sealed, write_atomic
from roentgen.generators.base import weights_in

Cli = Callable[..., tuple[int, str, str]]


# ------------------------------------------------------------------------------- what is no regular file


@pytest.mark.parametrize("read", [images.read_image, images.read_provenance, file_sha256, read_bytes, read_sealed])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_a_pipe_for_a_file_is_not_waited_for(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    {"pipe": os.mkfifo, "folder": Path.mkdir, "loop": lambda p: p.symlink_to(p)}[kind](path)
    with pytest.raises(UserError, match=r"x\.png"):
        read(path)


def test_a_pipe_among_images_is_one_sentence(run_cli: Cli, tmp_path: Path, tiny_pipeline: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b")  # might be DICOM without an ending
    for words in (
        ["info", tmp_path / "a.png"],
        ["eval", "--real", tmp_path, "--synthetic", tmp_path, "-o", tmp_path / "out", "--metrics", "repeats"],
        ["data", "prepare", "dicom", "--root", tmp_path, "--reports", tmp_path / "a.png", "-o", tmp_path / "m"],
        ["generate", "left", "--model", tiny_pipeline, "--config", tmp_path / "b"],
    ):
        code, _, err = run_cli(*words)
        assert code == 2 and "Traceback" not in err


def test_nothing_takes_the_place_of_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: is no regular file"):
        write_atomic(tmp_path / "pipe.png", b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)


# --------------------------------------------------------------------------------------- names and paths


def one_path(path: PathOrName | None = None, other: Path | None = None) -> int:
    """A command of two paths."""
    return 0


@pytest.mark.parametrize("flag", ["--path", "--other"])
def test_a_name_that_no_file_system_takes(flag: str) -> None:
    with pytest.raises(UserError, match=rf"{flag} '?aaa.*cannot be looked at"):
        parse_settings(dataclass_of(one_path), [flag, "a" * 300], prog="x")


@pytest.mark.parametrize("flag", ["--path", "--other"])
def test_a_folder_that_may_not_be_looked_into(flag: str, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    (locked / "inner").mkdir(parents=True)
    tmp_path.chmod(0o755)
    locked.chmod(0)
    user = os.geteuid()
    if user == 0:  # root looks everywhere
        for folder in (tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=rf"{flag} .*cannot be looked at"):
            parse_settings(dataclass_of(one_path), [flag, str(locked / "inner")], prog="x")
    finally:
        os.seteuid(user)
        locked.chmod(0o755)


def test_an_oserror_is_a_sentence_wherever_it_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        Path("/nowhere/at\udcffall").read_bytes()
        return 0

    assert errors.run(main, prog="roentgen") == 2
    assert "nowhere" in capsys.readouterr().err

    def fails_under_an_open_file() -> int:
        Path("/proc/self/mem").read_bytes()
        return 0

    assert errors.run(fails_under_an_open_file, prog="roentgen") == 2
    assert "cannot be read" in capsys.readouterr().err

    def hungry() -> int:
        raise MemoryError

    assert errors.run(hungry, prog="roentgen") == 2
    assert "memory" in capsys.readouterr().err

    def hungry_in_torch() -> int:
        import torch

        torch.empty(2**60)
        return 0

    assert errors.run(hungry_in_torch, prog="roentgen") == 2
    assert "memory" in capsys.readouterr().err


def test_ids_that_differ_have_names_that_differ() -> None:
    assert slugs(["Case 1", "case-2"]) == ["case-1", "case-2"]
    one, other, third = slugs(["Case 1", "case-1", "case-3"])
    assert one != other and {one[:7], other[:7]} == {"case-1-"} and third == "case-3"
    assert slugs(["left", "left"]) == ["left", "left"]


def test_a_sentence_has_a_line_of_its_own_beside_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    def main() -> int:
        for _ in tqdm(range(3), desc="images", leave=False):
            raise KeyboardInterrupt
        return 0

    assert errors.run(main, prog="roentgen") == 130
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[-1].startswith("roentgen: ") and not any("images" in line for line in lines if "roentgen: " in line)


def test_a_table_without_the_extra_names_it(tmp_path: Path) -> None:
    """eval/table.py where jinja2 is not installed."""
    root = Path(__file__).parents[1]
    code = "import runpy, sys; sys.modules['jinja2'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    words = [sys.executable, "-c", code, "eval/table.py", "eval/results/mini-suite"]
    ran = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "jinja2" in ran.stderr and "roentgen-cxr[eval]" in ran.stderr


def test_no_text_of_the_sample_is_too_long_for_mini() -> None:
    import pandas as pd

    from roentgen import load_model

    model = load_model("mini", device="cpu")
    for text in pd.read_csv(Path(__file__).parents[1] / "data" / "sample" / "manifest.csv")["text"]:
        model.check(text)


def test_no_file_tells_where_the_model_lies(run_cli: Cli, make_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    out, model = tmp_path / "set", make_pipeline(tmp_path / "private" / "tiny", window=77)
    flags = ["--per-finding", "1", "--findings", "Effusion", "--filter", "none", "--steps", "1"]
    code, _, err = run_cli("export", *flags, "--model", model, "--format", "folder,parquet,dicom", "-o", out)
    assert code == 0, err
    where = str(model.parent).encode()
    assert not [path for path in out.rglob("*") if path.is_file() and where in path.read_bytes()]
    assert b'"tiny"' in (out / "plan.json").read_bytes()


# ------------------------------------------------------------------------------------ signals and ranks


def test_sigterm_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def main() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        return 0

    assert errors.run(main, prog="roentgen") == 143
    assert "terminated; everything already written is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_others_never_come_does_not_wait_for_ever(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(devices, "MEETING", timedelta(seconds=2))
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(PeerLost, match=rf"process {rank} has not met the others of 2"), meeting(Process(rank, 2)):
        raise AssertionError("met somebody")


# -------------------------------------------------------------------------------------- counts, weights


def test_a_count_beyond_memory_is_refused_at_once(
    run_cli: Cli, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "left", "--model", tiny_pipeline, "-o", tmp_path / "out", "--steps", "1", "-n"]
    code, _, err = run_cli(*words, 10**12)
    assert code == 2 and "--num-images: 1,000,000,000,000 images" in err and "ROENTGEN_MAX_IMAGES" in err
    monkeypatch.setenv("ROENTGEN_MAX_IMAGES", "1")
    assert run_cli(*words, 2)[0] == 2
    assert run_cli(*words, 1)[0] == 0
    picture = next(iter(sorted((tmp_path / "out").rglob("*.png"))))
    code, _, err = run_cli("edit", picture, "left", "--no-invert", "-o", tmp_path / "edits", "-n", 10**12)
    assert code == 2 and "--num-images" in err and "ROENTGEN_MAX_IMAGES" in err


def test_weights_are_named(run_cli: Cli, tiny_pipeline: Path, tmp_path: Path) -> None:
    assert weights_in("(left:1.5) effusion (small : .5), no (a) (b: c)") == ["(left:1.5)", "(small : .5)"]
    code, out, err = run_cli("generate", "(left:1.5) effusion", "--model", tiny_pipeline, "--steps", "1", "--json",
                             "-o", tmp_path)  # fmt: skip
    assert code == 0 and "(left:1.5)" in err and "weight read as text: (left:1.5)" in out


def test_the_grid_is_no_image_of_the_set(run_cli: Cli, tiny_pipeline: Path, tmp_path: Path) -> None:
    from roentgen.metrics.image_set import open_set

    code, _, err = run_cli("generate", "left effusion", "--model", tiny_pipeline, "--steps", "1", "-n", "2", "--grid",
                           "-o", tmp_path)  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "grid.png").is_file() and len(open_set(tmp_path, name="synthetic")) == 2
    (tmp_path / "real").mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "real" / "grid.png")  # of somebody else
    assert len(open_set(tmp_path / "real", name="real", least=1)) == 1
