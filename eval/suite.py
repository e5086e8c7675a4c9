"""Measure generated images against real ones: the same as ``roentgen eval``.

    python eval/suite.py --real data/sample/manifest.csv --synthetic out --out runs/eval

Writes one JSON file a measure and ``report.html`` under OUT; ``--help`` lists the settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from roentgen import errors, threads
from roentgen.commands.evaluate import evaluate
from roentgen.config import parse_call


def main(argv: Sequence[str] | None = None) -> int:
    threads.settle()
    words = sys.argv[1:] if argv is None else argv
    return evaluate(**parse_call(evaluate, words, prog="eval/suite.py"))


if __name__ == "__main__":
    sys.exit(errors.run(main, prog="eval/suite.py"))
