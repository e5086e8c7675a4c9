"""The launcher of ``roentgen.recipes.autoencoder``, for a clone; ``roentgen train autoencoder`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.autoencoder import main

    sys.exit(errors.run(main, prog="train/autoencoder.py"))
