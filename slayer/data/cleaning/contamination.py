"""Benchmark questions inside training text, found by the runs of eight words they share (after GPT-3's appendix C, arXiv 2005.14165,
which took runs of 8 to 13 words)."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slayer.data.benchmarks import Item, items_hash
from slayer.data.cache import cache_dir, write_file
from slayer.data.words import Words, ngrams_of, rolled_hashes, room_of, words_of

FORMAT = 1

RUN_WORDS = 8
SHORTEST_WORDS = 5
"""A question of 5 to 7 words is one run of all its words; a shorter one cannot be told from ordinary speech."""

COMMON_ITEMS = 10
"""A run that stands in more questions than this is the benchmark's own phrase ("which of the following …") and says nothing."""

TABLE_BITS = 24
EXCERPT_CHARACTERS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contamination:
    """For each text the question it holds most of (−1: none) and the share of its telling runs that was found."""

    items: NDArray[np.int32]
    shares: NDArray[np.float64]


class ContaminationIndex:
    """The telling runs of words of all questions, sorted: grams[g] belongs to items[offsets[g] : offsets[g + 1]].

    `sizes` counts the telling runs of each item; one without any (`n_undecidable`) can never be found.
    """

    def __init__(self, *, grams: NDArray[np.uint64], offsets: NDArray[np.int64], items: NDArray[np.int32], sizes: NDArray[np.int32],
                 lengths: NDArray[np.int64], names: Sequence[str]) -> None:  # fmt: skip
        self.grams, self.offsets, self.items, self.sizes, self.lengths = grams, offsets, items, sizes, lengths
        self.names = names
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)  # nearly every run of a text is turned away here, by one look
        self._table[grams >> np.uint64(64 - TABLE_BITS)] = True

    @property
    def n_undecidable(self) -> int:
        """Questions that cannot be found: too short, or made of common phrases only."""
        return int((self.sizes == 0).sum())

    @classmethod
    def of(cls, items: Sequence[Item]) -> ContaminationIndex:
        """The index of these questions; the same words twice are one question."""
        items = _without_repeats(items)
        words = words_of([item.text for item in items])
        found = [_runs(words, n) for n in range(SHORTEST_WORDS, RUN_WORDS + 1)]
        grams = np.concatenate([grams for grams, _ in found])
        owners = np.concatenate([owners for _, owners in found])
        order = np.lexsort((owners, grams))
        grams, owners = grams[order], owners[order]
        first = _changes(grams, owners)
        grams, owners = grams[first], owners[first]  # a run that an item holds twice counts once
        starts = np.flatnonzero(_changes(grams))
        counts = np.diff(np.append(starts, len(grams)))
        told = np.repeat(counts <= COMMON_ITEMS, counts)
        telling = counts <= COMMON_ITEMS
        lengths = np.unique(np.minimum(np.diff(words.offsets), RUN_WORDS))
        return cls(
            grams=grams[starts[telling]], offsets=np.concatenate([[0], np.cumsum(counts[telling])]).astype(np.int64),
            items=owners[told].astype(np.int32), sizes=np.bincount(owners[told], minlength=len(items)).astype(np.int32),
            lengths=lengths[lengths >= SHORTEST_WORDS].astype(np.int64), names=[f"{item.name}: {_excerpt(item.text)}" for item in items],
        )  # fmt: skip

    def find(self, words: Words) -> Contamination:
        """What each text holds of the questions; time is linear in the words."""
        n_texts = len(words.offsets) - 1
        best = Contamination(items=np.full(n_texts, -1, dtype=np.int32), shares=np.zeros(n_texts))
        if not len(self.grams):
            return best
        hits = list(self._hits(words))
        texts, grams = np.concatenate([texts for texts, _ in hits]), np.concatenate([grams for _, grams in hits])
        pairs = np.unique(texts * len(self.grams) + grams)
        texts, grams = pairs // len(self.grams), pairs % len(self.grams)
        n_owners = self.offsets[grams + 1] - self.offsets[grams]
        step = np.arange(n_owners.sum()) - np.repeat(np.cumsum(n_owners) - n_owners, n_owners)
        owners = self.items[np.repeat(self.offsets[grams], n_owners) + step]
        pairs, counts = np.unique(np.repeat(texts, n_owners) * len(self.sizes) + owners, return_counts=True)
        texts, owners = pairs // len(self.sizes), pairs % len(self.sizes)
        shares = counts / self.sizes[owners]
        order = np.lexsort((-owners, shares))  # of equal shares the first question is written last
        best.items[texts[order]] = owners[order]
        best.shares[texts[order]] = shares[order]
        return best

    def _hits(self, words: Words) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(text, position in grams) of every run of words that the index knows, one length of runs after the other."""
        room = room_of(words)
        for n, rolled in enumerate(rolled_hashes(words, RUN_WORDS), 1):
            if n in self.lengths:
                starts = np.flatnonzero(self._table[rolled >> np.uint64(64 - TABLE_BITS)])
                starts = starts[room[starts] >= n]
                grams = np.minimum(np.searchsorted(self.grams, rolled[starts]), len(self.grams) - 1)
                here = self.grams[grams] == rolled[starts]
                yield np.searchsorted(words.offsets, starts[here], side="right") - 1, grams[here]

    def save(self, path: Path) -> None:
        """Write the index where worker processes read it."""
        content = io.BytesIO()
        names = np.frombuffer(json.dumps(list(self.names)).encode(), dtype=np.uint8)
        np.savez(content, grams=self.grams, offsets=self.offsets, items=self.items, sizes=self.sizes, lengths=self.lengths, names=names)
        write_file(path, content.getvalue())


@lru_cache(maxsize=2)
def open_index(path: Path) -> ContaminationIndex:
    """The index that `save` wrote; kept, as one process screens many parts with it."""
    with np.load(path) as stored:
        names = json.loads(stored["names"].tobytes())
        return ContaminationIndex(
            grams=stored["grams"], offsets=stored["offsets"], items=stored["items"], sizes=stored["sizes"], lengths=stored["lengths"], names=names
        )


def index_file(items: Sequence[Item]) -> Path:
    """The saved index of these questions; made when it is not in the cache yet."""
    key = hashlib.sha256(f"{FORMAT}/{RUN_WORDS}/{SHORTEST_WORDS}/{COMMON_ITEMS}/{items_hash(tuple(items))}".encode()).hexdigest()[:32]
    path = cache_dir() / "benchmarks" / f"{key}.npz"
    if not path.is_file():
        ContaminationIndex.of(items).save(path)
    return path


def _without_repeats(items: Sequence[Item]) -> list[Item]:
    """The items whose words, in order, are nobody's before."""
    words = words_of([item.text for item in items])
    first: dict[bytes, Item] = {}
    for number, item in enumerate(items):
        first.setdefault(words.hashes[words.offsets[number] : words.offsets[number + 1]].tobytes(), item)
    return list(first.values())


def _runs(words: Words, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hash, item) of the runs of n words of the items that are looked for by runs of this length."""
    runs = ngrams_of(words, n)
    owners = np.repeat(np.arange(len(words.offsets) - 1), np.diff(runs.offsets))
    sizes = np.diff(words.offsets)
    mine = (sizes >= n) if n == RUN_WORDS else (sizes == n)
    return runs.hashes[mine[owners]], owners[mine[owners]]


def _changes(*columns: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a sorted table differs from the line before."""
    changed = np.ones(len(columns[0]), dtype=bool)
    if len(changed):
        changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changed


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT_CHARACTERS else f"{line[:EXCERPT_CHARACTERS]}…"
