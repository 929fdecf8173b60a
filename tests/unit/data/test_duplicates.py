from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data import duplicates
from slayer.data.duplicates import (
    PERMUTATIONS,
    Signatures,
    Similar,
    band_layout,
    exact_duplicates,
    near_duplicate_groups,
    near_duplicates,
    shingles_of,
    signature,
)


def jaccard(one: str, two: str) -> float:
    """Of the sets of runs of five words, by the book."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}

    return len(runs(one) & runs(two)) / len(runs(one) | runs(two))


def signatures_of(texts: list[str], blocks: int = 1) -> Signatures:
    shingles = shingles_of(texts)
    rows = np.array([signature(shingles.of(number)) for number in range(len(texts))], dtype=np.uint32).reshape(-1, PERMUTATIONS)
    return Signatures(np.array_split(rows, blocks))


def similar(texts: list[str], threshold: float, blocks: int = 1) -> Similar:
    return near_duplicates(signatures_of(texts, blocks), np.ones(len(texts), dtype=bool), threshold, texts.__getitem__)


def words(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.randrange(5_000)}" for _ in range(count)]


def edited(original: list[str], seed: int, edits: int) -> str:
    generator = random.Random(seed)
    changed = list(original)
    for place in generator.sample(range(len(changed)), edits):
        changed[place] = f"x{generator.randrange(10**6)}"
    return " ".join(changed)


def test_signatures_are_the_library_s_own() -> None:
    from datasketch import MinHash

    text = " ".join(words(1, 1_500))
    members = [int(value) >> 32 for value in shingles_of([text]).hashes]
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int)
    sketch.update_batch(members)
    assert signature(shingles_of([text]).hashes).tolist() == sketch.hashvalues.tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    bands, rows = band_layout(threshold)
    assert bands * rows <= PERMUTATIONS and 1 - (1 - threshold**rows) ** bands >= 0.999
    assert band_layout(0.8) == (25, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.data())
def test_the_first_of_equal_documents_stays(values: list[int], data: st.DataObject) -> None:
    live = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    digests = np.array([[value // 3, value % 3] for value in values], dtype=np.uint64).reshape(-1, 2)
    first: dict[int, int] = {}
    expected = []
    for number, (value, alive) in enumerate(zip(values, live, strict=True)):
        expected.append(first.setdefault(value, number) if alive else -1)
        if expected[-1] == number:
            expected[-1] = -1
    assert exact_duplicates(digests, np.array(live, dtype=bool)).tolist() == expected


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_no_two_similar_documents_stay_and_none_goes_without_one(seed: int) -> None:
    """Against all pairs, without sketches, on families of edited texts with similarities on both sides of the threshold."""
    generator = random.Random(seed)
    texts = []
    for family in range(4):
        original = words(generator.randrange(10**6), generator.randint(3, 150))
        texts += [
            edited(original, generator.randrange(10**6), generator.randint(0, max(1, len(original) // 25))) for _ in range(generator.randint(1, 6))
        ]
        texts.append(f"only {family}")
    generator.shuffle(texts)
    found = similar(texts, 0.8, blocks=3)
    for number, original in enumerate(found.originals.tolist()):
        if original >= 0:
            assert original < number
            assert jaccard(texts[number], texts[original]) == pytest.approx(found.similarities[number]) and found.similarities[number] >= 0.8
    kept = [text for text, original in zip(texts, found.originals, strict=True) if original < 0]
    missed = [(one, two) for number, one in enumerate(kept) for two in kept[:number] if jaccard(one, two) >= 0.8]
    assert not missed  # each with probability below 0.001


def test_documents_that_are_not_live_take_no_part() -> None:
    texts = [" ".join(words(1, 50))] * 3
    live = np.array([False, True, True])
    assert near_duplicates(signatures_of(texts), live, 0.8, texts.__getitem__).originals.tolist() == [-1, -1, 1]


def test_signs_without_words_are_told_apart() -> None:
    assert similar(["++++ ----", "//// ====", "++++ ----"], 0.8).originals.tolist() == [-1, -1, 0]


def test_texts_are_read_again_for_candidates_only() -> None:
    texts = [" ".join(words(number, 60)) for number in range(200)]
    texts[150] = edited(texts[7].split(), 1, 1)
    read: list[int] = []

    def text_of(number: int) -> str:
        read.append(number)
        return texts[number]

    found = near_duplicates(signatures_of(texts), np.ones(200, dtype=bool), 0.8, text_of)
    assert np.flatnonzero(found.originals >= 0).tolist() == [150] and sorted(read) == [7, 150]


def test_thousands_of_copies_cost_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    original = words(1, 100)
    base = " ".join(original)
    texts = [f"{base} {number}" for number in range(3_000)]
    started = time.process_time()
    found = similar(texts, 0.8)
    assert (found.originals[1:] == 0).all() and time.process_time() - started < 8


def test_buckets_of_many_different_documents_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of one template share bands though they are no duplicates; each meets the last few only, and still every pair is told."""
    monkeypatch.setattr(duplicates, "MOST_REPRESENTATIVES", 5)
    template = words(1, 120)
    texts = [edited(template, seed, 5) for seed in range(60)] + [edited(template, 59, 5) + " end"]
    assert jaccard(texts[0], texts[1]) < 0.8
    assert similar(texts, 0.8).originals.tolist() == [-1] * 60 + [59]


def test_clusters_join_through_chains_and_keep_strangers_apart() -> None:
    names = [f"w{number}" for number in range(400)]
    one, two, three = " ".join(names[:200]), " ".join(names[50:250]), " ".join(names[100:300])
    stranger = " ".join(f"x{number}" for number in range(200))
    assert near_duplicate_groups([one, stranger, three, two, stranger + " end"]) == [0, 1, 0, 0, 1]
    assert near_duplicate_groups([]) == []
