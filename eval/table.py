"""Put the figures of an evaluation into documents, between ``<!-- results:NAME -->`` and its end.

    python eval/table.py eval/results/mini-suite README.md docs/evaluate.md roentgen/models/mini/README.md

The folder is one that `roentgen eval` (or ``eval/mini.py``, which calls it) wrote. A document has the markers
``results:suite`` or ``results:mini`` for every measure, ``results:quality`` for six of them, or several of these.
Without documents the table is printed. With ``--check`` nothing is written and a document that is out of date is an
error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from roentgen import errors
from roentgen.config import Positional, parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of the tables."""

    results: Annotated[Path, "folder that roentgen eval wrote", Positional()]
    documents: Annotated[tuple[Path, ...], "Markdown files with the markers", Positional()] = ()
    check: Annotated[bool, "fail if a document is out of date; write nothing"] = False


def main(argv: Sequence[str] | None = None) -> int:
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--suite"]  # of older commands
    s = parse_settings(Settings, words, prog="eval/table.py", about=__doc__)
    try:
        from roentgen.metrics.report.page import markdown, quality
        from roentgen.metrics.report.tables import fill_all
        from roentgen.metrics.result import shown
    except ModuleNotFoundError as error:
        raise errors.UserError(f"eval/table.py needs {error.name}; pip install 'roentgen-cxr[eval]'") from None
    with shown(s.results):
        whole = markdown(s.results)
        texts = {"suite": whole, "mini": whole, "quality": quality(s.results)}
    if not s.documents:
        print(whole)
    fill_all(s.documents, texts, check=s.check)
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/table.py"))
