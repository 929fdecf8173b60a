"""Runs that are killed again and again, each beside one of the same configuration that nobody touched."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drill_compare import ledger_differences, run_differences
from drill_run import DrillRun
from drill_server import RankServers, Started, tail

MOMENTS = ("building", "loading", "in a step", "in a save", "after the last step")
"""What a kill hits: all that comes before the first step of a run; the same where it goes on; …"""

RECIPES = (
    ("engine=zero2",), ("engine=zero3", "engine.precision=fp32"), ("engine=zero1", "freeze=staged"), ("engine=zero0", "engine.micro_batch_rows=1"),
    ("engine=zero2", "freeze=none", "prune=1"),
)  # fmt: skip
"""What the runs are made with, in turn."""

SETTINGS = ("engine.micro_batch_rows=2", "train.save_every=4", "train.evaluate_every=15", "watchdog.seconds=10")
KILLS_PER_RUN = 12

SAVE_SECONDS, STEP_SECONDS = 0.02, 0.05
"""What a save and a step of the tiny model take about."""

SURVIVE_SECONDS, ASKED_SECONDS = 15.0, 5.0
"""How long the others may take to notice that a rank was killed, and then to end when they are asked to: as the launcher has it."""

REQUEUE = 75

KINDS = ("start", "step", "save", "save")
"""What kills wait for, in an order drawn anew for each four; the last of a run may wait for its end."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: what it hit, how many steps its start had taken, which ranks were killed, the newest complete checkpoint then (which is
    where the next start must go on), and the exit codes of the others."""

    moment: str
    steps: int
    killed: tuple[int, ...]
    saved_step: int
    survivors: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run: its kills, and everything that is not as if they had never been."""

    name: str
    ranks: int
    recipe: str
    kills: tuple[Kill, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of the untouched run, in seconds: from its start to its first step, and from its last step to its end."""

    start: float
    end: float


def run_drill(
    servers: RankServers, folder: Path, *, kills: int, ranks: Sequence[int], steps: int, seed: int, on_kill: Callable[[], None]
) -> Iterator[Outcome]:
    """Runs until so many kills are made, evenly over numbers of ranks. `on_kill` hears of each one that was survived so far."""
    chance = random.Random(seed)
    left = {world: kills // len(ranks) + (place < kills % len(ranks)) for place, world in enumerate(ranks)}
    number = 0
    while any(left.values()):
        place = folder / f"run-{number}"
        world = max(left, key=lambda world: left[world])
        recipe = RECIPES[number % len(RECIPES)]
        words = (*SETTINGS, *recipe, f"train.max_steps={steps}", f"seed={chance.randrange(1000)}")
        drill = _Drill(servers, place, words, world=world, steps=steps, chance=chance, on_kill=on_kill)
        outcome = drill.run(f"run {number + 1}", " ".join(recipe), kills=min(left[world], KILLS_PER_RUN))
        left[world] -= len(outcome.kills)
        number += 1
        yield outcome
        if not outcome.problems:
            shutil.rmtree(place)
        elif not outcome.kills:
            return  # it does not even run


class _Drill:
    """One configuration: a run that nobody touches, and one that is killed."""

    def __init__(
        self, servers: RankServers, folder: Path, words: Sequence[str], *, world: int, steps: int, chance: random.Random, on_kill: Callable[[], None]
    ) -> None:
        self.world, self.steps, self.chance, self.on_kill = world, steps, chance, on_kill
        self.untouched, self.target = (DrillRun(servers, folder / name, words, chance) for name in ("untouched", "killed"))
        self._kinds: list[str] = []
        self.kills: list[Kill] = []
        self.problems: list[str] = []

    def run(self, name: str, recipe: str, *, kills: int) -> Outcome:
        """Kill so many times, or until the run is over before; then let it finish, and compare."""
        try:
            times = self._leave_alone()
            while len(self.kills) < kills and self._start_and_kill(times, is_last=len(self.kills) + 1 == kills):
                self.on_kill()
            if not self.problems:
                self._go_to_the_end()
        except RuntimeError as error:
            self.problems.append(str(error))
        return Outcome(name=name, ranks=self.world, recipe=recipe, kills=tuple(self.kills), problems=tuple(self.problems))

    def _leave_alone(self) -> Times:
        run, began = self.untouched, time.monotonic()
        started = run.start(ranks=self.world)
        run.wait_for(lambda: run.ledger_bytes() > 0, started)
        first = time.monotonic()
        run.wait_for(lambda: run.taken()[-1:] == [self.steps - 1], started)
        last = time.monotonic()
        run.finish(started)
        return Times(start=first - began, end=time.monotonic() - last)

    def _start_and_kill(self, times: Times, *, is_last: bool) -> bool:
        """Start, and kill at some moment. False when the run was over before."""
        run, place, saved, resumed = self.target, self.target.ledger_bytes(), self.target.saved_step(), self.target.resumptions()
        started = run.start(ranks=self.world)
        self._wait_for_moment(started, place, times, is_last=is_last)
        if started.poll():
            run.finish(started)
            return False
        alone = self.world > 1 and self.chance.random() < 0.4
        killed = (self.chance.randrange(self.world),) if alone else tuple(range(self.world))
        started.signal(signal.SIGKILL, killed)
        in_a_save = bool(run.saves_under_way())
        survivors = self._survivors(started, killed)
        taken = run.taken(place)
        if in_a_save:
            moment = "in a save"
        elif taken[-1:] == [self.steps - 1] or (saved == self.steps and run.resumptions() > resumed):
            moment = "after the last step"
        else:
            moment = "in a step" if taken else "loading" if saved else "building"
        self._check_start(taken, saved)
        self.kills.append(Kill(moment=moment, steps=len(taken), killed=killed, saved_step=run.saved_step(), survivors=survivors))
        self._require_nobody_left(started)
        return not self.problems

    def _wait_for_moment(self, started: Started, place: int, times: Times, *, is_last: bool) -> None:
        """Let some time go by: from the start, from some step, from the beginning of some save, or from the last step."""
        run, chance = self.target, self.chance
        if not self._kinds:
            self._kinds = chance.sample(KINDS, len(KINDS))
        kind = "end" if is_last and chance.random() < 0.5 else self._kinds.pop()
        if kind == "start":
            seconds = chance.uniform(0.0, times.start)
        elif kind == "step":
            steps = chance.randint(1, 8)
            run.wait_for(lambda: len(run.taken(place)) >= steps, started)
            seconds = chance.uniform(0.0, STEP_SECONDS)
        elif kind == "save":
            run.wait_for(lambda: bool(run.saves_under_way()), started)
            if chance.random() < 0.5:  # the one after it
                first = run.saves_under_way()
                run.wait_for(lambda: bool(run.saves_under_way() - first), started)
            seconds = chance.uniform(0.0, SAVE_SECONDS)
        else:
            run.wait_for(lambda: run.taken(place)[-1:] == [self.steps - 1], started)
            seconds = chance.uniform(0.0, 0.8 * times.end)
        time.sleep(seconds)

    def _survivors(self, started: Started, killed: tuple[int, ...]) -> tuple[int, ...]:
        """Exit codes of the ranks that were not killed: like the launcher, give them time, ask them to end, and end them."""
        for number, seconds in ((None, SURVIVE_SECONDS), (signal.SIGTERM, ASKED_SECONDS), (signal.SIGKILL, ASKED_SECONDS)):
            if number is not None:
                started.signal(number)
            if started.wait(seconds):
                break
        codes = tuple(code for rank, code in enumerate(started.codes) if rank not in killed and code is not None)
        self.problems += [
            f"a rank that lost rank {killed[0]} ended with exit code {code}:\n{tail(started.log)}"
            for code in codes
            if code not in (0, REQUEUE, -9, -15)
        ]
        return codes

    def _check_start(self, taken: Sequence[int], saved: int) -> None:
        """Every step of a start follows the one before, the first the newest checkpoint: nothing is skipped, nothing done without need."""
        if list(taken) != list(range(saved, saved + len(taken))):
            self.problems.append(f"a start that had a checkpoint of step {saved} took the steps {list(taken)}")

    def _require_nobody_left(self, started: Started) -> None:
        until = time.monotonic() + ASKED_SECONDS
        while (left := started.left_over()) and time.monotonic() < until:
            time.sleep(0.02)
        if left:
            self.problems.append(f"{len(left)} processes outlived the rank that started them")

    def _go_to_the_end(self) -> None:
        run, place, saved = self.target, self.target.ledger_bytes(), self.target.saved_step()
        run.finish(run.start(ranks=self.world))
        self._check_start(run.taken(place), saved)
        self.problems += run_differences(run.path, self.untouched.path)
        self.problems += ledger_differences(run.ledger, self.untouched.ledger)
