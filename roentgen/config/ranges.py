"""What a setting may be: numbers with their ranges, texts, and how its flag is spelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, both ends included unless ``above`` (low) or ``below`` (high) says not."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def wrong(self, value: Any) -> str:
        """What is wrong with ``value``, or nothing."""
        if value < self.low or (self.above and value == self.low):
            if self.above:
                return f"must be above {self.low:g}"
            return "must be 0 or more" if self.low == 0 else f"must be at least {self.low:,}"
        if value > self.high or (self.below and value == self.high):
            return f"must be below {self.high:g}" if self.below else f"must be at most {_number(self.high)}"
        return ""

    def __str__(self) -> str:
        if self.high >= 10**12:
            return f"above {_number(self.low)}" if self.above else f"{_number(self.low)} or more"
        low, high = ("above " if self.above else ""), ("below " if self.below else "")
        return f"{low}{_number(self.low)} to {high}{_number(self.high)}"


@dataclass(frozen=True)
class Filled:
    """A text that has to say something, or a list that has to have items."""

    def wrong(self, value: Any) -> str:
        """What is wrong with ``value``, or nothing."""
        return "" if (value.strip() if isinstance(value, str) else value) else "must not be empty"


@dataclass(frozen=True)
class Short:
    """Short spelling of a flag, such as ``-n``."""

    flag: str


@dataclass(frozen=True)
class Positional:
    """The setting is given without a flag; a list takes all words that belong to no flag."""


class Tilde:
    """The text may be a path: a leading ``~/`` is the home folder."""


Count = Annotated[int, Range(1, 10**12)]
CountFromZero = Annotated[int, Range(0, 10**12)]
BatchSize = Annotated[int, Range(1, 65_536)]
Workers = Annotated[int, Range(1, 1024)]
Pixels = Annotated[int, Range(8, 16_384)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Steps = Annotated[int, Range(1, 1000)]
Guidance = Annotated[float, Range(0, 1000)]
Rate = Annotated[float, Range(0, 1)]
"""A learning rate; 0 leaves what it is for as it is."""
Resamples = Annotated[int, Range(1, 1_000_000)]
Share = Annotated[float, Range(0, 1)]
InnerShare = Annotated[float, Range(0, 1, above=True, below=True)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
Weight = Annotated[float, Range(0, 1e6)]
HalfLife = Annotated[float, Range(0, 1e12, above=True)]
Text = Annotated[str, Filled()]
PathOrName = Annotated[str, Filled(), Tilde()]


def _number(value: float) -> str:
    for power in (63, 64):
        if value == 2**power - 1:
            return f"2^{power} - 1"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def seed_of_32_bits(seed: int) -> int:
    """What pandas' samples and scikit-learn take of a ``Seed``."""
    return seed % 2**32
