from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import DataConfig, SourceConfig
from slayer.data.mixture import LONGEST_PERIOD_ROWS, build_mixture, source_shares
from slayer.errors import DataError


def data(replay: float, **sources: tuple[str, float]) -> DataConfig:
    made = {name: SourceConfig(role=role, path="x", weight=weight) for name, (role, weight) in sources.items()}  # type: ignore[arg-type]
    return DataConfig(name="test", sources=made, replay=replay)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any))
def test_every_prefix_is_within_one_row_of_the_shares(weights: list[int]) -> None:
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    mixture = build_mixture({str(i): share for i, share in enumerate(shares)})
    rows = np.arange(3 * sum(weights) + 7)
    served = np.cumsum(mixture.source_of(rows)[:, None] == np.arange(len(weights)), axis=0)
    asked = (rows[:, None] + 1) * np.array([float(share) for share in shares])
    assert np.abs(served - asked).max() < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
def test_index_counts_the_earlier_rows_of_the_same_source(weights: list[int]) -> None:
    mixture = build_mixture({str(i): Fraction(weight, sum(weights)) for i, weight in enumerate(weights)})
    rows = np.arange(60)
    served = [0] * len(weights)
    for source, index in zip(mixture.source_of(rows).tolist(), mixture.index_of(rows).tolist(), strict=True):
        assert index == served[source]
        served[source] += 1
    assert mixture.counts(60).tolist() == served


def test_seeking_far_agrees_with_counting() -> None:
    mixture = build_mixture({"a": Fraction(3, 4), "b": Fraction(1, 4)})
    far = np.arange(10**12, 10**12 + 4)
    served = mixture.counts(10**12)
    assert served.tolist() == [3 * 10**12 // 4, 10**12 // 4]
    for source, index in zip(mixture.source_of(far), mixture.index_of(far), strict=True):
        assert index == served[source]
        served[source] += 1


def test_shares_follow_roles_and_weights_exactly() -> None:
    shares = source_shares(data(0.1, law=("domain", 2.0), general=("replay", 5.0), code=("domain", 0.7)))
    assert shares == {"law": Fraction(9, 10) * Fraction(20, 27), "general": Fraction(1, 10), "code": Fraction(9, 10) * Fraction(7, 27)}


def test_without_replay_its_sources_serve_nothing() -> None:
    mixture = build_mixture(source_shares(data(0.0, law=("domain", 1.0), general=("replay", 1.0))))
    assert set(mixture.source_of(np.arange(50)).tolist()) == {0}


def test_replay_without_a_replay_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.replay=0\.25"):
        source_shares(data(0.25, law=("domain", 1.0)))


def test_awkward_shares_are_rounded_by_less_than_a_hundred_thousandth() -> None:
    shares = source_shares(data(0.123457, a=("domain", 0.333331), b=("domain", 0.77777), c=("replay", 1.0)))
    mixture = build_mixture(shares)
    assert mixture.period_rows == LONGEST_PERIOD_ROWS
    measured = mixture.counts(10**9) / 10**9
    assert np.abs(measured - [float(share) for share in shares.values()]).max() < 1e-5
