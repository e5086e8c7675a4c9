"""Copies of training images, and patients that could be told again."""
