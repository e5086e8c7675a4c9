"""The launcher of ``roentgen.recipes.text_encoder``, for a clone; ``roentgen train text_encoder`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.text_encoder import main

    sys.exit(errors.run(main, prog="train/text_encoder.py"))
