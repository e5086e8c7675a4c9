"""What the measurements of reporters say of their conditions."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from roentgen.config import as_dict
from roentgen.files import file_sha256
from roentgen.metrics.result import Context
from roentgen.provenance import portable
from roentgen.reports import Reporter


def context_of(
    reporter: Reporter, settings: Any, manifest: Path, *, command: str, leave_out: Collection[str]
) -> Context:
    """Of a measurement of ``reporter`` on the images of ``manifest``; of its ``settings`` without those of
    ``leave_out``."""
    info = reporter.info
    return Context(
        extractor=f"{info.kind} reporter {info.name}, {info.hash}", resize="squashed to the reporter's square",
        seed=settings.seed,
        settings={key: portable(value) for key, value in as_dict(settings).items() if key not in leave_out},
        model={"name": info.name, "hash": info.hash},
        inputs={"manifest": {"name": manifest.name, "sha256": file_sha256(manifest)}}, command=command,
    )  # fmt: skip
