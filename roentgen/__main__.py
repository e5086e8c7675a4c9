"""`python -m roentgen` and the `roentgen` console command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line in ``sys.argv``; 0 on success, 2 on a user's mistake, 130 on Ctrl-C, 143 on SIGTERM."""
    try:
        from roentgen import cli, errors, threads  # here, so that Ctrl-C is quiet from the first instant

        threads.settle()
    except KeyboardInterrupt:
        return 130
    return errors.run(lambda: cli.main(sys.argv[1:]), prog="roentgen")


if __name__ == "__main__":
    sys.exit(main())
