"""Near-duplicates by difference hashes of 256 bits: of each image the nearest earlier one."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
INDEXED = 50_000
"""Images above which an index is used, where faiss is installed: all pairs grow with the square."""
LIMIT = 200_000
"""Images up to which all pairs are compared without it."""
MEMORY = 2**27
"""Bytes of distances at once."""
BLOCK = 1024
"""Images that the index is asked for at once."""


def differing_bits(a: Bits, b: Bits) -> NDArray[np.float32]:
    """Differing bits (N, M), exact, of packed hashes uint8 (N, 32) and (M, 32)."""
    # |a - b| = |a| + |b| - 2 a.b of zeros and ones: a product of matrices is the fastest way, and exact in float32.
    x, y = (np.unpackbits(packed, axis=1).astype(np.float32) for packed in (a, b))
    differing: NDArray[np.float32] = x @ y.T
    differing *= -2
    differing += x.sum(axis=1)[:, None]
    differing += y.sum(axis=1)
    return differing


def search_of(count: int) -> str:
    """How ``count`` images are searched: ``pairs``, ``index`` (faiss), or ``none``: too many to compare without it."""
    if count > INDEXED and importlib.util.find_spec("faiss") is not None:
        return "index"
    return "pairs" if count <= LIMIT else "none"


def nearest_earlier(packed: Bits, most: int, *, search: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position (N,) of the nearest earlier hash of ``packed``, uint8 (N, 32), the first of several, and the bits (N,)
    in which it differs; -1 where none is within ``most`` bits. Both ways of ``search_of`` give the same."""
    found = np.full((2, len(packed)), -1, dtype=np.int64)
    (_by_index if search == "index" else _by_pairs)(packed, most, found)
    return found[0], found[1]


def _by_pairs(packed: Bits, most: int, found: NDArray[np.int64]) -> None:
    step = max(1, MEMORY // (4 * max(1, len(packed))))
    for top in range(0, len(packed), step):
        rows = np.arange(top, min(top + step, len(packed)))
        distance = differing_bits(packed[rows], packed[: rows[-1] + 1])
        distance[np.arange(rows[-1] + 1) >= rows[:, None]] = np.inf  # itself, and later ones
        nearest = distance.argmin(axis=1)
        bits = distance[rows - top, nearest]
        near = bits <= most
        found[:, rows[near]] = nearest[near], bits[near]


def _by_index(packed: Bits, most: int, found: NDArray[np.int64]) -> None:
    """Multi-index hashing (Norouzi et al., CVPR 2012), which is exact: hashes that differ in at most ``most`` bits are
    equal in one of ``most`` + 1 groups of bits. A group's bits come from all over the image: neighbouring bits are
    alike, and would put half of all films in one bucket."""
    import faiss

    bits = packed.shape[1] * 8
    order = np.random.default_rng(0).permutation(bits)
    index = faiss.IndexBinaryMultiHash(bits, most + 1, min(bits // (most + 1), 24))
    for top in range(0, len(packed), BLOCK):  # block by block, so that nothing later is found but in the block itself
        part = np.packbits(np.unpackbits(packed[top : top + BLOCK], axis=1)[:, order], axis=1)
        index.add(part)
        ends, distance, other = index.range_search(part, most + 1)
        counts: NDArray[np.int64] = ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)
        row = np.repeat(np.arange(top, top + len(part)), counts)
        earlier = other < row
        row, distance, other = row[earlier], distance[earlier].astype(np.int64), other[earlier]
        ordered = np.lexsort((other, distance, row))
        first = ordered[np.unique(row[ordered], return_index=True)[1]]
        found[:, row[first]] = other[first], distance[first]
