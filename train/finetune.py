"""The launcher of ``roentgen.recipes.finetune``, for a clone; ``roentgen train finetune`` is the same."""

import sys

from roentgen import errors, threads

if __name__ == "__main__":
    threads.settle()  # before torch is loaded
    from roentgen.recipes.finetune import main

    sys.exit(errors.run(main, prog="train/finetune.py"))
