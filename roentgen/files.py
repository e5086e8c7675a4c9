"""Files: the one writer (whole or not at all) and the one content hash.

What a killed run leaves behind is a hidden file ``.NAME.MACHINE-PID-RANDOM.tmp``; the next run that writes to the same
folder removes it. Every file that is written gets the mode that the user's umask says.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from roentgen.errors import UserError, is_fault

if TYPE_CHECKING:
    import torch

STALE_SECONDS = 3600  # a temporary file of another machine that nobody has written to for so long was left by a crash
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{12,32}\.tmp")
_cleaned: set[str] = set()


# ---------------------------------------------------------------------------------------- reading


def regular(path: str | os.PathLike[str]) -> Path:
    """``path``; OSError unless it is there and a regular file: a pipe would be waited for without end, and a device
    read."""
    mode = os.stat(path).st_mode  # noqa: PTH116 - for what is no Path yet
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return Path(path)


def read_bytes(path: Path, *, advice: str = "check the path") -> bytes:
    """The content of a file; UserError if it cannot be read."""
    with explained(f"{path}: cannot be read", advice, OSError):
        return regular(path).read_bytes()


def read_json(path: Path, *, advice: str = "check the path") -> dict[str, Any]:
    """A JSON file that holds an object; UserError otherwise, and where a text in it is none in Unicode."""
    data = read_bytes(path, advice=advice)
    with explained(f"{path}: cannot be read as JSON", advice, (ValueError, RecursionError)):
        value = json.loads(data)
        if re.search(rb"\\u[dD][89a-fA-F]", data):  # half of a character is found only when it is printed
            json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; {advice}")
    return value


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, ``~`` expanded; UserError where nobody knows whose home that is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: the home folder is not known here; write the whole path") from None


def reason(error: BaseException) -> str:
    """What an error says, on one line of 200 characters at most."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)  # as libraries name types
    return (" ".join(text.split()) or type(error).__name__)[:200].rstrip(".")


@contextlib.contextmanager
def explained(
    what: str, fix: str = "", faults: type[BaseException] | tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Run a block of calls: what fails there, of whatever class or only of ``faults``, is a UserError: ``what`` (why);
    ``fix``.

    A UserError, memory that is not there and a request to stop pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, faults) if faults else is_fault(error)):
            raise
        raise UserError(f"{what} ({reason(error)}){fix and f'; {fix}'}") from error


# ---------------------------------------------------------------------------------------- writing


def write_atomic(path: Path, data: bytes, *, scratch: Path | None = None, advice: str = "choose another --out") -> None:
    """Write ``data`` to ``path`` by ``open_atomic``; UserError if it cannot be written."""
    with open_atomic(path, scratch=scratch, advice=advice) as file:
        file.write(data)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as compressed NPZ, atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


@contextlib.contextmanager
def open_atomic(path: Path, *, scratch: Path | None = None, advice: str = "choose another --out") -> Iterator[BinaryIO]:
    """A file to write that appears as ``path`` when the block ends well: temporary file, fsync, rename.

    Folders are made. ``scratch``: folder of the temporary file, on the same disk, so that a killed process leaves none
    beside finished files; None is the folder of ``path``. UserError, which ends with ``advice``, if it cannot be
    written.
    """
    temporary: Path | None = None
    try:
        _check_place(path, advice)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path, scratch or path.parent)
        # Not tempfile: its files have mode 0600, and reading the umask to undo that is not safe among threads.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritten(path, error, advice) from error
    finally:
        if temporary is not None:  # gone already where all went well
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, *, advice: str = "choose another --out") -> Iterator[Path]:
    """A folder to fill that takes the place of ``path`` when the block ends well; else ``path`` stays as it was.

    Its files get the mode that the umask says, whatever their writer chose (safetensors writes 0600). UserError, which
    ends with ``advice``, if it cannot be written.
    """
    if path.name in ("", ".."):  # the current one, or one around it
        raise UserError(f"{str(path)!r} holds what you work in, and cannot be replaced; {advice}")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no folder; {advice}")
    old = path.with_name(f"{path.name}.old")
    with _scratch(path, path.parent, advice) as temporary:
        if old.exists() and not path.exists():  # killed between the two renames below
            old.rename(path)
        yield temporary
        _by_umask(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def new_files(folder: Path, *, advice: str = "choose another --out") -> Iterator[Path]:
    """A folder to fill by a library whose files take the places of those of the same names in ``folder`` when the block
    ends well; whatever else lies in ``folder`` stays. UserError, which ends with ``advice``, if one cannot be written,
    also where something that is no regular file has its name: a pipe would be waited for without end."""
    with _scratch(folder, folder, advice) as temporary:
        yield temporary
        _by_umask(temporary)
        for file in sorted(temporary.iterdir()):
            _check_place(folder / file.name, advice)
            file.replace(folder / file.name)


@contextlib.contextmanager
def _scratch(path: Path, folder: Path, advice: str) -> Iterator[Path]:
    """A new folder in ``folder`` for what is to come to ``path``, gone when the block ends; an OSError in it is a
    UserError that names ``path``."""
    temporary: Path | None = None
    try:
        temporary = _temporary(path, folder)
        temporary.mkdir()
        yield temporary
    except OSError as error:
        raise _unwritten(path, error, advice) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_place(path: Path, advice: str) -> None:
    """UserError where a rename would put a file in the place of a device or a pipe."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file, so that nothing is written there; {advice}")


def _unwritten(path: Path, error: OSError, advice: str) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{path}: no space left on the disk; free some or {advice} (everything already written is kept)"
        )
    return UserError(f"{path}: cannot be written ({reason(error)}); {advice}")


def _by_umask(folder: Path) -> None:
    probe = folder / f".{uuid.uuid4().hex}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


@functools.cache
def _machine() -> str:
    """Eight digits that are the same where process numbers mean the same processes: the machine since it started."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux only
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return sha256(" ".join(facts))[:8]


def _temporary(path: Path, folder: Path) -> Path:
    """A new name beside or for ``path`` in ``folder``, which is made and cleaned of what dead processes left there."""
    folder.mkdir(parents=True, exist_ok=True)
    if str(folder) not in _cleaned:
        clean(folder)
        _cleaned.add(str(folder))
    return folder / f".{path.name[:40]}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp"


def clean(folder: Path) -> None:
    """Remove temporary files and folders that dead processes left in ``folder``; never one that is being written."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            with contextlib.suppress(OSError):  # another process was faster, or it is not ours to remove
                if found is None or not _is_left(entry, found[1], found[2]):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()


def _is_left(entry: os.DirEntry[str], machine: str | None, number: str | None) -> bool:
    if os.name == "posix" and number is not None and machine == _machine():
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return False
    patience = STALE_SECONDS * (24 if entry.is_dir(follow_symlinks=False) else 1)  # its time is not that of its files
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > patience


class HashedFile(io.RawIOBase):
    """Passes on to ``file`` what is written from start to end; counts and hashes it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def sha256(self) -> str:
        return self._digest.hexdigest()


def write_sealed(path: Path, body: bytes, *, scratch: Path | None = None) -> None:
    """Write ``body`` behind a line with its SHA-256, for ``read_sealed``."""
    write_atomic(path, sha256(body).encode() + b"\n" + body, scratch=scratch)


def read_sealed(path: Path) -> bytes | None:
    """What ``write_sealed`` wrote; None where there is none or it is damaged."""
    try:
        seal, _, body = regular(path).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the disk") from None
    return body if sha256(body).encode() == seal else None


# ---------------------------------------------------------------------------------------- hashes


def sha256(*parts: Any) -> str:
    """SHA-256 in hex over texts (as UTF-8), bytes and contiguous arrays, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
    return digest.hexdigest()


def unit_interval(text: str) -> float:
    """A fixed place of ``text`` in [0, 1), evenly spread over texts."""
    return int(sha256(text)[:12], 16) / 2**48


def file_sha256(path: str | Path, *, advice: str = "check the path") -> str:
    """SHA-256 of a file in hex, read piece by piece; UserError if it cannot be read."""
    with explained(f"{path}: cannot be read", advice, OSError), regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Iterable[str | Path], *, workers: int) -> list[str]:
    """``file_sha256`` of each file, by threads."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(file_sha256, paths))


def has_sha256(path: Path, digest: str) -> bool:
    """Whether ``path`` is there and has this SHA-256; UserError if it is there and cannot be read."""
    return path.is_file() and file_sha256(path) == digest


def file_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 over the SHA-256 of a file, or over the names and SHA-256s of a folder's."""
    if not path.is_dir():
        return sha256(bytes.fromhex(file_sha256(path)))[:16]
    files = sorted(item for item in path.rglob("*") if item.is_file())
    parts = [(f"{file.relative_to(path).as_posix()}\0", bytes.fromhex(file_sha256(file))) for file in files]
    return sha256(*(part for pair in parts for part in pair))[:16]


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]], *, separator: str = "\0") -> str:
    """First 16 hex digits of the SHA-256 over names, each ended by ``separator``, and bytes of tensors, in order."""
    import torch

    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name}{separator}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def fingerprint(module: torch.nn.Module) -> str:
    """``tensors_hash`` of a module's weights, sorted by name."""
    return tensors_hash(sorted(module.state_dict().items()), separator="")


def require_writable(folder: Path, flag: str) -> None:
    """Create ``folder`` and write there; a user's mistake is one sentence that names ``flag``."""
    with explained(f"{flag} {folder}: cannot write there", "choose another folder", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(Path("writable"), folder)
        probe.touch()
        probe.unlink()
