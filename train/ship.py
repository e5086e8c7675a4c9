"""The launcher of ``roentgen.recipes.ship``, for a clone; ``roentgen train ship`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.ship import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/ship.py"))
