"""JSON that can always be sent: half characters are escaped, and what is no number in JSON is null."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi.responses import JSONResponse


class Reply(JSONResponse):
    """A reply that may repeat what a client has sent, whatever that was."""

    def render(self, content: Any) -> bytes:
        return json.dumps(_finite(content), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
