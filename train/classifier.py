"""The launcher of ``roentgen.recipes.classifier``, for a clone; ``roentgen train classifier`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.classifier import main

    sys.exit(errors.run(main, prog="train/classifier.py"))
