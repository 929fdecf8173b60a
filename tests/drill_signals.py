"""The signal matrix: each signal, in each phase, to each rank; every rank ends with 75, and the same command goes on to the same end."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drill_compare import ledger_differences, run_differences
from drill_phases import AT_STEP, PHASES, SIGNAL_VARIABLE
from drill_run import DrillRun
from drill_server import RankServers, tail

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SETTINGS = ("engine=zero2", "engine.micro_batch_rows=2", "train.max_steps=9", "train.save_every=3", "train.evaluate_every=4", "watchdog.seconds=20")
REQUEUE = 75


@dataclass(frozen=True, kw_only=True)
class Case:
    """One signal to one rank of so many, in one phase."""

    number: signal.Signals
    phase: str
    rank: int
    world: int

    @property
    def name(self) -> str:
        """As a row of the table is called."""
        return f"{self.number.name} · {self.phase} · rank {self.rank} of {self.world}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case: the newest checkpoint after the stop, and everything that is not as it should be."""

    case: Case
    saved_step: int
    problems: tuple[str, ...]


def all_cases() -> list[Case]:
    """The whole matrix: one rank, and each of two."""
    places = ((0, 1), (0, 2), (1, 2))
    return [
        Case(number=number, phase=phase, rank=rank, world=world) for (rank, world), phase, number in itertools.product(places, PHASES, SIGNALS)
    ]  # fmt: skip


def some_cases() -> list[Case]:
    """Every phase once, with every signal and every place among them."""
    places = ((0, 1), (1, 2), (0, 2))
    return [
        Case(number=SIGNALS[at % 4], phase=phase, rank=places[at % 3][0], world=places[at % 3][1]) for at, phase in enumerate(PHASES)
    ]  # fmt: skip


def run_signals(servers: RankServers, folder: Path, cases: Sequence[Case], on_case: Callable[[], None]) -> Iterator[Outcome]:
    """Run all cases; the untouched run of each number of ranks is made once."""
    untouched: dict[int, DrillRun] = {}
    for number, case in enumerate(cases):
        if case.world not in untouched:
            untouched[case.world] = DrillRun(servers, folder / f"untouched-{case.world}", SETTINGS, random.Random(0))
            untouched[case.world].finish(untouched[case.world].start(ranks=case.world))
        run = DrillRun(servers, folder / f"case-{number}", SETTINGS, random.Random(number))
        yield _outcome(run, untouched[case.world], case)
        on_case()


def _outcome(run: DrillRun, untouched: DrillRun, case: Case) -> Outcome:
    words: dict[str, str] = {SIGNAL_VARIABLE: f"{case.rank}:{case.phase}:{int(case.number)}"}
    if case.phase == "load":  # there has to be a checkpoint first
        run.finish(run.start(ranks=case.world, **{SIGNAL_VARIABLE: f"0:update:{int(signal.SIGTERM)}"}), REQUEUE)
    started = run.start(ranks=case.world, **words)
    try:
        run.finish(started, REQUEUE)
    except RuntimeError:
        return Outcome(case=case, saved_step=run.saved_step(), problems=(f"exit codes {started.codes}: {tail(run.log, 8)}",))
    saved, problems = run.saved_step(), []
    expected = {"forward": AT_STEP + 1, "update": AT_STEP + 1, "evaluate": 4, "save": 4, "load": AT_STEP + 1, "export": 9, "compare": 9}
    if saved != expected.get(case.phase, saved):
        problems.append(f"the newest checkpoint is of step {saved}, not {expected[case.phase]}")
    run.finish(run.start(ranks=case.world))
    problems += run_differences(run.path, untouched.path) + ledger_differences(run.ledger, untouched.ledger)
    return Outcome(case=case, saved_step=saved, problems=tuple(problems))
