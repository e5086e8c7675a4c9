"""The launcher of ``roentgen.recipes.tokenizer``, for a clone; ``roentgen train tokenizer`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("tokenizer")
