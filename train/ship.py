"""The launcher of ``roentgen.recipes.ship``, for a clone; ``roentgen train ship`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.ship import main

    sys.exit(errors.run(main, prog="train/ship.py"))
