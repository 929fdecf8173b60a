"""A shuffled order of n things that needs no memory: what stands at place k is computed, not stored."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

ROUNDS = 8
_MASK = (1 << 64) - 1


def permuted(place: int, size: int, key: str) -> int:
    """What stands at `place` (0 ≤ place < size) of a permutation of range(size) that depends on `key` alone.

    A Feistel network over the smallest even number of bits that covers `size`, walked on until the result is in range (Black
    and Rogaway 2002): O(1), in whole numbers, so the same on every machine.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, keys = (1 << half) - 1, _round_keys(key)
    while True:
        left, right = place >> half, place & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        place = left << half | right
        if place < size:
            return place


@lru_cache(maxsize=256)
def _round_keys(key: str) -> tuple[int, ...]:
    return struct.unpack(f"<{ROUNDS}Q", hashlib.shake_256(key.encode()).digest(8 * ROUNDS))


def _mixed(value: int) -> int:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
