"""Shuffled orders of n things that need no memory: what stands at place k is computed, not stored."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

ROUNDS = 8
STRATA = 64
_MASK = (1 << 64) - 1
_REVERSED = tuple(int(f"{number:06b}"[::-1], 2) for number in range(STRATA))
"""Bits of 0 to 63 in reverse: counting so goes to and fro between the halves, the quarters, the eighths …"""


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


def evenly_permuted(place: int, size: int, key: str) -> int:
    """What stands at `place` of a permutation of range(size) every stretch of which comes evenly from all parts of the range.

    The range is cut into 64 strata; each block of 64 places takes one thing from each stratum, in an order that is even in itself
    (van der Corput's, XORed with a number of the block's own), and what is taken of a stratum is shuffled by `permuted`. So when the
    things are sorted by some quantity, its sum over any stretch is as expected to within about one thing; a plain shuffle strays by
    the square root of the stretch. O(1). The few things that do not fill a block come last.
    """
    whole, rest = divmod(size, STRATA)
    block, offset = divmod(place, STRATA)
    own = _round_keys(key)[0]
    shift = own >> 58  # which strata have one thing more is left to the key, so that no part of the range is favoured
    if block < whole:
        stratum = _REVERSED[offset] ^ (_mixed(own ^ block) & STRATA - 1)
    else:
        extra = permuted(offset, rest, key)
        stratum = -(-((extra + 1) * STRATA - shift) // rest) - 1
    begin, end = (stratum * size + shift) // STRATA, ((stratum + 1) * size + shift) // STRATA
    return begin + permuted(block, end - begin, f"{key}/{stratum}")


@lru_cache(maxsize=1 << 14)
def _round_keys(key: str) -> tuple[int, ...]:
    return struct.unpack(f"<{ROUNDS}Q", hashlib.shake_256(key.encode()).digest(8 * ROUNDS))


def _mixed(value: int) -> int:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
