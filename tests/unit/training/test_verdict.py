"""Who holds a run up: cases by hand, and any number of ranks of which some hang."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.training.verdict import Standing, Verdict, furthest_behind, judge, told

SECONDS = 60.0
FINE = Standing(
    rank=0, host="node", process=100, step=7, phase="forward", beats=2, idle_seconds=1.0, quiet_seconds=0.5, waiting=False, alone=None, armed=True,
    ended=None,
)  # fmt: skip


def at(rank: int, **changes: Any) -> Standing:
    return replace(FINE, rank=rank, process=100 + rank, **changes)


def hung(rank: int, **changes: Any) -> Standing:
    return at(rank, **{"idle_seconds": 61.0, **changes})


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        pytest.param([at(0), at(1)], None, id="all is well"),
        pytest.param([hung(0), hung(1)], ("untold", ()), id="both at the same place"),
        pytest.param([hung(0, beats=3), hung(1, phase="data", beats=1)], ("behind", (1,)), id="one did not get its data"),
        pytest.param([hung(0, step=8, beats=1), hung(1, step=7, beats=5)], ("behind", (1,)), id="a step behind"),
        pytest.param([hung(0, waiting=True), hung(1)], ("behind", (1,)), id="only one waits"),
        pytest.param([hung(0, waiting=True, beats=1), hung(1, beats=5)], ("behind", (1,)), id="the one ahead does not come"),
        pytest.param([hung(0, waiting=True), hung(1, waiting=True, beats=1)], ("behind", (1,)), id="both wait, for different things"),
        pytest.param([hung(0), at(1)], None, id="one waits for another that is slow but alive"),
        pytest.param([hung(0)], ("behind", (0,)), id="alone in the world"),
        pytest.param([hung(0, armed=False), hung(1)], None, id="before the first step of one"),
        pytest.param([hung(0, alone="export"), hung(1)], None, id="one works alone"),
        pytest.param([at(0, alone="export"), hung(1, quiet_seconds=60)], ("silent", (1,)), id="a death while one works alone"),
        pytest.param([at(0, armed=False), at(1, armed=False, quiet_seconds=60)], ("silent", (1,)), id="a death before the first step"),
        pytest.param([hung(0, waiting=True), hung(1, quiet_seconds=55)], ("silent", (1,)), id="stopped in a step"),
        pytest.param([hung(0), at(1, ended="finished", quiet_seconds=900)], ("behind", (0,)), id="the other is done"),
        pytest.param([at(0), at(1, ended="finished", quiet_seconds=900)], None, id="done is done"),
        pytest.param([at(0), at(1, ended="ended by an error", quiet_seconds=60)], ("silent", (1,)), id="left without a word"),
        pytest.param([], None, id="nobody is known"),
    ],
)  # fmt: skip
def test_who_holds_the_run_up(standings: list[Standing], expected: tuple[str, tuple[int, ...]] | None) -> None:
    found = judge(standings, SECONDS)
    assert (found and (found.kind, found.culprits)) == expected


@given(st.integers(2, 40), st.data())
def test_whoever_did_not_come_as_far_is_named_whatever_the_others_wait_for(world: int, data: st.DataObject) -> None:
    """Ranks pass the same places; the culprits hang before a meeting, all others wait in it or have gone on to do something."""
    culprits = data.draw(st.sets(st.integers(0, world - 1), min_size=1, max_size=world - 1))
    step, beats = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 9))
    visible = data.draw(st.booleans())  # whether waiting can be seen, which on a GPU it cannot
    standings = []
    for rank in range(world):
        further = data.draw(st.booleans())
        later = {"step": step + 1, "beats": data.draw(st.integers(1, 9))} if further else {"step": step, "beats": beats + 1}
        standings.append(hung(rank, step=step, beats=beats) if rank in culprits else hung(rank, waiting=visible, **later))
    assert judge(standings, SECONDS) == Verdict(kind="behind", culprits=tuple(sorted(culprits)))


@given(st.lists(st.tuples(st.floats(0, 59), st.floats(0, 29), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_no_alarm_while_everybody_moves(known: list[tuple[float, float, bool, bool]]) -> None:
    standings = [
        at(rank, idle_seconds=idle, quiet_seconds=quiet, waiting=waiting, armed=armed) for rank, (idle, quiet, waiting, armed) in enumerate(known)
    ]
    assert judge(standings, SECONDS) is None


def test_nobody_is_named_when_all_are_alike() -> None:
    assert furthest_behind([hung(rank) for rank in range(5)]) == ()
    assert furthest_behind([hung(rank, waiting=True) for rank in range(5)]) == ()


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (Verdict(kind="silent", culprits=(1,)), "rank 1 gives no sign of life for 60 s: killed or stopped (process 101 on node)"),
        (Verdict(kind="silent", culprits=(2,)), "rank 2 has ended by an error"),
        (Verdict(kind="behind", culprits=(0, 1)), "rank 0 and rank 1 makes no progress for 60 s, in step 7, phase forward"),
        (Verdict(kind="untold", culprits=()), "cannot be told"),
        (Verdict(kind="unreachable", culprits=(0,)), "rank 0, through which the ranks meet, does not answer for 60 s"),
        (Verdict(kind="unreachable", culprits=()), "the launcher, through which the ranks meet, does not answer for 60 s"),
    ],
)
def test_the_report_says_who_where_and_what_next(verdict: Verdict, says: str) -> None:
    standings = [at(0, waiting=True), at(1, quiet_seconds=61.0), at(2, ended="ended by an error")]
    text = told(verdict, standings, SECONDS, "runs/x/watchdog/rank-N.txt")
    lines = text.splitlines()
    assert says in lines[0] and lines[0].startswith("watchdog: ")
    assert [line.split(":")[0].strip() for line in lines[1:4]] == [f"rank {rank} (process {100 + rank} on node)" for rank in range(3)]
    assert "waiting for other ranks" in lines[1] and "no sign of life for 61 s" in lines[2] and "ended by an error" in lines[3]
    assert "the same command goes on" in text
    assert ("runs/x/watchdog/rank-N.txt" in text and "watchdog.seconds=120" in text) == (verdict.kind in ("behind", "untold"))
