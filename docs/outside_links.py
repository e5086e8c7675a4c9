"""A hook of mkdocs: links and pictures outside ``docs/`` work on GitHub; on the site they become the path's name."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[card](../roentgen/models/mini/README.md)`` becomes ``card (`roentgen/models/mini/README.md`)``."""
    return re.sub(r"!?\[([^\]]*)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
