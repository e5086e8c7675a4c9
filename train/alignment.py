"""The launcher of ``roentgen.recipes.alignment``, for a clone; ``roentgen train alignment`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("alignment")
