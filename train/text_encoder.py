"""The launcher of ``roentgen.recipes.text_encoder``, for a clone; ``roentgen train text_encoder`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.text_encoder import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/text_encoder.py"))
