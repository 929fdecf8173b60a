"""Learning rates, steps and parameter groups against formulas written out here."""

from __future__ import annotations

from math import ceil, cos, pi
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slayer.config import TrainConfig
from slayer.training.optim import TrainedGroup, learning_rate, parameter_groups, planned_steps, trained_groups, weight_decay

PEAK = 0.01
STEPS = st.integers(1, 5_000)
SHARES = st.floats(0, 0.9)


def rates(total_steps: int, **settings: Any) -> list[float]:
    train = TrainConfig(learning_rate=PEAK, **settings)
    return [learning_rate(step, total_steps, train) for step in range(total_steps)]


def test_cosine_by_hand() -> None:
    """10 steps, 2 of warm-up: thirds of the peak, then half a cosine over steps 2 … 9 down to a tenth."""
    expected = [PEAK / 3, 2 * PEAK / 3] + [PEAK * (0.1 + 0.45 * (1 + cos(pi * place / 7))) for place in range(8)]
    assert rates(10, schedule="cosine", warmup_share=0.2, final_lr_share=0.1) == pytest.approx(expected)


def test_wsd_by_hand() -> None:
    """10 steps, 2 of warm-up, the last 4 go down in equal stairs to a fifth."""
    expected = [PEAK / 3, 2 * PEAK / 3, PEAK, PEAK, PEAK, PEAK, 0.8 * PEAK, 0.6 * PEAK, 0.4 * PEAK, 0.2 * PEAK]
    assert rates(10, schedule="wsd", warmup_share=0.2, decay_share=0.4, final_lr_share=0.2) == pytest.approx(expected)


def test_constant_by_hand() -> None:
    assert rates(5, schedule="constant", warmup_share=0.2) == pytest.approx([PEAK / 2, PEAK, PEAK, PEAK, PEAK])


@given(STEPS, SHARES, st.floats(0, 1), st.data())
def test_warm_up_is_a_straight_line_to_the_peak(total_steps: int, share: float, floor: float, data: st.DataObject) -> None:
    schedule = data.draw(st.sampled_from(["cosine", "constant", "wsd"]))
    train = TrainConfig(learning_rate=PEAK, schedule=schedule, warmup_share=share, final_lr_share=floor)
    warmup_steps = ceil(share * total_steps)
    step = data.draw(st.integers(0, total_steps - 1))
    rate = learning_rate(step, total_steps, train)
    assert min(floor * PEAK, PEAK / (warmup_steps + 1)) * (1 - 1e-9) <= rate <= PEAK * (1 + 1e-9)
    if step < warmup_steps:
        assert rate == pytest.approx(PEAK * (step + 1) / (warmup_steps + 1))
    elif schedule == "constant" or (schedule == "cosine" and step == warmup_steps):
        assert rate == pytest.approx(PEAK)


@given(STEPS, SHARES, st.floats(0, 1))
def test_warm_up_stable_decay_ends_at_the_floor_itself(total_steps: int, share: float, floor: float) -> None:
    train = TrainConfig(learning_rate=PEAK, schedule="wsd", warmup_share=share, final_lr_share=floor)
    if ceil(share * total_steps) < total_steps:
        assert learning_rate(total_steps - 1, total_steps, train) == PEAK * floor


@given(st.integers(2, 5_000), SHARES, st.floats(0, 1), st.data())
def test_cosine_follows_its_formula(total_steps: int, share: float, floor: float, data: st.DataObject) -> None:
    train = TrainConfig(learning_rate=PEAK, schedule="cosine", warmup_share=share, final_lr_share=floor)
    warmup_steps = ceil(share * total_steps)
    step = data.draw(st.integers(min(warmup_steps, total_steps - 1), total_steps - 1))
    if warmup_steps < total_steps - 1:
        place = (step - warmup_steps) / (total_steps - 1 - warmup_steps)
        assert learning_rate(step, total_steps, train) == pytest.approx(PEAK * (floor + (1 - floor) * 0.5 * (1 + cos(pi * place))))
        assert learning_rate(total_steps - 1, total_steps, train) == pytest.approx(PEAK * floor)


@given(st.integers(10, 5_000), st.floats(0.01, 0.5), st.floats(0, 1), st.data())
def test_wsd_is_flat_then_straight_down(total_steps: int, decay_share: float, floor: float, data: st.DataObject) -> None:
    train = TrainConfig(learning_rate=PEAK, schedule="wsd", warmup_share=0.1, decay_share=decay_share, final_lr_share=floor)
    decay_steps = ceil(decay_share * total_steps)
    step = data.draw(st.integers(ceil(0.1 * total_steps), total_steps - 1))
    left = total_steps - 1 - step
    expected = PEAK if left >= decay_steps else PEAK * (floor + (1 - floor) * left / decay_steps)
    assert learning_rate(step, total_steps, train) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("max_steps", "max_tokens", "expected"),
    [
        (None, None, 77),
        (5, None, 5),
        (0, None, 0),
        (None, 8 * 32 * 9, 9),
        (None, 8 * 32 * 9 + 255, 9),
        (None, 1, 1),
        (5, 8 * 32 * 9, 5),
        (50, 8 * 32 * 9, 9),
    ],
)
def test_the_smaller_limit_stops_and_an_epoch_is_the_default(max_steps: int | None, max_tokens: int | None, expected: int) -> None:
    train = TrainConfig(max_steps=max_steps, max_tokens=max_tokens, batch_rows=8)
    assert planned_steps(train, sequence_length=32, steps_per_domain_epoch=77) == expected


def test_weight_decay_begins_with_the_second_step() -> None:
    assert [weight_decay(step, TrainConfig(weight_decay=0.3)) for step in range(3)] == [0.0, 0.3, 0.3]


def test_matrices_decay_and_vectors_do_not() -> None:
    parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in {"matrix": (2, 3), "bias": (3,), "norm": (4,)}.items()}
    groups = parameter_groups([TrainedGroup(names=("norm", "matrix", "bias"))], parameters, weight_decay=0.2)
    found = [([id(parameter) for parameter in group["params"]], group["weight_decay"], group["decays"]) for group in groups]
    assert found == [([id(parameters["matrix"])], 0.2, True), ([id(parameters["norm"]), id(parameters["bias"])], 0.0, False)]


def test_partitioned_tensors_are_judged_by_their_full_shape() -> None:
    """Under ZeRO-3 a parameter's own shape is empty and `ds_shape` holds the real one."""
    partitioned = torch.nn.Parameter(torch.empty(0))
    partitioned.ds_shape = torch.Size((4, 4))  # type: ignore[attr-defined]
    (group,) = parameter_groups([TrainedGroup(names=("p",))], {"p": partitioned}, weight_decay=0.2)
    assert group["decays"]


def test_groups_of_a_staged_run_by_hand() -> None:
    """c pauses in the second stage, so it starts clean in the third; d joins in the second; factors may change on the way."""
    stages = [{"a": 1.0, "b": 0.5, "c": 1.0}, {"a": 1.0, "b": 1.0, "d": 0.5}, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.5}]
    assert trained_groups(stages, (0,)) == [TrainedGroup(names=("a", "c"), lr_factor=1.0), TrainedGroup(names=("b",), lr_factor=0.5)]
    assert trained_groups(stages, (0, 7)) == [TrainedGroup(names=("a", "b")), TrainedGroup(names=("d",), lr_factor=0.5, since_step=7)]
    assert trained_groups(stages, (0, 7, 9)) == [
        TrainedGroup(names=("a", "b")), TrainedGroup(names=("c",), since_step=9), TrainedGroup(names=("d",), lr_factor=0.5, since_step=7)
    ]  # fmt: skip


def test_what_joins_under_way_warms_up_on_its_own() -> None:
    group = TrainedGroup(names=("x",), lr_factor=0.5, since_step=10)
    assert [group.learning_rate(step, 0.8, 3) for step in (10, 11, 12, 13, 14)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert group.learning_rate(10, 0.8, 0) == 0.4
    assert TrainedGroup(names=("x",), lr_factor=0.5).learning_rate(0, 0.8, 3) == 0.4
