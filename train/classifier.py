"""The launcher of ``roentgen.recipes.classifier``, for a clone; ``roentgen train classifier`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.classifier import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/classifier.py"))
