"""What the measurements of reporters say of their conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roentgen.files import file_sha256
from roentgen.reports import Reporter


def about(reporter: Reporter, manifest: Path) -> dict[str, Any]:
    """Of a measurement of ``reporter`` on the images of ``manifest``, for ``Context.of``."""
    info = reporter.info
    return {
        "extractor": f"{info.kind} reporter {info.name}, {info.hash}", "resize": "squashed to the reporter's square",
        "model": {"name": info.name, "hash": info.hash},
        "inputs": {"manifest": {"name": manifest.name, "sha256": file_sha256(manifest)}},
    }  # fmt: skip
