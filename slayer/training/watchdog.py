"""Notices ranks that hang or die, names who holds the others up, and ends the run so that it can be started again.

Each rank writes a line about itself to the store every second, and reads those of the others. That is done by one thread, which may get
stuck with the store; a second one never touches it, judges by what is known, and ends the process. The same lines carry a signal that one
rank has heard to the others. The main thread only notes where it is.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slayer.config import WatchdogConfig
from slayer.reporting.events import Events
from slayer.training.ranks import Meeting, Ranks
from slayer.training.signals import REQUEUE_EXIT_CODE, StopRequest, write_last_words
from slayer.training.verdict import Standing, Verdict, judge, told

SLOWEST_SECONDS, FASTEST_SECONDS = 1.0, 0.05
"""Bounds of the time between two lines of a rank; within them a tenth of watchdog.seconds."""

LAST_SECONDS = 10.0
"""An alarm ends the process after so long, whatever the disk or the store do meanwhile."""

LINGER_SECONDS = 3.0
"""How long a rank that ends waits until the others have heard why."""

WAITING_FILES = (os.path.join("torch", "distributed", "distributed_c10d.py"), os.path.join("slayer", "training", "ranks.py"))
INNERMOST = 6
"""A main thread with one of these files among so many innermost frames waits for other ranks."""


class Watchdog:
    """The watch of one rank over itself and the others. `beat` is called by the training loop, on every forward pass too."""

    def __init__(self, ranks: Ranks, stop: StopRequest, seconds: float, folder: Path) -> None:
        self._ranks, self._stop, self._seconds, self._folder = ranks, stop, seconds, folder
        self._interval = min(max(seconds / 10, FASTEST_SECONDS), SLOWEST_SECONDS) if seconds else SLOWEST_SECONDS
        now = time.monotonic()
        self._last: tuple[int, str, int, float] = (0, "", 0, now)
        self._armed = False
        self._alone: tuple[str, ...] = ()
        self._others: dict[int, tuple[float, dict[str, Any]]] = {}  # when the line of each rank last changed, and that line
        self._contact = self._awake = self._together = now  # last: answer of the store, waking from a stop of ours, moment with a rank alone
        self._verdict: Verdict | None = None
        self._dumped = self._dump_is_known = self._unreachable = False
        self._ended: str | None = None
        self._woken, self._over = threading.Event(), threading.Event()

    def beat(self, phase: str, step: int) -> None:
        """This rank has come to a phase of a step. Called millions of times: no lock, no call out."""
        last = self._last
        if not self._armed:
            self._armed = last[1] == "update"
        self._last = (step, phase, last[2] + 1 if last[0] == step else 1, time.monotonic())

    @contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """Inside, this rank works long without the others: no progress is asked of any rank, only signs of life."""
        before = self._alone
        self._alone = (*before, phase)
        try:
            yield
        finally:
            self._last = (*self._last[:3], time.monotonic())
            self._alone = before

    # ── what the ranks tell each other ───────────────────────────────────────────────────────────────────────────────────

    def talk(self, meeting: Meeting, board: Any) -> None:
        """Write our line and read the others', over and over. Ends with this rank, or with the store."""
        others = [str(rank) for rank in range(self._ranks.world) if rank != self._ranks.rank]
        until = None
        while True:
            ended, dumped = self._ended, self._dumped
            try:
                board.set(str(self._ranks.rank), self._line())
                lines = board.multi_get(others)
            except RuntimeError:  # the other thread notices that nobody answers
                self._unreachable = True
                return
            for rank, text in zip(others, lines, strict=True):
                self._read(int(rank), json.loads(text))
            self._contact, self._dump_is_known = time.monotonic(), dumped
            if ended is not None:
                until = until or self._contact + LINGER_SECONDS
                if self._may_leave(ended) or self._contact > until:
                    return
            self._woken.wait(FASTEST_SECONDS if ended or self._verdict else self._interval)
            self._woken.clear()

    def _line(self) -> str:
        step, phase, beats, at = self._last
        alone, now = self._alone, time.monotonic()
        idle = now - max(at, self._awake)
        stuck = self._armed and not alone and idle > self._seconds / 2 > 0  # frames of a thread that runs are better left alone
        values = {
            "written": now, "host": socket.gethostname(), "process": os.getpid(), "step": step, "phase": phase, "beats": beats,
            "idle_seconds": idle, "waiting": stuck and _is_waiting(), "alone": alone[-1] if alone else None,
            "armed": self._armed, "ended": self._ended, "stop": self._stop.number, "dumped": self._dumped,
            "verdict": self._verdict.to_dict() if self._verdict else None,
        }  # fmt: skip
        return json.dumps(values)

    def _read(self, rank: int, line: dict[str, Any]) -> None:
        known = self._others.get(rank)
        if known is None or known[1]["written"] != line["written"]:
            self._others[rank] = (time.monotonic(), line)
        if line["stop"]:
            self._stop.relay(line["stop"])
        if line["verdict"] and self._verdict is None:
            self._verdict = Verdict(kind=line["verdict"]["kind"], culprits=tuple(line["verdict"]["culprits"]))

    def _may_leave(self, ended: str) -> bool:
        """Whoever was told to stop and holds the store stays until the others have heard of it, too."""
        lines = [line for _, line in self._others.values()]
        return ended != "stopped" or not self._ranks.is_first or all(line["stop"] or line["ended"] for line in lines)

    # ── what becomes of it ───────────────────────────────────────────────────────────────────────────────────────────────

    def watch(self) -> None:
        """Judge, over and over, until this rank is over or the run hangs."""
        looked_at = time.monotonic()
        while not self._over.wait(self._interval):
            now = time.monotonic()
            if now - looked_at > self._interval + max(2.0, self._interval):
                self._awake = now  # it was us who were stopped, perhaps everybody: what has not changed meanwhile says nothing
            looked_at = now
            standings = self._standings(now)
            if any(standing.alone for standing in standings):
                self._together = now
            verdict = self._verdict or self._judged(standings, now)
            if verdict is not None and not self._over.is_set():
                self._alarm(verdict)

    def _judged(self, standings: list[Standing], now: float) -> Verdict | None:
        if self._ranks.meeting is None or now - max(self._contact, self._awake) < self._seconds:
            return judge(standings, self._seconds)
        if standings[0].is_over:  # the first rank took the store with it when it was done
            return None
        held_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or self._ranks.is_first
        return Verdict(kind="unreachable", culprits=() if held_by_launcher else (0,))

    def _standings(self, now: float) -> list[Standing]:
        """Where every rank stands, as far as it is known here. Nobody is blamed for time in which we could not hear."""
        found = [self._standing(self._ranks.rank, now, json.loads(self._line()))]
        found += [self._standing(rank, heard_at, line) for rank, (heard_at, line) in list(self._others.items())]
        return sorted(found, key=lambda standing: standing.rank)

    def _standing(self, rank: int, heard_at: float, line: dict[str, Any]) -> Standing:
        now = time.monotonic()
        fields = {name: line[name] for name in ("host", "process", "step", "phase", "beats", "waiting", "alone", "armed", "ended")}
        idle = min(line["idle_seconds"] + now - heard_at, now - max(self._awake, self._together))
        known_until = now if rank == self._ranks.rank else self._contact
        return Standing(rank=rank, idle_seconds=idle, quiet_seconds=max(known_until - max(heard_at, self._awake), 0.0), **fields)

    def _alarm(self, verdict: Verdict) -> None:
        """Tell people and the other ranks, dump the stacks, and end this process."""
        timer = threading.Timer(LAST_SECONDS, os._exit, (REQUEUE_EXIT_CODE,))
        timer.daemon = True
        timer.start()
        self._verdict = verdict
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        standings = self._standings(time.monotonic())
        unable = {standing.rank for standing in standings if standing.is_over or standing.is_silent(self._seconds)}
        unable |= set(verdict.culprits) if verdict.kind == "unreachable" else set()
        if min({standing.rank for standing in standings} - unable, default=self._ranks.rank) == self._ranks.rank:
            self._tell(verdict, standings)
        with suppress(OSError):
            self._dump_stacks()
        self._dumped = True
        self._woken.set()
        self._wait_for_dumps(unable)
        os._exit(REQUEUE_EXIT_CODE)

    def _wait_for_dumps(self, unable: set[int]) -> None:
        """Give the others the time to write their stacks: the store ends with the first rank, and a launcher may end all with one."""
        until = time.monotonic() + LINGER_SECONDS
        while self._ranks.meeting is not None and not self._unreachable and time.monotonic() < until:
            others = [line["dumped"] for rank, (_, line) in list(self._others.items()) if rank not in unable]
            if (self._dump_is_known and all(others)) or not others:
                return
            time.sleep(0.02)

    def _dump_stacks(self) -> None:
        path = self._folder / f"rank-{self._ranks.rank}.txt"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{_clock()}: rank {self._ranks.rank}, process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _tell(self, verdict: Verdict, standings: list[Standing]) -> None:
        text = told(verdict, standings, self._seconds, str(self._folder / "rank-N.txt"))
        write_last_words(text)
        with suppress(OSError), (self._folder / "report.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_clock()}\n{text}\n")
            file.flush()
            os.fsync(file.fileno())
        step = max(standing.step for standing in standings)
        Events(self._folder.parent / "events.jsonl").record("hung", step, kind=verdict.kind, culprits=list(verdict.culprits))

    def over(self, ended: str, threads: list[threading.Thread]) -> None:
        """This rank leaves: finished, stopped, or ended by an error."""
        self._ended = ended
        self._over.set()
        self._woken.set()
        for thread in threads:
            thread.join(LINGER_SECONDS + 1)


@contextmanager
def watch(ranks: Ranks, stop: StopRequest, config: WatchdogConfig, folder: Path) -> Iterator[Watchdog]:
    """Watch over this rank and the others while the body runs. All ranks call. Stacks and report go to `folder`/watchdog."""
    watchdog, meeting = Watchdog(ranks, stop, config.seconds, folder / "watchdog"), ranks.meeting
    threads = [threading.Thread(target=watchdog.watch, name="watchdog", daemon=True)] if config.seconds else []
    if meeting is not None:
        board = meeting.board()
        board.set(str(ranks.rank), watchdog._line())
        ranks.wait()  # now every rank has a line that can be read
        threads.append(threading.Thread(target=watchdog.talk, args=(meeting, board), name="watchdog talk", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield watchdog
    except KeyboardInterrupt:
        watchdog.over("stopped", threads)
        raise
    except BaseException:
        watchdog.over("ended by an error", threads)
        raise
    else:
        watchdog.over("finished", threads)


def _is_waiting() -> bool:
    """Whether the main thread waits for other ranks, as far as its Python frames tell."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    for _ in range(INNERMOST):
        if frame is None:
            return False
        if frame.f_code.co_filename.endswith(WAITING_FILES):
            return True
        frame = frame.f_back
    return False


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
