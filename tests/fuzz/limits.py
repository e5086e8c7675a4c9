"""One command line in this process, with limits on its time and memory."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 20
"""Of the processor where the command computes; of the clock where it waits for something."""
PATIENCE = 6
"""So many times SECONDS of the clock may pass while it computes: other programs run beside it."""
TICK = 2
"""Seconds of the clock between looks at it."""
BYTES = 2 * 2**30


class Hang(BaseException):
    """Raised in a command that does not end; no ``except Exception`` holds it up."""


@dataclass(frozen=True)
class Outcome:
    """Exit code (None: it did not end by itself), what was printed, and the problem if there is one: a traceback, a
    hang or too much memory."""

    code: int | None
    out: str
    err: str
    problem: str = ""
    where: str = ""
    seconds: float = 0.0


def run(call: Callable[[], int | None], *, prog: str) -> Outcome:
    """``call`` as ``roentgen.errors.run`` runs it."""
    from roentgen import errors

    out, err = _stream(), _stream()
    code: int | None = None
    problem = where = ""
    before, began = _fresh_peak(), time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _deadline(), _ceiling(before):
        try:
            code = errors.run(call, prog=prog)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except Hang as error:
            problem, where = "hang", _place(error)
        except MemoryError as error:
            problem, where = "memory", _place(error)
        except BaseException as error:
            problem = f"traceback: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            where = _place(error)
    grown = _peak() - before
    if not problem and grown > BYTES:
        problem = f"memory: {grown / 2**30:.1f} GB"
    said = err.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    if not problem and "Traceback (most recent call last)" in said:
        problem, where = "traceback: printed", said[-300:]
    printed = out.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    return Outcome(code, printed, said, problem, where, time.process_time() - began)


def as_new() -> None:
    """What a new process would not know: the state of accelerate, and which folders were cleaned of leftovers."""
    from accelerate.state import AcceleratorState, GradientState

    from roentgen import files

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    files._cleaned.clear()


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _place(error: BaseException) -> str:
    """The innermost lines of ours in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/roentgen/" in frame.filename or "/train/" in frame.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(ours[-3:])) or "outside"


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Raises ``Hang`` in the main thread after SECONDS of computing, or of waiting."""
    used, rings = time.process_time(), 0

    def ring(*_: Any) -> None:
        nonlocal rings
        rings += 1  # and not the clock: it goes on while the whole process is stopped
        computed, passed = time.process_time() - used, rings * TICK
        if passed < SECONDS:
            return
        # Half a core at least: a slow or busy machine, which gets more time, and not one that waits for a pipe.
        if computed < SECONDS and passed < PATIENCE * SECONDS and computed > passed / 20:
            return
        raise Hang

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _ceiling(before: int) -> Iterator[None]:
    """What asks for far more than BYTES gets a MemoryError rather than the machine's last page."""
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _fresh_peak() -> int:
    """Resident bytes now; the kernel's peak is set back to it where that is possible."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
