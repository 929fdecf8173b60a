"""Starts the ranks of a run on this machine, hands signals on to them, and ends them together.

torchrun would do; but it answers a refusal and a Ctrl-C with tracebacks of its own, and passes on a signal that the terminal has
already delivered. Ranks here get their own sessions, so each hears a signal exactly once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import psutil

from slayer.training.signals import REQUEUE_EXIT_CODE, STOPS, Heard

GRACE_SECONDS = 10.0
"""How long the other ranks may take to end by themselves after one has failed, and again after being asked to."""

AT_ONCE_SECONDS = 2.0
"""How long they may take after a second signal, which ends them at once unless they are stopped."""

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the ranks ended. `code`: 0, or the exit code that says most (negative: the signal that killed a rank); `rank`: the one it is of;
    `signals`: those that this process heard meanwhile and handed on."""

    code: int
    rank: int = 0
    signals: tuple[int, ...] = ()


def run_ranks(command: list[str], *, processes: int, port: int, environment: dict[str, str]) -> Ended:
    """Run `command` in so many ranks to the end.

    They start with the four signals of a stop blocked, so that none is lost while they import: each unblocks them when it listens.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or _free_port()), "WORLD_SIZE": str(processes)} if processes > 1 else {}
    ranks = _Ranks()
    with ranks.told_of_signals():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            for rank in range(processes):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} if meeting else {}
                ranks.processes.append(subprocess.Popen(command, env={**environment, **own}, start_new_session=True))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return ranks.wait()


class _Ranks:
    """The processes, and what is done to them."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._signals: list[int] = []
        self._heard = Heard()
        self._second_at: float | None = None
        self._asked: set[int] = set()
        self._killed: set[int] = set()

    @contextmanager
    def told_of_signals(self) -> Iterator[None]:
        """Hand signals on while the body runs; nobody outlives it."""
        before = {number: signal.signal(number, self._hand_on) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for process in self.processes:
                if process.poll() is None:
                    process.kill()

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)
        if self._heard.is_second(number) and self._second_at is None:
            self._second_at = time.monotonic()
        for process in self.processes:
            process.send_signal(number)

    def wait(self) -> Ended:
        """Return when all have ended. After the first failure the others are given some time, then asked, then killed."""
        failed_at: float | None = None
        while None in (codes := [process.poll() for process in self.processes]):  # all are asked: a death is not hidden by one that runs
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if failed_at is None and any(codes):
                failed_at = now
            if self._second_at is not None and now - self._second_at > AT_ONCE_SECONDS:
                self._end(kill=True)
            elif failed_at is not None and now - failed_at > GRACE_SECONDS:
                self._end(kill=now - failed_at > 2 * GRACE_SECONDS)
            elif failed_at is not None:
                self._end_stopped()
        if self._second_at is not None:
            return Ended(code=128 + self._signals[-1], signals=tuple(self._signals))
        ours = self._asked | self._killed
        code, rank = most_telling({rank: process.returncode for rank, process in enumerate(self.processes) if rank not in ours})
        return Ended(code=code, rank=rank, signals=tuple(self._signals))

    def _end(self, *, kill: bool) -> None:
        for rank, process in enumerate(self.processes):
            if process.poll() is not None:
                continue
            if kill:
                self._killed.add(rank)
                process.kill()
            elif rank not in self._asked:  # once: a second request would end it without saving
                self._asked.add(rank)
                process.terminate()

    def _end_stopped(self) -> None:
        """Kill the ranks that somebody has stopped (SIGSTOP): they would hear nothing else."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None and _is_stopped(process.pid):
                self._killed.add(rank)
                process.kill()


def most_telling(codes: Mapping[int, int]) -> tuple[int, int]:
    """Of the exit codes by rank, one and its rank: a refusal or a fault, else a death, else a rank that lost the others; 0 when none failed."""
    failures = [(code == REQUEUE_EXIT_CODE, code < 0, rank, code) for rank, code in codes.items() if code]
    *_, rank, code = min(failures, default=(False, False, 0, 0))
    return code, rank


def _is_stopped(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def threads_per_rank(processes: int) -> str:
    """OMP_NUM_THREADS that shares the cores out evenly, unless the user has set it."""
    return os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
