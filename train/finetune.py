"""The launcher of ``roentgen.recipes.finetune``, for a clone; ``roentgen train finetune`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("finetune")
