"""The launcher of ``roentgen.recipes.reference``, for a clone; ``roentgen train reference`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("reference")
