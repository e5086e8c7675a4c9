"""Folders: the one lock, and the one claim to what a folder is for."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from roentgen.errors import UserError
from roentgen.files import explained, read_json, reason, write_atomic

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def hold_folder(folder: Path, flag: str) -> IO[str]:
    """Lock ``folder`` for one run; the lock is held until the returned file is closed or the process ends.

    Where the file system has no locks, a warning says that nothing keeps a second run away.
    """
    with explained(f"{flag} {folder}: cannot write there", "choose another folder", OSError):
        # Never waiting for the other end of what is no file. Windows has no such files, and no such flag.
        at_once = getattr(os, "O_NONBLOCK", 0)
        number = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND | at_once, 0o666)
        file = os.fdopen(number, "a", encoding="utf-8")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{flag} {folder}: another run is writing there; wait for it or choose another") from None
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            file.close()
            raise UserError(f"{flag} {folder}: cannot be locked ({reason(error)}); choose another folder") from None
        print(
            f"roentgen: warning: {flag} {folder}: this file system has no locks; see to it that no other run "
            "writes there",
            file=sys.stderr,
        )
    return file


def claim(
    path: Path, about: Mapping[str, Any], *, holds: str, words: Mapping[str, str] = {}, write: bool = True
) -> bool:
    """Make the folder of the JSON file ``path`` that of ``about``: whether it was before.

    ``holds``: what such a folder holds, for the error, such as "a set of another". ``words``: names of keys for people.
    ``write``: False only looks, for processes beside the one that writes.

    Raises:
        UserError: the folder is that of something else, which is named, or cannot be read or written.
    """
    about = json.loads(json.dumps(about))
    if path.exists():
        check_same(read_json(path, advice="choose another --out"), about, holds=f"--out {path.parent} holds {holds}",
                   words=words)  # fmt: skip
        return True
    if write:
        write_atomic(path, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    return False


def check_same(found: Mapping[str, Any], about: Mapping[str, Any], *, holds: str, words: Mapping[str, str]) -> None:
    """UserError that names each key of ``about``, and the part of it, that is not the same in ``found``."""
    named = []
    for key, value in about.items():
        other = found.get(key)
        if other == value:
            continue
        inner = ""
        if isinstance(value, dict) and isinstance(other, dict):
            inner = f" ({', '.join(part for part in value | other if value.get(part) != other.get(part))})"
        named.append(words.get(key, key) + inner)
    if named:
        raise UserError(f"{holds} {', '.join(dict.fromkeys(named))}; choose another folder")
