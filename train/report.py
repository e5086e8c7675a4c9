"""The launcher of ``roentgen.recipes.report``, for a clone; ``roentgen train report`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("report")
