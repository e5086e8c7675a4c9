"""The launcher of ``roentgen.recipes.masked``, for a clone; ``roentgen train masked`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("masked")
