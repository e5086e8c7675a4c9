"""Files: written whole with the umask's mode, cleaned up after killed runs, hashed, claimed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from roentgen import files, folders
from roentgen.errors import UserError, told_of

WRITER = """
import sys, time
from pathlib import Path
from roentgen.files import new_folder, open_atomic
with open_atomic(Path(sys.argv[1])) as file, new_folder(Path(sys.argv[2])) as folder:
    file.write(b"half")
    file.flush()
    (folder / "part").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def umask() -> object:
    """The umask of a group's shared disk."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_files_and_folders_get_the_mode_of_the_umask(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o664
    with files.new_folder(tmp_path / "model") as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "model.safetensors").touch(mode=0o600)
    assert (tmp_path / "model" / "unet" / "model.safetensors").stat().st_mode & 0o777 == 0o664


def test_a_killed_writer_leaves_nothing_to_the_next_run(tmp_path: Path) -> None:
    """While it lives its temporary files stay; once it is killed the next writer removes them, and no stranger's."""
    paths = tmp_path / "a.bin", tmp_path / "folder"
    with subprocess.Popen([sys.executable, "-c", WRITER, *paths], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        files.clean(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert len(left) == 2 and all(name.startswith(".") and name.endswith(".tmp") for name in left)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    (tmp_path / ".stranger.tmp").touch()
    os.utime(tmp_path / ".stranger.tmp", (0, 0))
    files.write_atomic(tmp_path / "b.bin", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".stranger.tmp", "b.bin"]


def test_another_machines_leftovers_go_by_their_age(tmp_path: Path) -> None:
    young, old, older = (tmp_path / f".x.{machine}-7-{'0' * 12}.tmp" for machine in ("0" * 8, "1" * 8, "2" * 8))
    for path in (young, old, older):
        path.touch()
    os.utime(old, (time.time() - files.STALE_SECONDS - 10,) * 2)
    older.unlink()
    older.mkdir()  # a folder's time is not that of the files in it
    os.utime(older, (time.time() - files.STALE_SECONDS - 10,) * 2)
    files.clean(tmp_path)
    assert young.exists() and older.exists() and not old.exists()


def test_nothing_is_replaced_by_a_half(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", b"old")
    with files.new_folder(tmp_path / "f") as folder:
        (folder / "old").touch()
    with pytest.raises(KeyError), files.open_atomic(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyError
    with pytest.raises(KeyError), files.new_folder(tmp_path / "f") as folder:
        (folder / "new").touch()
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "f"]


def test_a_folder_killed_between_its_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / "f.old").mkdir()
    (tmp_path / "f.old" / "old").touch()
    with pytest.raises(KeyError), files.new_folder(tmp_path / "f"):
        raise KeyError
    assert (tmp_path / "f" / "old").exists()


def test_a_librarys_files_take_their_places_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "mine").write_text("kept")
    with files.new_files(tmp_path) as made:
        (made / "config.json").write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"config.json": "new", "mine": "kept"}
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config\.json.*regular"), files.new_files(tmp_path) as made:
        (made / "config.json").write_text("newer")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "mine"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left .* or try there"), (errno.EIO, "cannot be written .*; try there")],
)
def test_a_failed_write_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=words):
        files.write_atomic(tmp_path / "a", b"x", advice="try there")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_read_is_one_sentence(tmp_path: Path) -> None:
    for read in (files.read_bytes, files.read_json, files.file_sha256, files.file_hash):
        with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\); check the path"):
            read(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        files.read_bytes(tmp_path / "folder")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a JSON object"):
        files.read_json(tmp_path / "a.json")


def test_half_a_character_in_json_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"a": "\ud83e\udec1", "b": "\\ud800"}')
    assert files.read_json(path) == {"a": "\U0001fac1", "b": "\\ud800"}  # a whole one, and the name of one
    for text in (r'{"a": ["x\ud800"]}', r'{"\uDFFF": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json"):
            files.read_json(path)


def test_a_home_that_nobody_knows_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.user_path("~/x") == Path("/home/somebody/x")
    with pytest.raises(UserError, match="~no-such-user-here/x: the home folder is not known here"):
        files.user_path("~no-such-user-here/x")


def test_hashes(tmp_path: Path) -> None:
    """Values as hashlib gives them; those of files, folders and weights are written into results and checkpoints."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_bytes(b"abc")
    abc = hashlib.sha256(b"abc")
    assert files.sha256("a", b"bc") == files.file_sha256(tmp_path / "f" / "a") == abc.hexdigest()
    assert files.file_hash(tmp_path / "f" / "a") == hashlib.sha256(abc.digest()).hexdigest()[:16]
    assert files.file_hash(tmp_path / "f") == hashlib.sha256(b"a\0" + abc.digest()).hexdigest()[:16]
    assert files.unit_interval("abc") == int.from_bytes(abc.digest()[:6], "big") / 2**48
    values = torch.tensor([[1.0, 2.0]])
    bare = values.numpy().tobytes()
    assert files.tensors_hash([("w", values)]) == hashlib.sha256(b"w\0" + bare).hexdigest()[:16]
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = values
    assert files.fingerprint(layer) == hashlib.sha256(b"weight" + bare).hexdigest()[:16]


def test_damage_behind_a_seal_is_seen(tmp_path: Path) -> None:
    files.write_sealed(tmp_path / "a", b"abc")
    assert files.read_sealed(tmp_path / "a") == b"abc" and files.read_sealed(tmp_path / "none") is None
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes().replace(b"abc", b"abd"))
    assert files.read_sealed(tmp_path / "a") is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with folders.hold_folder(tmp_path, "--out"):
        assert "warning: --out" in (said := capsys.readouterr().err) and "no locks" in said


def test_a_claim_names_what_differs(tmp_path: Path) -> None:
    about = {"plan": {"count": 1, "seed": 2}, "hash": "a"}
    assert not folders.claim(tmp_path / "plan.json", about, holds="a set of another")
    assert folders.claim(tmp_path / "plan.json", about, holds="a set of another")
    other = {"plan": {"count": 1, "seed": 3}, "hash": "b"}
    with pytest.raises(UserError, match=r"holds a set of another plan \(seed\), model; choose another folder"):
        folders.claim(tmp_path / "plan.json", other, holds="a set of another", words={"hash": "model"})
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        folders.claim(tmp_path / "plan.json", about, holds="a set of another")


def test_a_lock_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(UserError, match="--out"):
        folders.hold_folder(tmp_path, "--out")


def test_only_the_faults_that_are_named_are_explained() -> None:
    with (
        pytest.raises(UserError, match=r"table: cannot be read \(no rows\); write some"),
        files.explained("table: cannot be read", "write some", ValueError),
    ):
        raise ValueError("no rows.")
    with pytest.raises(KeyError), files.explained("table: cannot be read", "write some", ValueError):
        raise KeyError("a fault of ours")
    with pytest.raises(UserError, match=r"^--vae no folder$"), told_of("--vae"):
        raise UserError("no folder")
