"""The signal matrix in short: every phase, with every signal and every place among them (`python -m tests.drill --signals` has all)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from drill_phases import PHASES
from drill_server import RankServers
from drill_signals import SIGNALS, Case, all_cases, run_signals, some_cases

pytestmark = pytest.mark.slow


def test_the_matrix_is_whole() -> None:
    cases = all_cases()
    assert len(set(cases)) == len(cases) == len(PHASES) * len(SIGNALS) * 3
    some = some_cases()
    assert {case.phase for case in some} == set(PHASES) and {case.number for case in some} == set(SIGNALS)
    assert {(case.rank, case.world) for case in some} == {(0, 1), (0, 2), (1, 2)}


@pytest.mark.parametrize("phases", [("forward", "evaluate", "save"), pytest.param(PHASES, marks=pytest.mark.matrix)], ids=("three", "all"))
def test_every_phase_is_stopped_saved_and_gone_on_from(servers: RankServers, tmp_path: Path, phases: Sequence[str]) -> None:
    cases: list[Case] = [case for case in some_cases() if case.phase in phases]
    assert len(cases) == len(phases)
    outcomes = list(run_signals(servers, tmp_path, cases, lambda: None))
    assert len(outcomes) == len(cases)
    assert {outcome.case.name: outcome.problems for outcome in outcomes if outcome.problems} == {}
