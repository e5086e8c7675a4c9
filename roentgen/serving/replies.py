"""JSON that can always be sent: half characters are escaped, and what is no number in JSON is null."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse

from roentgen.metrics.result import plain


class Reply(JSONResponse):
    """A reply that may repeat what a client has sent, whatever that was."""

    def render(self, content: Any) -> bytes:
        return json.dumps(plain(content), allow_nan=False).encode("ascii")
