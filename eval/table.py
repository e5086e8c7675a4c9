"""Put the figures of an evaluation into documents, between ``<!-- results:NAME -->`` and its end.

    python eval/table.py eval/results/mini-suite README.md docs/evaluate.md roentgen/models/mini/README.md

The folder is one that `roentgen eval` (or ``eval/mini.py``, which calls it) wrote. A document has the markers
``results:suite`` or ``results:mini`` for every measure, ``results:quality`` for six of them, or several of these.
Without documents the table is printed. With ``--check`` nothing is written and a document that is out of date is an
error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roentgen import errors


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval/table.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder that roentgen eval wrote")
    parser.add_argument("documents", type=Path, nargs="*", help="Markdown files with the markers")
    parser.add_argument("--suite", action="store_true", help=argparse.SUPPRESS)  # once told two kinds of folders apart
    parser.add_argument("--check", action="store_true", help="fail if a document is out of date; write nothing")
    args = parser.parse_args(argv)
    try:
        from roentgen.metrics.report.page import markdown, quality
        from roentgen.metrics.report.tables import fill
    except ModuleNotFoundError as error:
        raise errors.UserError(f"eval/table.py needs {error.name}; pip install 'roentgen-cxr[eval]'") from None
    whole = markdown(args.results)
    texts = {"suite": whole, "mini": whole, "quality": quality(args.results)}
    if not args.documents:
        print(whole)
    for document in args.documents:
        if fill(document, texts, write=not args.check) and args.check:
            raise errors.UserError(f"{document} is out of date; run the command again without --check")
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/table.py"))
