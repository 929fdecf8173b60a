"""Whether ranks hang, which of them holds the others up, and how a person is told: pure functions of what is known of each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

PHASES = ("data", "forward", "update", "log", "evaluate", "save")
"""Of a step, in order."""

Kind = Literal["silent", "behind", "untold", "unreachable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of one rank. `beats`: signs of progress within the step; `idle_seconds`: since the last one; `quiet_seconds`: since the
    last sign of life; `waiting`: inside a call that waits for other ranks; `alone`: the long phase in which it works without the others;
    `armed`: it has made a step; `ended`: how it left, if it did."""

    rank: int
    host: str
    process: int
    step: int
    phase: str
    beats: int
    idle_seconds: float
    quiet_seconds: float
    waiting: bool
    alone: str | None
    armed: bool
    ended: str | None

    @property
    def is_over(self) -> bool:
        """True when it has come to the end, and is no longer watched."""
        return self.ended == "finished"

    def is_silent(self, seconds: float) -> bool:
        """True when it must have been killed or stopped, at the moment of an alarm: half the time without a sign of life says enough."""
        return self.quiet_seconds >= seconds / 2

    def __str__(self) -> str:
        place = f"alone in {self.alone}" if self.alone else f"step {self.step}, {self.phase}" if self.phase else "before the first step"
        parts = [f"rank {self.rank} (process {self.process} on {self.host}): {place}", f"{self.idle_seconds:.0f} s without progress"]
        if self.ended:
            parts.append(self.ended)
        elif self.quiet_seconds >= 3:
            parts.append(f"no sign of life for {self.quiet_seconds:.0f} s")
        elif self.waiting:
            parts.append("waiting for other ranks")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which ranks hold the run up: silent (killed or stopped), behind the others, or untold; unreachable: what the ranks meet through."""

    kind: Kind
    culprits: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def judge(standings: Sequence[Standing], seconds: float) -> Verdict | None:
    """None while all is well: every rank gives signs of life and, once steps are made and no rank works alone, one of them progresses.

    One that progresses is enough: the others may wait for it. Where one hangs they soon do, too.
    """
    here = [standing for standing in standings if not standing.is_over]
    watched = all(standing.armed for standing in here) and not any(standing.alone for standing in here)
    stuck = watched and bool(here) and all(standing.idle_seconds >= seconds for standing in here)
    if not stuck and not any(standing.quiet_seconds >= seconds for standing in here):
        return None
    silent = tuple(standing.rank for standing in here if standing.is_silent(seconds))
    if silent:
        return Verdict(kind="silent", culprits=silent)
    behind = furthest_behind(here)
    return Verdict(kind="behind" if behind else "untold", culprits=behind)


def furthest_behind(standings: Sequence[Standing]) -> tuple[int, ...]:
    """The ranks that hold the others up; none where that cannot be told.

    One that waits for others holds nobody up, unless all do. Of the rest it is the one that has come least far: ranks of a run do the same
    things in the same order.
    """
    working = [standing for standing in standings if not standing.waiting] or list(standings)
    least = min((standing.step, standing.beats) for standing in working)
    behind = tuple(standing.rank for standing in working if (standing.step, standing.beats) == least)
    return behind if len(behind) < len(standings) or len(standings) == 1 else ()


def told(verdict: Verdict, standings: Sequence[Standing], seconds: float, stacks: str) -> str:
    """The report: who, where every rank stands, and what to do next. `stacks`: where the stacks of all threads are."""
    known = {standing.rank: standing for standing in standings}
    names = " and ".join(f"rank {rank}" for rank in verdict.culprits)
    them = [known[rank] for rank in verdict.culprits if rank in known]
    where = ", ".join(sorted({f"step {standing.step}, phase {standing.phase}" for standing in them}))
    processes = ", ".join(f"process {standing.process} on {standing.host}" for standing in them)
    restart = "the same command goes on from the newest checkpoint"
    slow = f"a phase that is only slow needs watchdog.seconds={2 * seconds:g} (0: no watch)"
    memory = "where memory ran out, engine.micro_batch_rows=1 needs less (dmesg tells)"
    match verdict.kind:
        case "silent":
            ended = [standing.ended for standing in them if standing.ended]
            how = f"has {ended[0]}" if ended else f"gives no sign of life for {seconds:g} s: killed or stopped ({processes})"
            head, advice = f"{names} {how}", [restart, memory]
        case "unreachable":
            head = f"{names or 'the launcher'}, through which the ranks meet, does not answer for {seconds:g} s: killed, stopped, or cut off"
            advice = [restart, memory]
        case "behind":
            head, advice = f"{names} makes no progress for {seconds:g} s, in {where}, and holds the run up", [f"look at {stacks}", restart, slow]
        case "untold":
            head = f"no rank makes progress for {seconds:g} s, and which one holds the others up cannot be told"
            advice = [f"look at {stacks}", restart, slow]
    lines = [f"watchdog: {head}", *(f"    {standing}" for standing in standings), *(f"  next: {line}" for line in advice)]
    return "\n".join(lines) + "\n"
