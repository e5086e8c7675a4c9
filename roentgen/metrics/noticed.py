"""Known damages by which it is found out what a metric notices, and what a measure says of it."""

from __future__ import annotations

from dataclasses import dataclass

BLUR, NOISE, BRIGHT, JPEG = "blur", "noise", "brightness", "JPEG"
LABELS, FLIP = "shuffled labels", "left-right flip"
COLLAPSE, ONE_KIND = "mode collapse", "collapse within a kind"
COPIES, CROPPED, BLURRED, BRIGHTER = "training copies", "cropped copies", "blurred copies", "brighter copies"
LOOKS = (BLUR, NOISE, BRIGHT, JPEG)
ALL_COPIES = (COPIES, CROPPED, BLURRED, BRIGHTER)
"""Names of the damages by which it is found out what a metric notices."""


@dataclass(frozen=True)
class Noticed:
    """A column of the table of what metrics notice: its title, decimals, 1 where higher is worse (else -1), and the
    damages that it is said to measure."""

    title: str
    digits: int
    worse: int
    claims: tuple[str, ...]
