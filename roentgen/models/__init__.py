"""Named models, and the weights that ship in ``mini/``."""
