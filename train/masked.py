"""The launcher of ``roentgen.recipes.masked``, for a clone; ``roentgen train masked`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.masked import main

    sys.exit(errors.run(main, prog="train/masked.py"))
