"""Documents that came before: equal ones by their digests, similar ones by MinHash (Broder 1997) and locality-sensitive hashing
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4). Sketches only propose; the sets of runs of words decide.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.words import FACTOR, Ngrams, ngrams_of, words_of

SHINGLE_WORDS = 5
PERMUTATIONS = 125
SKETCH_SEED = 1
SKETCH_SHINGLES = 512
"""Shingles hashed at once: their table of permutations stays in the cache of one core."""

RECALL = 0.999
"""Share of pairs right at the threshold that must meet in some band; more similar ones meet more surely."""

SIGMAS = 4.0
"""A pair whose sketches agree so many standard deviations less often than the threshold asks for is not looked at more closely."""

MOST_REPRESENTATIVES = 2_000
"""In a bucket of more documents that are no duplicates of each other, each is compared with the last so many."""

KEPT_SHINGLES = 1 << 22

NEAR_DUPLICATE = 0.5
GROUP_BANDS, GROUP_ROWS = 41, 3
"""`near_duplicate_groups`: a pair at the limit is found with probability 1 − (1 − 0.5³)⁴¹ = 0.996, most at a higher one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Similar:
    """For each document the earlier one it is like (−1: none) and how much (Jaccard)."""

    originals: NDArray[np.int64]
    similarities: NDArray[np.float32]


class Signatures:
    """MinHash signatures of documents [N, PERMUTATIONS], in blocks that may be memory-mapped."""

    def __init__(self, blocks: Sequence[NDArray[np.uint32]]) -> None:
        self._blocks = list(blocks)
        self._first = np.cumsum([0, *(len(block) for block in self._blocks)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Signatures of some documents [K, PERMUTATIONS]."""
        found = np.empty((len(indices), PERMUTATIONS), dtype=np.uint32)
        blocks = np.searchsorted(self._first, indices, side="right") - 1
        for block in np.unique(blocks):
            here = blocks == block
            found[here] = self._blocks[block][indices[here] - self._first[block]]
        return found

    def keys(self, first: int, last: int) -> NDArray[np.uint64]:
        """One number for each document that stands for columns first to last of its signature."""
        keys = np.zeros(len(self), dtype=np.uint64)
        for start, block in zip(self._first, self._blocks, strict=False):
            mine = keys[start : start + len(block)]
            for column in range(first, last):
                mine += block[:, column]
                mine *= np.uint64(FACTOR)
                mine ^= mine >> np.uint64(29)
        return keys


def shingles_of(texts: Sequence[str]) -> Ngrams:
    """Hashes of the runs of SHINGLE_WORDS words of each text; a shorter text is one run."""
    return ngrams_of(words_of(texts), SHINGLE_WORDS, short=True)


def signature(shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """MinHash signature [PERMUTATIONS] of a set of shingles (by `datasketch`), repetitions do no harm."""
    sketch = _sketch()
    sketch.clear()
    hashes = (shingles >> np.uint64(32)).astype(np.uint32)
    for start in range(0, len(hashes), SKETCH_SHINGLES):
        sketch.update_batch([hashes[start : start + SKETCH_SHINGLES]])  # one array of values instead of as many numbers
    values: NDArray[np.uint32] = sketch.hashvalues
    return values


def band_layout(threshold: float, recall: float = RECALL) -> tuple[int, int]:
    """(bands, rows in each) that PERMUTATIONS allow: the most rows with which pairs at the threshold still meet with probability `recall`."""
    layouts = [(PERMUTATIONS // rows, rows) for rows in range(1, 26)]
    good = [(bands, rows) for bands, rows in layouts if 1 - (1 - threshold**rows) ** bands >= recall]
    return good[-1] if good else layouts[0]


def exact_duplicates(digests: NDArray[np.uint64], live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each document (digests [N, 2]) the first live one of the same digest before it; −1 for that one, and for what is not live."""
    originals = np.full(len(digests), -1, dtype=np.int64)
    indices = np.flatnonzero(live)
    order = indices[np.lexsort((indices, digests[indices, 1], digests[indices, 0]))]
    if len(order):
        new = np.ones(len(order), dtype=bool)
        new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
        first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        originals[order[~new]] = first[~new]
    return originals


def near_duplicates(
    signatures: Signatures,
    live: NDArray[np.bool_],
    threshold: float,
    text_of: Callable[[int], str],
    on_progress: Callable[[int, int], None] | None = None,
) -> Similar:
    """Which live documents are like one before them: Jaccard similarity of their shingles ≥ threshold.

    Of two similar documents that meet in a band at most one stays, the earlier one. Texts are read again for candidates only; memory
    beyond the signatures: 25 bytes for each document.
    """
    sieve = _Sieve(signatures, threshold, text_of)
    live = live.copy()
    bands, rows = band_layout(threshold)
    for band in range(bands):
        for members in _runs(signatures.keys(band * rows, (band + 1) * rows), live):
            live[sieve.sift(members, band, rows)] = False
        if on_progress is not None:
            on_progress(band + 1, bands)
    return Similar(originals=sieve.originals, similarities=sieve.similarities)


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """For each text the smallest index in its cluster: texts linked by a chain of pairs with Jaccard ≥ NEAR_DUPLICATE."""
    shingles = shingles_of(texts)
    sets = [np.unique(shingles.of(number)) for number in range(len(texts))]
    signatures = Signatures([np.stack([signature(one) for one in sets])]) if texts else Signatures([])
    root = list(range(len(texts)))
    for band in range(GROUP_BANDS):
        for members in _runs(signatures.keys(band * GROUP_ROWS, (band + 1) * GROUP_ROWS), np.ones(len(texts), dtype=bool)):
            sketches = signatures.rows(members)
            for place, number in enumerate(members.tolist()):
                close = _agreement(sketches[:place], sketches[place]) >= _lowest_agreement(NEAR_DUPLICATE)
                for other in members[:place][close].tolist():
                    one, two = _find(root, number), _find(root, other)
                    if one != two and _jaccard(sets[number], sets[other]) >= NEAR_DUPLICATE:
                        root[max(one, two)] = min(one, two)
    return [_find(root, number) for number in range(len(texts))]


class _Sieve:
    """Takes duplicates out of buckets of documents that share a band."""

    def __init__(self, signatures: Signatures, threshold: float, text_of: Callable[[int], str]) -> None:
        self._signatures, self._threshold = signatures, threshold
        self._sets = _ShingleSets(text_of)
        self._all_compared = True
        self.originals = np.full(len(signatures), -1, dtype=np.int64)
        self.similarities = np.zeros(len(signatures), dtype=np.float32)

    def sift(self, members: NDArray[np.int64], band: int, rows: int) -> list[int]:
        """Compare each member of a bucket, in order, with those before it that stay; gives those that do not.

        A pair is looked at in the first band where it meets; the time is linear in equal documents and quadratic only in different ones.
        """
        removed: list[int] = []
        size = min(len(members), MOST_REPRESENTATIVES)
        stay, sketches = np.empty(size, dtype=np.int64), np.empty((size, PERMUTATIONS), dtype=np.uint32)  # a ring: the newest ones
        n_stay = 0
        for start in range(0, len(members), size):
            few = members[start : start + size]
            for number, sketch in zip(few.tolist(), self._signatures.rows(few), strict=True):
                before = sketches[:n_stay]
                close = _agreement(before, sketch) >= _lowest_agreement(self._threshold)
                if self._all_compared and close.any():
                    close &= ~_met(before, sketch, band, rows)
                if self._repeats(number, np.sort(stay[:n_stay][close]).tolist()):
                    removed.append(number)
                else:
                    stay[n_stay % size], sketches[n_stay % size] = number, sketch
                    n_stay += 1
        self._all_compared &= n_stay <= size
        return removed

    def _repeats(self, number: int, others: Sequence[int]) -> bool:
        for other in others:
            similarity = _jaccard(self._sets.of(number), self._sets.of(other))
            if similarity >= self._threshold:
                self.originals[number], self.similarities[number] = other, similarity
                return True
        return False


class _ShingleSets:
    """Shingle sets of documents, made from their texts when asked for; the latest ones are kept, up to KEPT_SHINGLES in all."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of = text_of
        self._kept: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._size = 0

    def of(self, number: int) -> NDArray[np.uint64]:
        """Sorted distinct shingles of one document."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        made = np.unique(shingles_of([self._text_of(number)]).hashes)
        self._kept[number] = made
        self._size += len(made)
        while self._size > KEPT_SHINGLES and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1])
        return made


def _runs(keys: NDArray[np.uint64], live: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Live documents that share a key, two or more at a time, each group in order. `live` may change between two groups."""
    indices = np.flatnonzero(live)
    order = np.argsort(keys[indices], kind="stable")
    ordered = keys[indices[order]]
    borders = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])) if len(ordered) else np.zeros(1, dtype=np.int64)
    sizes = np.diff(borders)
    for start, size in zip(borders[:-1][sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        yield indices[order[start : start + size]]


def _agreement(sketches: NDArray[np.uint32], sketch: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Share of permutations in which each sketch agrees with one: an estimate of their Jaccard similarity."""
    share: NDArray[np.float64] = (sketches == sketch).mean(axis=1)
    return share


def _lowest_agreement(threshold: float) -> float:
    return threshold - SIGMAS * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)


def _met(sketches: NDArray[np.uint32], sketch: NDArray[np.uint32], band: int, rows: int) -> NDArray[np.bool_]:
    """Which sketches share one of the first `band` bands with this one."""
    equal = (sketches[:, : band * rows] == sketch[: band * rows]).reshape(len(sketches), band, rows)
    met: NDArray[np.bool_] = equal.all(axis=2).any(axis=1)
    return met


def _jaccard(one: NDArray[np.uint64], two: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(one, two, assume_unique=True))
    return shared / (len(one) + len(two) - shared)


def _find(root: list[int], number: int) -> int:
    while root[number] != number:
        root[number] = root[root[number]]
        number = root[number]
    return number


@lru_cache(maxsize=1)
def _sketch() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=SKETCH_SEED, scheme="affine32", hashfunc=_same)


def _same(values: Any) -> Any:
    return values
