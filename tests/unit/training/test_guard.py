"""The guard's verdicts against a statement of the rule in numpy, and what of it outlives a checkpoint.

The rule is OLMo-core's (optim/skip_step_optimizer.py): a step is skipped when its loss or its gradient norm is more than sigma sample
deviations above the mean of the window, once half of the window is there. Ours differs in two points: steps that were skipped do not enter
the window (there a single NaN in it makes every comparison false, and a whole window of good steps is skipped), and what is not finite is
skipped from the first step on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from slayer.config import GuardConfig
from slayer.training.guard import ACCEPTED, NON_FINITE, SPIKE, Guard

CPU = torch.device("cpu")
Step = tuple[float, float]


class Stated:
    """The rule, with the accepted steps as a plain list."""

    def __init__(self, sigma: float | None, window_steps: int) -> None:
        self.sigma, self.window_steps = sigma, window_steps
        self.accepted: list[Step] = []

    def distances(self, step: Step) -> list[float]:
        """How far each of the two lies above the threshold; empty while nothing is judged by it."""
        if self.sigma is None or len(self.accepted) < self.window_steps // 2:
            return []
        window = np.array(self.accepted[-self.window_steps :])
        return [float(value - window[:, row].mean() - self.sigma * window[:, row].std(ddof=1)) for row, value in enumerate(step)]

    def judge(self, step: Step) -> int:
        loss, norm = step
        if not (math.isfinite(loss) and math.isfinite(norm) and norm >= 0):
            return NON_FINITE
        if any(distance > 0 for distance in self.distances(step)):
            return SPIKE
        self.accepted.append(step)
        return ACCEPTED


def judged(guard: Guard, steps: list[Step]) -> list[int]:
    for loss, norm in steps:
        guard.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm, dtype=torch.float64))
        assert float(guard.skip) in (0.0, 1.0)
    return guard.read()


def window_of(guard: Guard) -> list[Step]:
    """The accepted steps that it remembers, in any order."""
    filled = min(int(guard.n_accepted), guard.config.window_steps)
    return sorted((float(loss), float(norm)) for loss, norm in guard.history_2W[:, :filled].T)


WILD_LOSSES = (2.5, 2.9, 3.5, 5.0, 40.0, 1e30, math.nan, math.inf, -math.inf)
WILD_NORMS = (0.0, 1.0, 2.0, 9.0, 1e30, -1.0, math.nan, math.inf)


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """Up to 80 steps, ordinary ones and now and then a wild one: long enough for windows to fill and turn over."""
    generator, wild = draw(st.randoms(use_true_random=False)), draw(st.sampled_from([0.0, 0.1, 0.4]))
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 80))):
        if generator.random() < wild:
            steps.append((generator.choice(WILD_LOSSES), generator.choice(WILD_NORMS)))
        else:
            steps.append((generator.uniform(2, 3), generator.uniform(0.5, 1.5)))
    return steps


@given(sequences(), st.sampled_from([8, 9, 12, 30]), st.sampled_from([None, 1.5, 3.0, 6.0]))
def test_verdicts_and_window_are_the_stated_ones(steps: list[Step], window_steps: int, sigma: float | None) -> None:
    guard, stated = Guard(GuardConfig(sigma=sigma, window_steps=window_steps, patience=3), CPU), Stated(sigma, window_steps)
    in_a_row = 0
    for step in steps:
        # At the threshold itself the last bit of a sum decides, and both are right.
        if any(abs(distance) <= 1e-9 * max(map(abs, step)) for distance in stated.distances(step)):
            continue
        expected = stated.judge(step)
        assert judged(guard, [step]) == [expected]
        assert float(guard.skip) == (expected != ACCEPTED)
        in_a_row = in_a_row + 1 if expected != ACCEPTED else 0
        assert guard.in_a_row == in_a_row and guard.gives_up == (in_a_row >= 3)
        assert window_of(guard) == sorted(stated.accepted[-window_steps:])


def test_ten_sigma_is_a_spike_and_five_is_not() -> None:
    """A window of ±1 around 10: mean 10, sample deviation √(8/7)."""
    deviation = math.sqrt(8 / 7)
    for sigmas, expected in ((5.0, ACCEPTED), (5.9, ACCEPTED), (6.1, SPIKE), (10.0, SPIKE)):
        for step in ((10 + sigmas * deviation, 1.0), (10.0, 1.0 + sigmas * deviation / 10)):
            guard = Guard(GuardConfig(window_steps=8), CPU)
            judged(guard, [(9.0, 0.9), (11.0, 1.1)] * 4)
            assert judged(guard, [step]) == [expected], (sigmas, step)


def test_what_falls_is_never_a_spike() -> None:
    guard = Guard(GuardConfig(window_steps=8), CPU)
    assert judged(guard, [(9.0, 0.9), (11.0, 1.1)] * 4 + [(-1000.0, 0.0)]) == [ACCEPTED] * 9


def test_nothing_is_a_spike_before_half_of_the_window_is_there() -> None:
    guard = Guard(GuardConfig(window_steps=16), CPU)
    assert judged(guard, [(1.0, 1.0), (1.1, 1.1)] * 3 + [(2.0, 2.0), (99.0, 99.0)]) == [ACCEPTED] * 8
    assert judged(guard, [(9_999.0, 1.0), (math.nan, 1.0)]) == [SPIKE, NON_FINITE]


def test_steps_that_do_not_vary_at_all_are_no_spikes() -> None:
    """The mean of equal numbers may be off by a last bit, and so is their deviation."""
    for value in (0.1, 1 / 3, 2.7, 1e-8, 1e8):
        guard = Guard(GuardConfig(), CPU)
        assert judged(guard, [(value, value)] * 400) == [ACCEPTED] * 400


def test_a_bad_step_costs_no_other_step() -> None:
    """With the bad ones in the window the next hundred would be let through, or skipped."""
    generator = np.random.default_rng(0)
    guard, found = Guard(GuardConfig(), CPU), []
    for step in range(600):
        loss, norm = 2 + 0.1 * generator.standard_normal(), abs(1 + 0.2 * generator.standard_normal())
        bad = {200: (math.nan, 1.0), 201: (2.0, math.inf), 202: (2.0, -1.0), 210: (9.0, 1.0), 211: (2.0, 9.0), 300: (9.0, 9.0)}
        found += judged(guard, [bad.get(step, (loss, norm))])
    assert {step: verdict for step, verdict in enumerate(found) if verdict} == {
        200: NON_FINITE, 201: NON_FINITE, 202: NON_FINITE, 210: SPIKE, 211: SPIKE, 300: SPIKE
    }  # fmt: skip


def test_verdicts_may_be_read_late() -> None:
    steps = [(1.0, 1.0), (math.nan, 1.0), (1.0, 1.0), (math.inf, 1.0), (1.0, -1.0)]
    guard = Guard(GuardConfig(patience=2), CPU)
    assert judged(guard, steps) == [ACCEPTED, NON_FINITE, ACCEPTED, NON_FINITE, NON_FINITE]
    assert guard.read() == [] and guard.in_a_row == 2 and guard.gives_up


@given(sequences(), sequences(), st.sampled_from([8, 11]))
def test_a_checkpoint_keeps_all_of_it(before: list[Step], after: list[Step], window_steps: int) -> None:
    config = GuardConfig(window_steps=window_steps, sigma=2.0)
    whole, first = Guard(config, CPU), Guard(config, CPU)
    judged(whole, before), judged(first, before)
    state = {name: value.clone() for name, value in first.state().items()}
    judged(first, [(5.0, 5.0)] * 3)  # what is saved must not follow
    second = Guard(config, CPU)
    second.load(state)
    assert (second.in_a_row, window_of(second)) == (whole.in_a_row, window_of(whole))
    assert judged(second, after) == judged(whole, after)
    assert second.in_a_row == whole.in_a_row and torch.equal(second.history_2W, whole.history_2W)


def test_a_window_of_another_length_is_forgotten() -> None:
    first, second = Guard(GuardConfig(window_steps=8), CPU), Guard(GuardConfig(window_steps=9), CPU)
    judged(first, [(9.0, 0.9), (11.0, 1.1)] * 4)
    second.load(first.state())
    assert judged(second, [(9_999.0, 1.0)]) == [ACCEPTED]


def test_what_is_forgotten_is_judged_anew() -> None:
    """After a legitimate shift: the new level is accepted, and once it is known a leap from there is not."""
    guard = Guard(GuardConfig(window_steps=8), CPU)
    assert judged(guard, [(1.0, 1.0), (1.1, 1.1)] * 4 + [(5.0, 5.0)]) == [ACCEPTED] * 8 + [SPIKE]
    guard.forget()
    assert guard.in_a_row == 0
    assert judged(guard, [(5.0, 5.0), (5.1, 5.1)] * 4 + [(9.0, 5.0)]) == [ACCEPTED] * 8 + [SPIKE]
    guard.forget()
    assert judged(guard, [(math.nan, 1.0)]) == [NON_FINITE]


SYNCHRONISING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")


class NothingIsRead(TorchDispatchMode):
    """Fails when an operator has to know a value."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in SYNCHRONISING, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sigma", [None, 6.0])
def test_judging_waits_for_nothing(sigma: float | None) -> None:
    """No operator asks for a value, and on the meta device, where there is none, judging works all the same."""
    guard = Guard(GuardConfig(window_steps=8, sigma=sigma), CPU)
    with NothingIsRead():
        for loss in (1.0, 1.1, math.nan, 50.0, *[1.0] * 20):
            guard.judge(torch.full((), loss), torch.full((), 1.0))
    with pytest.raises(AssertionError), NothingIsRead():
        guard.gives_up or float(guard.skip)
    assert len(guard.read()) == 24
    meta = Guard(GuardConfig(window_steps=8, sigma=sigma), torch.device("meta"))
    for _ in range(9):
        meta.judge(torch.zeros((), device="meta"), torch.zeros((), device="meta"))
