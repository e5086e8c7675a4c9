"""The training loops; each is read from top to bottom. ``roentgen train NAME`` and ``train/NAME.py`` run them."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).with_name("configs")
