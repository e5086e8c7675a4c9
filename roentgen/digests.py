"""SHA-256 of many files, kept so that a file is hashed once as long as it does not change."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from roentgen.devices import TEAM_OF_ONE, Team
from roentgen.errors import UserError
from roentgen.files import file_sha256, read_sealed, sha256, write_sealed

BLOCK = 64  # neighbouring files that one process hashes


def file_digests(paths: Sequence[str], folder: Path, *, team: Team = TEAM_OF_ONE) -> list[str]:
    """SHA-256 of each file; hashed where its path, size or times are new. Two barriers.

    What is known is kept in ``folder``, one list a process, each with a SHA-256 of its own.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    from tqdm import tqdm

    with ThreadPoolExecutor(8) as pool:  # on a network disk a look takes longer than a hash
        stamps = list(pool.map(_stamp, paths))
        known = _known_digests(folder)
        team.wait()  # no list changes before all have read them
        todo = [
            item for item, stamp in enumerate(stamps) if item // BLOCK % team.world == team.rank and stamp not in known
        ]
        if todo:
            hashed = tqdm(
                pool.map(file_sha256, [paths[item] for item in todo]),
                total=len(todo),
                desc="hashing images",
                file=sys.stderr,
                leave=False,
                disable=team.rank != 0,
            )
            own = folder / f"digests-{team.rank}.txt"
            lines = _read_digests(own)
            lines |= {stamps[item]: digest for item, digest in zip(todo, hashed, strict=True)}
            body = "".join(f"{stamp} {digest}\n" for stamp, digest in lines.items()).encode()
            write_sealed(own, body)
        team.wait()
        known |= _known_digests(folder)
        # Only where processes do not share a disk, or another run has written the same list.
        return [known.get(stamp) or file_sha256(path) for stamp, path in zip(stamps, paths, strict=True)]


def _stamp(path: str) -> str:
    """What changes whenever a file does; the change time tells of files replaced under an older date."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 400,000 files takes longer than the look
    except OSError:
        raise UserError(f"{path}: image not found; run `roentgen data check` on the manifest") from None
    text = f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    return sha256(text)[:32]


def _known_digests(folder: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for path in sorted(folder.glob("digests-*.txt")):
        known |= _read_digests(path)
    return known


def _read_digests(path: Path) -> dict[str, str]:
    """A list of stamps and digests; empty where it is missing or damaged, so that files are hashed again."""
    body = read_sealed(path)
    if body is None:
        if path.exists():
            print(f"{path}: corrupt; images are hashed again", file=sys.stderr)
        return {}
    words = body.decode().split()
    return dict(zip(words[::2], words[1::2], strict=True))
