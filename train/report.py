"""The launcher of ``roentgen.recipes.report``, for a clone; ``roentgen train report`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.report import main

    sys.exit(errors.run(main, prog="train/report.py"))
