"""The one exception for a user's mistake, and the one place that turns it into an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one sentence that names the flag or file and the mend.

    Commands and recipes print it on stderr and exit with code 2, with no traceback.
    """


def run(main: Callable[[], int | None], *, prog: str) -> int:
    """Call ``main`` and return its exit code; a user's mistake gives 2, Ctrl-C gives 130."""
    try:
        return main() or 0
    except UserError as error:
        # What the failed call held is let go first: a progress bar ends its line, so that the sentence has its own.
        traceback.clear_frames(error.__traceback__)
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; everything already written is kept", file=sys.stderr)
        return 130
