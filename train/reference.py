"""The launcher of ``roentgen.recipes.reference``, for a clone; ``roentgen train reference`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.reference import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/reference.py"))
