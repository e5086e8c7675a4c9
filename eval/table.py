"""Put the figures of a result folder into documents, between ``<!-- results:NAME -->`` and its end.

    python eval/table.py --suite eval/results/mini-suite README.md docs/evaluate.md
    python eval/table.py eval/results/mini docs/evaluate.md roentgen/models/mini/README.md

With ``--suite`` the folder is one that `roentgen eval` wrote: a document has the markers ``results:suite`` for every
measure, ``results:quality`` for six of them, or both. Without it the folder is that of ``eval/mini.py`` and the markers
are ``results:mini``. Without documents the table is printed. With ``--check`` nothing is written and a document that
is out of date is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roentgen import errors
from roentgen.metrics.report.page import markdown as suite_table
from roentgen.metrics.report.page import quality
from roentgen.metrics.report.tables import fill, mini_report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval/table.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder that eval/mini.py or roentgen eval wrote")
    parser.add_argument("documents", type=Path, nargs="*", help="Markdown files with the markers")
    parser.add_argument("--suite", action="store_true", help="the folder is one that roentgen eval wrote")
    parser.add_argument("--check", action="store_true", help="fail if a document is out of date; write nothing")
    args = parser.parse_args(argv)
    if args.suite:
        texts = {"suite": suite_table(args.results), "quality": quality(args.results)}
    else:
        texts = {"mini": mini_report(args.results)}
    if not args.documents:
        print(next(iter(texts.values())))
    for document in args.documents:
        if fill(document, texts, write=not args.check) and args.check:
            raise errors.UserError(f"{document} is out of date; run the command again without --check")
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/table.py"))
