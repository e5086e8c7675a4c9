"""How metrics move under known damage to real images: what ``eval/sensitivity.py`` puts in order."""
