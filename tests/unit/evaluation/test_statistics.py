"""Scores against loops, and intervals against data whose truth is known."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.evaluation.statistics import Estimate, bits_per_byte, change_percent, verdict


@given(pairs=st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 10_000)), min_size=1, max_size=20))
def test_bits_per_byte_is_all_bits_over_all_bytes(pairs: list[tuple[float, int]]) -> None:
    bits = n_bytes = 0.0
    for nats, count in pairs:
        bits += nats / math.log(2)
        n_bytes += count
    estimate = bits_per_byte(np.array([nats for nats, _ in pairs]), np.array([count for _, count in pairs]))
    assert estimate.value == pytest.approx(bits / n_bytes, rel=1e-12)
    ratios = [nats / math.log(2) / count for nats, count in pairs]
    tolerance = 1e-9 * max(ratios)
    assert min(ratios) - tolerance <= estimate.low <= estimate.high <= max(ratios) + tolerance


@given(pairs=st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=1, max_size=20))
def test_change_is_that_of_the_totals(pairs: list[tuple[float, float]]) -> None:
    before, after = (np.array(values) for values in zip(*pairs, strict=True))
    estimate = change_percent(before, after)
    assert estimate.value == pytest.approx(100 * (sum(after) - sum(before)) / sum(before), rel=1e-9, abs=1e-9)
    n_bytes = np.ones(len(before), np.int64)
    by_bits = 100 * (bits_per_byte(after, n_bytes).value / bits_per_byte(before, n_bytes).value - 1)
    assert estimate.value == pytest.approx(by_bits, rel=1e-9, abs=1e-9)


def documents(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths in bytes, nats of a base of 1 bit per byte on average, nats of a model 5 % better on average."""
    n_bytes = generator.integers(200, 3_000, count)
    hardness = generator.lognormal(0, 0.3, count) / math.exp(0.3**2 / 2)
    base = n_bytes * math.log(2) * hardness
    return n_bytes, base, base * (0.95 + generator.normal(0, 0.03, count))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """120 samples of 60 documents: 95 % intervals may miss a few more than 5 %, as percentile intervals do, but not many more."""
    generator = np.random.default_rng(0)
    hits = changes = 0
    widths = []
    for _ in range(120):
        n_bytes, base, better = documents(generator, 60)
        score, change = bits_per_byte(base, n_bytes), change_percent(base, better)
        hits += score.low <= 1 <= score.high
        changes += change.low <= -5 <= change.high
        widths.append((change.high - change.low, 100 * (score.high - score.low) / score.value))
    assert 106 <= hits <= 119 and 106 <= changes <= 119
    paired, unpaired = np.mean(widths, axis=0)
    assert paired < unpaired / 5, "pairing must take the documents' own spread out"


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(1)
    _, base, better = documents(generator, 40)
    pick = random.Random(0)
    values = []
    for _ in range(4_000):
        drawn = [pick.randrange(40) for _ in range(40)]
        values.append(100 * (sum(better[index] for index in drawn) / sum(base[index] for index in drawn) - 1))
    values.sort()
    estimate = change_percent(base, better)
    assert estimate.low == pytest.approx(values[100], abs=0.1) and estimate.high == pytest.approx(values[3900], abs=0.1)
    assert change_percent(base, better) == estimate, "the same numbers every time"
    assert change_percent(base, better, seed=1) != estimate


def test_more_documents_narrow_the_interval() -> None:
    few, many = (change_percent(*documents(np.random.default_rng(2), count)[1:]) for count in (30, 480))
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 4, rel=0.4)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-5, -1, "learnt"), (1, 5, "forgotten"), (-1, 1, "no change detected"), (0, 5, "no change detected"), (-5, 0, "no change detected")],
)
def test_verdicts(low: float, high: float, word: str) -> None:
    assert verdict(Estimate(value=(low + high) / 2, low=low, high=high)) == word


def test_a_model_compared_with_itself_has_not_changed() -> None:
    _, base, _ = documents(np.random.default_rng(3), 20)
    same = change_percent(base, base)
    assert (same.value, same.low, same.high) == (0, 0, 0) and verdict(same) == "no change detected"
