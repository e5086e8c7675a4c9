"""Run state shared by the recipes in ``train/``: settings, checkpoints, EMA, schedules, data order, caches."""
