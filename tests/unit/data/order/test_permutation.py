from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data.order.permutation import evenly_permuted, permuted


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400), st.text(max_size=8))
def test_every_place_once(size: int, key: str) -> None:
    assert sorted(permuted(place, size, key) for place in range(size)) == list(range(size))
    assert sorted(evenly_permuted(place, size, key) for place in range(size)) == list(range(size))


def test_is_open_at_any_place_of_a_huge_range() -> None:
    size = 10**12
    chosen = [permuted(place, size, "k") for place in range(size - 500, size)]
    assert len(set(chosen)) == 500 and all(0 <= one < size for one in chosen)
    chosen = [evenly_permuted(place, size, "k") for place in range(size - 500, size)]
    assert len(set(chosen)) == 500 and all(0 <= one < size for one in chosen)


def test_stays_the_same_for_ever() -> None:
    """A change here changes the order of every run that is resumed."""
    assert [permuted(place, 10, "0/0/wikipedia_fr") for place in range(10)] == FIXED
    assert [evenly_permuted(place, 1_000, "0/0/wikipedia_fr") for place in (*range(8), 64, 128, 999)] == FIXED_EVEN


FIXED: list[int] = [1, 5, 3, 4, 2, 6, 8, 0, 7, 9]
FIXED_EVEN: list[int] = [151, 655, 396, 894, 24, 516, 278, 778, 932, 939, 171]


@pytest.mark.parametrize("size", [100, 1_000, 20_000])
def test_every_stretch_comes_evenly_from_the_whole_range(size: int) -> None:
    """Things of any size up to 1: the sum over a stretch is the mean's to within a few of them, whatever the stretch."""
    sizes = np.sort(np.random.default_rng(size).beta(0.6, 1.4, size))
    for key in ("a", "b", "c"):
        visited = sizes[[evenly_permuted(place, size, key) for place in range(size)]]
        strays = np.concatenate([[0], np.cumsum(visited - sizes.mean())])
        assert strays.max() - strays.min() < 3
        plain = np.cumsum(sizes[[permuted(place, size, key) for place in range(size)]] - sizes.mean())
        assert size < 1_000 or np.ptp(plain) > np.ptp(strays)


def test_even_orders_differ_from_key_to_key() -> None:
    orders = {tuple(evenly_permuted(place, 200, f"{key}") for place in range(200)) for key in range(50)}
    assert len(orders) == 50


@pytest.mark.parametrize("size", [2, 3, 4, 7, 80])
@pytest.mark.parametrize("order", [permuted, evenly_permuted])
def test_all_places_are_equally_likely(order: Callable[[int, int, str], int], size: int) -> None:
    counts = Counter((place, order(place, size, f"0/{number}/x")) for number in range(1_500) for place in range(size))
    expected = 1_500 / size
    chi_squared = sum((counts[place, value] - expected) ** 2 / expected for place in range(size) for value in range(size))
    assert chi_squared < 3 * (size - 1) ** 2 + 12  # mean (size − 1)²
