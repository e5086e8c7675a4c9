"""The launcher of ``roentgen.recipes.classifier``, for a clone; ``roentgen train classifier`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("classifier")
