"""The one exception for a user's mistake, and the one place that turns it into an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator


class UserError(Exception):
    """Bad input: one sentence that names the flag or file and the fix.

    Commands and recipes print it on stderr and exit with code 2, with no traceback.
    """


def install(extra: str) -> str:
    """How a user gets the optional part ``extra``, for the end of a message."""
    return f"pip install 'roentgen-cxr[{extra}]', or in a clone pip install '.[{extra}]'"


@contextlib.contextmanager
def told_of(who: str) -> Iterator[None]:
    """What is wrong in the block is told of ``who``, a flag with its value: the UserError's sentence begins with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{who} {error}") from None


def is_memory(error: BaseException) -> bool:
    """Whether memory was not to be had; PyTorch says so of a processor's in words."""
    said = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_fault(error: BaseException) -> bool:
    """Whether something is wrong with what ran, its input or the code: not memory, nor a request to stop.

    A panic of a library in Rust is one, although its class is not among Python's exceptions.
    """
    return not is_memory(error) and (isinstance(error, Exception) or type(error).__name__ == "PanicException")


class Terminated(BaseException):
    """SIGTERM, as batch systems send it before they kill; like KeyboardInterrupt, nothing but ``run`` catches it."""


def run(main: Callable[[], int | None], *, prog: str) -> int:
    """Call ``main`` and return its exit code; a user's mistake gives 2, Ctrl-C gives 130, SIGTERM 143.

    A file that cannot be read or written, and memory that is not there, are a sentence and 2 as well, wherever they
    are met. What is printed never fails on the terminal's encoding: characters that it lacks are shown as escapes.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (`>&-`); print and progress bars want one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        with _terminating():
            code = main() or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(error, f"{prog}: error: {error}", 2)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        return _say(error, f"{prog}: error: not enough memory; close other programs, or ask for less at once", 2)
    except OSError as error:
        if error.filename is None:
            return _unprinted(error, prog)
        said = f"{os.fsdecode(error.filename)!r}: cannot be read or written ({error.strerror})"
        return _say(error, f"{prog}: error: {said}; check the path, its permissions and the disk", 2)
    except (KeyboardInterrupt, Terminated) as error:
        stopped = isinstance(error, Terminated)
        said = f"{prog}: {'terminated' if stopped else 'interrupted'}; everything already written is kept"
        return _say(error, said, 143 if stopped else 130)


def _unprinted(error: OSError, prog: str) -> int:
    """The exit code where standard output failed: its reader (`| head`) has gone, or the disk of `> FILE` is full."""
    if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
        raise error
    # Nothing goes there any more, so that the flush at exit is quiet too.
    with contextlib.suppress(OSError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EIO:  # a disk that fails under a file that is open, or a terminal that has gone
        return _say(error, f"{prog}: error: a file cannot be read or written ({error.strerror}); check the disk", 2)
    if error.errno == errno.EPIPE:
        return 1
    return _say(error, f"{prog}: error: stdout: cannot be written ({error.strerror}); what is made is kept", 2)


def _one_line(text: str) -> str:
    """A message on one line, whatever a user's names and texts hold; words without end are shortened."""
    return re.sub(r"\S{400,}", lambda word: f"{word[0][:100]}...{word[0][-20:]}", " ".join(text.split("\n")))


def _say(error: BaseException, sentence: str, code: int) -> int:
    _end_bars(error)
    if code == 130 and sys.stderr.isatty():
        print(file=sys.stderr)  # after the terminal's own ^C
    print(_one_line(sentence), file=sys.stderr)
    return code


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM is ``Terminated`` in the main thread, unless somebody has plans of his own for it."""
    usual = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def stop(*_: object) -> None:
        raise Terminated

    if usual:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_bars(error: BaseException) -> None:
    """Let go of what the failed call held and close its progress bars, so that the sentence has a line of its own."""
    traceback.clear_frames(error.__traceback__)
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
