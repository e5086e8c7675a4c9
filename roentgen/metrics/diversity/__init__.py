"""How alike generated images are to each other."""
