"""The `roentgen` command: finds the command that the words name; its module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from roentgen.commands import COMMANDS
from roentgen.errors import UserError
from roentgen.provenance import __version__

SUMMARY = "Radiology text in, synthetic chest X-rays out. Research only, not for diagnosis."


FIRST = f"""roentgen {__version__}: {SUMMARY}

first steps:
  roentgen generate "left pleural effusion" --num-images 4 --grid    four images and a grid of them, on any computer
  roentgen models                                                     what else to generate with
  roentgen --help                                                     all commands"""


def help_text() -> str:
    """The top-level help, which needs no parser."""
    lines = [f"  {name:<14} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: roentgen COMMAND ...",
            "",
            SUMMARY,
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     show this help; `roentgen COMMAND --help` shows a command's",
            "  --version      show the version",
            "",
            "examples:",
            '  roentgen generate "left pleural effusion" --num-images 4 --grid --out out',
            "  roentgen eval --help",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run one command line without the program name; return its exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text() if argv else FIRST)
        return 0
    if argv[0] in ("--version", "-V", "version"):
        print(f"roentgen {__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(argv[:words])
        if name in COMMANDS and len(argv) >= words:
            from roentgen.config import parse_call

            function = COMMANDS[name].find()
            if COMMANDS[name].raw:
                return function(argv[words:], prog=f"roentgen {name}")
            return function(**parse_call(function, argv[words:], prog=f"roentgen {name}")) or 0
    group = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if group and argv[1:2] in ([], ["-h"], ["--help"]):
        print("\n".join(f"roentgen {name:<14} {COMMANDS[name].about}" for name in group))
        print(f"\n`roentgen {group[0]} --help` shows the flags of a command, with examples")
        return 0
    from roentgen.config import did_you_mean

    if group:
        near = did_you_mean(" ".join(argv[:2]), group)
        raise UserError(f"`roentgen {' '.join(argv[:2])}` is no command; choose {' or '.join(group)}{near}")
    near = did_you_mean(argv[0], list(COMMANDS))
    raise UserError(f"unknown command {argv[0]!r}; choose one of {', '.join(COMMANDS)}{near}")
