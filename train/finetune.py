"""Train or fine-tune a Stable Diffusion pipeline: the launcher of ``roentgen.recipes.finetune``.

accelerate launch train/finetune.py --config train/configs/quickstart.yaml
"""

import sys

from roentgen import errors
from roentgen.recipes.finetune import main

if __name__ == "__main__":
    sys.exit(errors.run(main, prog="train/finetune.py"))
