"""The launcher of ``roentgen.recipes.autoencoder``, for a clone; ``roentgen train autoencoder`` is the same."""

from roentgen.commands.train import launch

if __name__ == "__main__":
    launch("autoencoder")
