"""The launcher of ``roentgen.recipes.alignment``, for a clone; ``roentgen train alignment`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.alignment import main

    sys.exit(errors.run(main, prog="train/alignment.py"))
