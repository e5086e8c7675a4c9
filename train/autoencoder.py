"""The launcher of ``roentgen.recipes.autoencoder``, for a clone; ``roentgen train autoencoder`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.autoencoder import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/autoencoder.py"))
