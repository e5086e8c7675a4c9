"""Keys that let a client in: hashes in a file, or plain in an environment variable; compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from roentgen.errors import UserError
from roentgen.files import explained, sha256, write_atomic

VARIABLE = "ROENTGEN_API_KEY"
"""Environment variable with one key or several, separated by commas."""
SHORTEST = 16


class Keys:
    """The hashes of all keys by the names of their holders; empty where anybody may come in."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def holder(self, authorization: str) -> str | None:
        """Whose key an ``Authorization`` header carries (Bearer, or the password of Basic); None for nobody's.

        Every hash is compared, whole, so that the time tells nothing.
        """
        said = sha256(_presented(authorization))
        found = None
        for name, digest in self._hashes.items():
            if hmac.compare_digest(said, digest):
                found = name
        return found


def _presented(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def load_keys(file: Path | None, environ: Mapping[str, str] | None = None) -> Keys:
    """The keys of ``file`` (lines ``NAME HASH``, as ``add_key`` writes them) and of the environment.

    UserError where the file is missing, damaged, or readable for others.
    """
    hashes: dict[str, str] = {}
    for number, key in enumerate((os.environ if environ is None else environ).get(VARIABLE, "").split(",")):
        if not key.strip():
            continue
        if len(key.strip()) < SHORTEST:
            raise UserError(f"{VARIABLE}: a key has fewer than {SHORTEST} characters; make one with --add-key")
        hashes[f"environment-{number + 1}"] = sha256(key.strip())
    if file is not None:
        hashes |= _read(file)
    return Keys(hashes)


def _read(file: Path) -> dict[str, str]:
    with explained(
        f"--keys {file}: cannot be read",
        f"`roentgen serve --keys {file} --add-key NAME` makes one",
        (OSError, UnicodeDecodeError),
    ):
        open_to = stat.S_IMODE(file.stat().st_mode) & 0o077
        text = file.read_text(encoding="utf-8")
    if open_to and os.name == "posix":
        raise UserError(f"--keys {file}: others may read or write it; run chmod 600 {file}")
    hashes = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 2 or not re.fullmatch("[0-9a-f]{64}", fields[1]):
            raise UserError(f"--keys {file}: line {number} is no NAME and HASH; add keys with --add-key NAME")
        hashes[fields[0]] = fields[1]
    if not hashes:
        raise UserError(f"--keys {file}: holds no key; add one with --add-key NAME")
    return hashes


def add_key(file: Path, name: str) -> str:
    """A new key for ``name``, whose hash is added to ``file``; the key itself is written nowhere.

    UserError where the name has a key already, or the file cannot be read or written.
    """
    if not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise UserError(f"--add-key {name[:80]!r}: give a name of letters, digits and . @ - _")
    hashes = _read(file) if file.exists() and file.stat().st_size else {}
    if name in hashes:
        raise UserError(f"--add-key {name}: has a key in {file} already; remove its line to give a new one")
    key = f"roentgen-{secrets.token_urlsafe(32)}"
    lines = [f"{one} {digest}" for one, digest in {**hashes, name: sha256(key)}.items()]
    before = os.umask(0o077)
    try:
        write_atomic(file, ("\n".join(lines) + "\n").encode(), advice="choose another --keys")
    finally:
        os.umask(before)
    file.chmod(0o600)
    return key
