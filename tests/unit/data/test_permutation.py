from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data.permutation import permuted


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.text(max_size=8))
def test_every_place_once(size: int, key: str) -> None:
    assert sorted(permuted(place, size, key) for place in range(size)) == list(range(size))


def test_is_open_at_any_place_of_a_huge_range() -> None:
    size = 10**12
    chosen = [permuted(place, size, "k") for place in range(size - 500, size)]
    assert len(set(chosen)) == 500 and all(0 <= one < size for one in chosen)


def test_stays_the_same_for_ever() -> None:
    """A change here changes the order of every run that is resumed."""
    assert [permuted(place, 10, "0/0/wikipedia_fr") for place in range(10)] == FIXED


FIXED: list[int] = [1, 5, 3, 4, 2, 6, 8, 0, 7, 9]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_all_places_are_equally_likely(size: int) -> None:
    counts = Counter((place, permuted(place, size, f"0/{number}/x")) for number in range(1_500) for place in range(size))
    expected = 1_500 / size
    chi_squared = sum((counts[place, value] - expected) ** 2 / expected for place in range(size) for value in range(size))
    assert chi_squared < 3 * (size - 1) ** 2 + 12  # mean (size − 1)²
