"""Metrics: one file a family, pure functions on arrays; ``result`` writes what they say as JSON."""
