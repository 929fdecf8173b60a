"""Texts as hashes of their words and of runs of words: the same numbers on every machine, made at many megabytes a second.

A word is a run of letters, digits and underscores in lower case; each Chinese, Japanese or Korean character is a word of its own, so that no
language is one long word. A text without any word (only signs) counts as one word, itself.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EAST_ASIAN = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
WORDS = re.compile(r"\w+")
HAS_EAST_ASIAN = re.compile(f"[{EAST_ASIAN}]")
EAST_ASIAN_WORDS = re.compile(rf"[{EAST_ASIAN}]|[^\W{EAST_ASIAN}]+")

KEPT_WORDS = 1 << 18
KEPT_CHARACTERS = 64
FACTOR = 0x9E3779B97F4A7C15
"""Base of the polynomial over word hashes, modulo 2⁶⁴: odd, so no power of it loses a bit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Words:
    """Hashes of the words of several texts one after another: those of text i are hashes[offsets[i] : offsets[i + 1]]."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ngrams:
    """Hashes of the runs of n words of several texts, in order and with repetitions, laid out as Words are."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    def of(self, number: int) -> NDArray[np.uint64]:
        """Those of one text."""
        return self.hashes[self.offsets[number] : self.offsets[number + 1]]


class _Hashes(dict[str, int]):
    """Word → hash, made when first asked for; forgotten as a whole when it has grown too large."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        if len(word) <= KEPT_CHARACTERS:
            if len(self) >= KEPT_WORDS:
                self.clear()
            self[word] = value
        return value


_HASHES = _Hashes()


def words_in(text: str) -> list[str]:
    """The words of a text, as the module says."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        if HAS_EAST_ASIAN.search(text):
            return EAST_ASIAN_WORDS.findall(text.lower())
    return WORDS.findall(text.lower())


def words_of(texts: Sequence[str]) -> Words:
    """Hashes of the words of each text."""
    words: list[str] = []
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    for number, text in enumerate(texts, 1):
        words += words_in(text) or [text.strip()]
        offsets[number] = len(words)
    return Words(hashes=np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words)), offsets=offsets)


def room_of(words: Words) -> NDArray[np.int64]:
    """For each word how many there are from it to the end of its text."""
    return np.repeat(words.offsets[1:], np.diff(words.offsets)) - np.arange(len(words.hashes))


def rolled_hashes(words: Words, n: int, room: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.uint64]]:
    """For runs of 1, 2, … n words the hash of the run that begins at each word: the sum of hash × FACTORᵏ modulo 2⁶⁴ (Karp and Rabin 1987).

    Runs go on over the end of a text, or with `room` end there. Each array is the one before, changed in place.
    """
    rolled = np.zeros(len(words.hashes), dtype=np.uint64)
    power = 1
    for k in range(n):
        reach = max(len(rolled) - k, 0)
        term = words.hashes[k:] * np.uint64(power)
        if room is not None:
            term[room[:reach] <= k] = 0
        rolled[:reach] += term
        power = power * FACTOR % 2**64
        yield rolled


def ngrams_of(words: Words, n: int, *, short: bool = False) -> Ngrams:
    """Hashes of all runs of n words within each text; one of fewer words has none, or with `short` one of all its words."""
    room = room_of(words)
    *_, rolled = rolled_hashes(words, n, room if short else None)
    keep = room >= n
    if short:
        keep[words.offsets[:-1]] = True  # no text is without a word
    counts = np.concatenate([[0], np.cumsum(keep)])
    return Ngrams(hashes=rolled[keep], offsets=counts[words.offsets].astype(np.int64))
