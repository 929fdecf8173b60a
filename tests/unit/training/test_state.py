"""Which data a step trains on after any rewinds, against a reel that only ever moves on."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slayer.training.loop import Course
from slayer.training.state import Rewind, RunState, load_state

COURSES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), max_size=8)
"""Stretches of a run: steps made, and how many of all steps so far the rewind behind them takes back."""


def played(course: list[tuple[int, int]]) -> tuple[RunState, dict[int, int]]:
    """The state at the end of a course, and the data step that each step of the course that counts was served."""
    state, reel, served = RunState(), 0, dict[int, int]()
    for steps, back in course:
        for _ in range(steps):
            served[state.step] = reel
            reel += 1
            state = replace(state, step=state.step + 1)
        to_step = max(state.step - back, 0)
        if back:
            state = replace(state, step=to_step, rewinds=(*state.rewinds, Rewind(from_step=state.step, to_step=to_step)))
            served = {step: data_step for step, data_step in served.items() if step < to_step}
    return state, {**served, state.step: reel}


@given(COURSES)
def test_data_only_ever_moves_on(course: list[tuple[int, int]]) -> None:
    """However far back a rewind goes, also behind an earlier one: the next batch is the one that nobody has seen yet."""
    state, served = played(course)
    assert {step: replace(state, step=step).data_step for step in served} == served


def test_data_behind_two_rewinds_by_hand() -> None:
    """Steps 0–12, back to 10, one more bad streak at 10–12, back to 10 again: step 10 is served batch 16."""
    rewinds = (Rewind(from_step=13, to_step=10), Rewind(from_step=13, to_step=10))
    found = [RunState(step=step, rewinds=rewinds).data_step for step in (0, 9, 10, 11)]
    assert found == [0, 9, 16, 17]
    assert [rewind.jump_steps for rewind in rewinds] == [3, 3]


def test_a_rewind_behind_an_earlier_one_serves_nothing_twice() -> None:
    """The checkpoint that the first went to was damaged, so the second went further back: 16 batches are gone by then."""
    rewinds = (Rewind(from_step=13, to_step=10), Rewind(from_step=13, to_step=5))
    assert [RunState(step=step, rewinds=rewinds).data_step for step in (4, 5, 10, 20)] == [4, 16, 21, 31]


@given(COURSES, st.sets(st.integers(1, 60), max_size=4))
def test_a_new_mixture_is_noticed_once_and_also_when_a_rewind_leaps_over_its_first_step(course: list[tuple[int, int]], first_steps: set[int]) -> None:
    state, served = played(course)
    looked_at = Course(total_steps=99, mixture_steps=frozenset(first_steps))
    for step, data_step in served.items():
        mixtures = [sum(first <= data for first in first_steps) for data in (served[step - 1] if step else 0, data_step)]
        assert looked_at.changes_mixture(replace(state, step=step)) == (mixtures[0] != mixtures[1])


@given(COURSES, st.integers(0, 10**12), st.booleans())
def test_a_state_survives_json(course: list[tuple[int, int]], tokens: int, owes: bool) -> None:
    state = replace(
        played(course)[0], tokens=tokens, seconds=1.5, position={"law": {"row": 3}}, stage_steps=(0, 2, 5), owes_evaluation=owes
    )  # fmt: skip
    assert load_state(json.loads(json.dumps(state.to_dict()))) == state
    assert state.stage == 2
