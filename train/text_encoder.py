"""The launcher of ``roentgen.recipes.text_encoder``, for a clone; ``roentgen train text-encoder`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("text_encoder")
