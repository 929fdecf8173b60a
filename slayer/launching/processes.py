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
from types import FrameType

GRACE_SECONDS = 10.0
"""How long the other ranks may take to end by themselves after one has failed, and again after being asked to."""


def run_ranks(command: list[str], *, processes: int, port: int, environment: dict[str, str]) -> int:
    """Run `command` in so many ranks to the end. Returns 0, or the exit code of the first that failed (negative: its signal)."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or _free_port()), "WORLD_SIZE": str(processes)} if processes > 1 else {}
    ranks: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        for rank in ranks:
            rank.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting} if meeting else {}
            ranks.append(subprocess.Popen(command, env={**environment, **own}, start_new_session=True))
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in ranks:
            if process.poll() is None:
                process.kill()


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    first_failure = 0
    while None in (codes := [rank.poll() for rank in ranks]):  # every one is asked: a rank that died is not hidden by one that runs
        time.sleep(0.05)
        failures = [code for code in codes if code]
        if failures and failed_at is None:
            failed_at, first_failure = time.monotonic(), failures[0]
        if failed_at is None:
            continue
        late = time.monotonic() - failed_at
        for rank in ranks:
            if rank.poll() is None and late > 2 * GRACE_SECONDS:
                rank.kill()
            elif rank.poll() is None and late > GRACE_SECONDS:
                rank.terminate()
    return first_failure or next((rank.returncode for rank in ranks if rank.returncode), 0)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def threads_per_rank(processes: int) -> str:
    """OMP_NUM_THREADS that shares the cores out evenly, unless the user has set it."""
    return os.environ.get("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
