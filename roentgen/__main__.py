"""`python -m roentgen` and the `roentgen` console command."""

from __future__ import annotations

import errno
import os
import sys


def main() -> int:
    """Run the command line in ``sys.argv``; 0 on success, 2 on a user's mistake, 130 on Ctrl-C, 143 on SIGTERM."""
    try:
        from roentgen import cli, errors, threads  # here, so that Ctrl-C is quiet from the first instant

        threads.settle()
    except KeyboardInterrupt:
        return 130
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (`>&-`); print and progress bars want one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    try:
        code = errors.run(lambda: cli.main(sys.argv[1:]), prog="roentgen")
        sys.stdout.flush()
        return code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        # The reader (`| head`) has gone, or the disk of `> FILE` is full. Point stdout at nothing, so that the flush at
        # exit is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 1
        print(
            f"roentgen: error: stdout: cannot be written ({error.strerror}); what is made is kept",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
