"""The one exception for a user's mistake, and the one place that turns it into an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one sentence that names the flag or file and the fix.

    Commands and recipes print it on stderr and exit with code 2, with no traceback.
    """


def install(extra: str) -> str:
    """How a user gets the optional part ``extra``, for the end of a message."""
    return f"pip install 'roentgen-cxr[{extra}]', or in a clone pip install '.[{extra}]'"


def run(main: Callable[[], int | None], *, prog: str) -> int:
    """Call ``main`` and return its exit code; a user's mistake gives 2, Ctrl-C gives 130.

    What is printed never fails on the terminal's encoding: characters that it lacks are shown as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except UserError as error:
        _end_bars(error)
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _end_bars(error)
        if sys.stderr.isatty():
            print(file=sys.stderr)  # after the terminal's own ^C
        print(f"{prog}: interrupted; everything already written is kept", file=sys.stderr)
        return 130


def _end_bars(error: BaseException) -> None:
    """Let go of what the failed call held and close its progress bars, so that the sentence has a line of its own."""
    traceback.clear_frames(error.__traceback__)
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
