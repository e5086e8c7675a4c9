"""The launcher of ``roentgen.recipes.finetune``, for a clone; ``roentgen train finetune`` is the same."""

import sys

from roentgen import errors
from roentgen.recipes.finetune import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/finetune.py"))
