"""Synthetic data sets: what to make (plan), which images are kept (filters), how they are written (writers)."""
