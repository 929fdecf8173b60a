from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import DataConfig, SourceConfig, StageConfig
from slayer.data.order.mixture import LONGEST_PERIOD_ROWS, Schedule, StageShares, build_mixture, build_schedule, row_shares, stage_shares
from slayer.errors import DataError


def data(replay: float, stages: list[dict[str, Any]] | None = None, **sources: tuple[str, float]) -> DataConfig:
    made = {name: SourceConfig(role=role, path="x", weight=weight) for name, (role, weight) in sources.items()}  # type: ignore[arg-type]
    return DataConfig(name="test", sources=made, replay=replay, stages=[StageConfig(**stage) for stage in stages or []])


def first_shares(config: DataConfig) -> dict[str, Fraction]:
    return stage_shares(config)[0].shares


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
    shares = first_shares(data(0.1, law=("domain", 2.0), general=("replay", 5.0), code=("domain", 0.7)))
    assert shares == {"law": Fraction(9, 10) * Fraction(20, 27), "general": Fraction(1, 10), "code": Fraction(9, 10) * Fraction(7, 27)}


def test_without_replay_its_sources_serve_nothing() -> None:
    mixture = build_mixture(first_shares(data(0.0, law=("domain", 1.0), general=("replay", 1.0))))
    assert set(mixture.source_of(np.arange(50)).tolist()) == {0}


def test_replay_without_a_replay_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.replay=0\.25.*no source has role=replay"):
        stage_shares(data(0.25, law=("domain", 1.0)))


def test_awkward_shares_are_rounded_by_less_than_two_thousandths_of_a_percent() -> None:
    shares = first_shares(data(0.123457, a=("domain", 0.333331), b=("domain", 0.77777), c=("replay", 1.0)))
    mixture = build_mixture(shares)
    assert mixture.period_rows == LONGEST_PERIOD_ROWS
    measured = mixture.counts(10**9) / 10**9
    assert np.abs(measured - [float(share) for share in shares.values()]).max() < 2e-5


@pytest.mark.parametrize("tiny", [Fraction(1, 10**9), Fraction(1, 10**6)])
def test_a_tiny_share_is_served_all_the_same(tiny: Fraction) -> None:
    mixture = build_mixture({"a": tiny, "b": tiny, "c": 1 - 2 * tiny})
    assert mixture.counts(mixture.period_rows).tolist() == [1, 1, LONGEST_PERIOD_ROWS - 2]


def test_rows_hold_different_numbers_of_tokens() -> None:
    asked = {"long": Fraction(3, 4), "short": Fraction(1, 4), "idle": Fraction(0)}
    shares = row_shares(asked, {"long": Fraction(500), "short": Fraction(100), "idle": Fraction(0)})
    assert sum(shares.values()) == 1 and shares["idle"] == 0
    assert shares["long"] * 500 == 3 * shares["short"] * 100


def test_stages_change_what_they_name_and_nothing_else() -> None:
    stages = [{"from_tokens": 1_000, "weights": {"law": 0.0}}, {"from_tokens": 2_000, "replay": 0.5}, {"from_tokens": 3_000, "weights": {"law": 1.0}}]
    found = stage_shares(data(0.2, stages, law=("domain", 3.0), code=("domain", 1.0), general=("replay", 1.0)))
    assert [stage.from_tokens for stage in found] == [0, 1_000, 2_000, 3_000]
    assert [tuple(stage.shares.values()) for stage in found] == [
        (Fraction(3, 5), Fraction(1, 5), Fraction(1, 5)), (0, Fraction(4, 5), Fraction(1, 5)), (0, Fraction(1, 2), Fraction(1, 2)),
        (Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"from_tokens": 10, "weights": {"lore": 1.0}}], r"data\.stages\[0\]\.weights names lore.*law, general"),
        ([{"from_tokens": 10}, {"from_tokens": 10}], r"data\.stages\[1\]\.from_tokens=10 is not after 10"),
        ([{"from_tokens": 10, "weights": {"law": 0.0}}], r"data\.stages\[0\]\.replay=0\.25 asks for domain text, but every source"),
        ([{"from_tokens": 10, "weights": {"general": 0.0}}], r"replay text, but every source with role=replay has weight 0"),
    ],
)
def test_stages_that_cannot_be_served_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        stage_shares(data(0.25, stages, law=("domain", 1.0), general=("replay", 1.0)))


def schedule_of(stages: list[tuple[int, list[int]]], labels: list[int], batch_rows: int) -> Schedule:
    """Stages as (from_tokens, weights)."""
    asked = [
        StageShares(from_tokens=tokens, shares={str(i): Fraction(one, sum(weights)) for i, one in enumerate(weights)}) for tokens, weights in stages
    ]
    return build_schedule(asked, {str(i): Fraction(one) for i, one in enumerate(labels)}, batch_rows)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=3, max_size=3),
    st.integers(1, 6),
    st.data(),
)
def test_a_stage_begins_at_the_first_step_that_has_its_tokens_behind_it(
    weights: list[list[int]], labels: list[int], batch_rows: int, draw: st.DataObject
) -> None:
    borders = sorted(draw.draw(st.lists(st.integers(1, 2_000), min_size=len(weights) - 1, max_size=len(weights) - 1, unique=True)))
    schedule = schedule_of(list(zip([0, *borders], weights, strict=True)), labels, batch_rows)
    tokens, step = Fraction(0), 0
    for number, stage in enumerate(schedule.stages):
        while tokens < stage.from_tokens:
            before = schedule.stages[number - 1]
            tokens += batch_rows * sum(share * labels[int(name)] for name, share in before.row_shares.items())
            step += 1
        assert stage.from_step == step
        assert sum(stage.row_shares.values()) == 1
    served = [0, 0, 0]
    rows = np.arange((schedule.stages[-1].from_step + 5) * batch_rows)
    for row, source, index in zip(rows.tolist(), schedule.source_of(rows).tolist(), schedule.index_of(rows).tolist(), strict=True):
        stage = schedule.stages[int(schedule.stage_of(np.array([row]))[0])]
        assert stage.from_step <= row // batch_rows and stage.token_shares[str(source)] > 0
        assert index == served[source]
        served[source] += 1
        if row % 17 == 0:
            assert schedule.counts(row + 1).tolist() == served
    assert schedule.expected_tokens(len(rows)) == pytest.approx([count * one for count, one in zip(served, labels, strict=True)])


def test_a_far_row_of_the_last_stage_is_found_at_once() -> None:
    schedule = schedule_of([(0, [1, 1, 0]), (10**9, [0, 1, 2])], [100, 90, 37], 8)
    far = np.arange(10**12, 10**12 + 50)
    served = schedule.counts(10**12)
    for source, index in zip(schedule.source_of(far), schedule.index_of(far), strict=True):
        assert index == served[source]
        served[source] += 1
    assert served.tolist() == schedule.counts(10**12 + 50).tolist()
