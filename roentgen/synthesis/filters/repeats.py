"""Repeats: images of a set that are near-duplicates of an earlier one that is kept.

Two images are compared by the bits in which their difference hashes (256 bits) differ. All chest radiographs are alike
to a hash, and the more images a set has the nearer is the nearest by chance. So the threshold comes from pairs of real
images of different patients and from the number of rows: so many bits that of as many real images no more than a stated
share would be called a repeat.

The comparison is a search among all pairs, so its time grows with the square of the rows; its memory does not grow: the
hashes of what is kept wait in a file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roentgen.data.near import Bits, differing_bits
from roentgen.metrics.statistics import numbered

BITS = 256
SHARE = 0.01
"""Share of real images of different patients that would be called repeats in a set of the same size."""
LEAST_BITS = 4
"""Never a lower threshold: two passes of one image through an encoder or another resize differ by so many bits."""
BLOCK = 4096
"""Kept hashes that are compared at once."""

Blocks = Iterable[tuple[Sequence[int], Bits]]


@dataclass(frozen=True)
class Repeats:
    """Finds what repeats an earlier kept image by at most ``most_bits`` differing bits; what ``make_set`` calls."""

    most_bits: int
    plan_rows: int

    def __call__(self, blocks: Blocks, scratch: Path, /) -> set[int]:
        """Slots whose image repeats that of an earlier slot which is kept itself.

        Args:
            blocks: slots, rising, and their packed hashes, uint8 (n, 32), block after block.
            scratch: folder for the hashes of what is kept; nothing stays there.

        Returns:
            The slots. In a chain a ~ b ~ c where a and c differ, b goes and c stays: nothing kept is like it.
        """
        found: set[int] = set()
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch) as file:
            kept = 0
            for slots, packed in blocks:
                if packed.dtype != np.uint8 or packed.shape != (len(slots), BITS // 8):
                    raise ValueError(f"expected uint8 ({len(slots)}, {BITS // 8}), got {packed.dtype} {packed.shape}")
                for start in range(0, len(slots), BLOCK):
                    part = packed[start : start + BLOCK]
                    names = slots[start : start + BLOCK]
                    repeats = self._near_kept(part, file, kept)
                    _within(part, self.most_bits, repeats)
                    found.update(int(slot) for slot, repeat in zip(names, repeats, strict=True) if repeat)
                    file.seek(kept * (BITS // 8))
                    file.write(np.ascontiguousarray(part[~repeats]).tobytes())
                    kept += int((~repeats).sum())
        return found

    def describe(self) -> dict[str, Any]:
        """For the card."""
        return {
            "measure": f"differing bits of {BITS} of the difference hash, to the nearest earlier image",
            "more_than": self.most_bits,
            "threshold_from": f"pairs of real images of different patients: among {self.plan_rows} of them at most "
            f"{SHARE:.0%} would be called repeats, and never fewer than {LEAST_BITS} bits",
        }

    def _near_kept(self, part: Bits, file: Any, kept: int) -> NDArray[np.bool_]:
        near = np.zeros(len(part), dtype=bool)
        file.seek(0)
        for start in range(0, kept, BLOCK):
            count = min(BLOCK, kept - start)
            earlier = np.frombuffer(file.read(count * (BITS // 8)), np.uint8).reshape(count, -1)
            left = np.flatnonzero(~near)
            if not len(left):
                break
            near[left] = (differing_bits(part[left], earlier) <= self.most_bits).any(axis=1)
        return near


def _within(part: Bits, most_bits: int, repeats: NDArray[np.bool_]) -> None:
    """Mark in ``repeats`` what is near an earlier one of ``part`` that is not marked."""
    left = np.flatnonzero(~repeats)
    first, second = np.nonzero(np.triu(differing_bits(part[left], part[left]) <= most_bits, k=1))
    for earlier, later in zip(first.tolist(), second.tolist(), strict=True):  # sorted by the earlier one
        if not repeats[left[earlier]]:
            repeats[left[later]] = True


def pair_counts(packed: Bits, patients: Sequence[object]) -> NDArray[np.int64]:
    """How many pairs of different patients differ by 0, 1, ... 256 bits, (257,), of packed hashes uint8 (N, 32)."""
    names = numbered(patients)
    counts = np.zeros(BITS + 1, dtype=np.int64)
    for start in range(0, len(packed), 512):
        rows = np.arange(start, min(start + 512, len(packed)))
        differing = differing_bits(packed[rows], packed[start:]).astype(np.int64)
        later = (np.arange(start, len(packed)) > rows[:, None]) & (names[start:] != names[rows, None])
        counts += np.bincount(differing[later], minlength=BITS + 1)
    return counts


def most_bits(counts: NDArray[np.int64], *, plan_rows: int) -> int:
    """The largest number of differing bits at which at most ``SHARE`` of ``plan_rows`` real images would be repeats.

    An image has ``plan_rows`` - 1 chances of a near one, so the share of pairs at most so far apart, times that, may
    be at most that share (the sum over the pairs bounds the chance of any, Bonferroni).

    Args:
        counts: what ``pair_counts`` gives, (257,).
        plan_rows: images of the set.
    """
    if counts.shape != (BITS + 1,) or counts.sum() == 0:
        raise ValueError(f"expected {BITS + 1} counts of pairs, at least one pair")
    allowed = SHARE * counts.sum() / max(1, plan_rows - 1)
    return max(LEAST_BITS, int(np.searchsorted(np.cumsum(counts), allowed, side="right")) - 1)
