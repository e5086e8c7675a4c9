"""Files of an unfinished set: plain values, sealed, so that what the disk has spoiled counts as not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from roentgen.errors import UserError
from roentgen.files import read_sealed, write_sealed

WORK = ".work"
"""Folder in a set's own for everything that is gone when it is finished."""


def write_values(path: Path, values: Any, *, scratch: Path) -> None:
    """Write plain values as sealed JSON; the same values give the same bytes."""
    write_sealed(path, json.dumps(values, ensure_ascii=False).encode(), scratch=scratch)


def read_values(path: Path, *, needed: bool = False) -> Any:
    """What ``write_values`` wrote; None where there is no such file, or (named on stderr) a damaged one.

    UserError instead where it is ``needed``: nothing may count as rejected, or as never made, for that.
    """
    body = read_sealed(path)
    if body is not None:
        return json.loads(body)
    if needed:
        raise UserError(f"{path} is lost or damaged; run the same command again")
    if path.exists():
        print(f"roentgen: warning: {path} is damaged and is made again", file=sys.stderr)
    return None
