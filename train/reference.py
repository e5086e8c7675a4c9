"""The launcher of ``roentgen.recipes.reference``, for a clone; ``roentgen train reference`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.reference import main

    sys.exit(errors.run(main, prog="train/reference.py"))
