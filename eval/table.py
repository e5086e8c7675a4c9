"""Put the figures of a result folder into documents, between ``<!-- results:mini -->`` and its end.

    python eval/table.py eval/results/mini README.md roentgen/models/mini/README.md

    python eval/table.py --suite eval/results/mini-suite README.md

With ``--suite`` the folder is that of `roentgen eval`, and the markers are ``results:suite``.
Without documents the table is printed. With ``--check`` nothing is written and a document that is out of date
is an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from roentgen import errors
from roentgen.metrics.report.page import markdown as suite_table
from roentgen.metrics.report.tables import mini_report, replace_between_markers


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="eval/table.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder that eval/mini.py or roentgen eval wrote")
    parser.add_argument("documents", type=Path, nargs="*", help="Markdown files with the markers")
    parser.add_argument("--suite", action="store_true", help="the folder is that of roentgen eval")
    parser.add_argument("--check", action="store_true", help="fail if one is out of date; write nothing")
    args = parser.parse_args(argv)
    name, text = ("suite", suite_table(args.results)) if args.suite else ("mini", mini_report(args.results))
    if not args.documents:
        print(text)
    for document in args.documents:
        if replace_between_markers(document, name, text, write=not args.check) and args.check:
            raise errors.UserError(f"{document} is out of date; run the command again without --check")
    return 0


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/table.py"))
