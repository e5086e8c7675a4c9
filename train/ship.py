"""The launcher of ``roentgen.recipes.ship``, for a clone; ``roentgen train ship`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("ship")
