"""The launcher of ``roentgen.recipes.tokenizer``, for a clone; ``roentgen train tokenizer`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.tokenizer import main

    sys.exit(errors.run(main, prog="train/tokenizer.py"))
