"""What an input is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .limits import Outcome


@dataclass(frozen=True)
class Case:
    """One input. ``refused``: whether it has to be; ``check`` says what is wrong with what a success wrote.

    call: what is run; None for the command line of ``words``.
    """

    command: str
    kind: str
    words: list[str]
    what: str = ""
    refused: bool | None = None
    check: Callable[[Outcome], str] = lambda outcome: ""
    call: Callable[[], int] | None = None
