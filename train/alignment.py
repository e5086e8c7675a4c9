"""The launcher of ``roentgen.recipes.alignment``, for a clone; ``roentgen train alignment`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.alignment import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/alignment.py"))
