"""``python -m roentgen.prompts --write DIR``: see ``roentgen.prompts.lists``."""

import sys

from roentgen.errors import run
from roentgen.prompts.lists import main

sys.exit(run(main, prog="python -m roentgen.prompts"))
