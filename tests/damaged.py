"""Files with one flipped bit."""

from __future__ import annotations

import os
from pathlib import Path


def damage(path: Path, offset: int) -> None:
    """Flip one bit of one byte, and keep the file's times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
