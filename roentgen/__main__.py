"""`python -m roentgen` and the `roentgen` console command."""

from __future__ import annotations

import os
import sys

from roentgen import cli, errors


def main() -> int:
    """Run the command line in ``sys.argv``; 0 on success, 2 on a user's mistake, 130 on Ctrl-C."""
    try:
        code = errors.run(lambda: cli.main(sys.argv[1:]), prog="roentgen")
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`| head`) has gone. Point stdout at nothing, so that the flush at exit is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
