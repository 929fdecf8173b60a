"""One rank of a drill of test_watch.py: a run in small, with trouble in it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from slayer.config import WatchdogConfig
from slayer.training.ranks import Ranks, is_lost_rank, open_ranks
from slayer.training.signals import REQUEUE_EXIT_CODE, StopRequest, listen_for_stop
from slayer.training.watchdog import Watchdog, watch

FOREVER = 60.0
TROUBLE_STEP = 3


class Rank:
    """What a drill has at hand."""

    def __init__(self, ranks: Ranks, stop: StopRequest, watchdog: Watchdog, seconds: float, folder: Path) -> None:
        self.ranks, self.stop, self.watchdog, self.seconds, self.folder = ranks, stop, watchdog, seconds, folder

    def says(self, name: str, text: object = "") -> None:
        """Leave a file for the test."""
        (self.folder / f"{name}-{self.ranks.rank}").write_text(str(text), encoding="utf-8")

    def train(self, steps: int = 1000, trouble: Callable[[str, int], None] = lambda phase, step: None) -> int:
        """Steps as the loop takes them, until all ranks know of a stop."""
        step = 0
        with self.stop.deferred():
            while step < steps:
                for phase in ("data", "forward"):
                    self.watchdog.beat(phase, step)
                    trouble(phase, step)
                self.ranks.sum(torch.ones(1))
                self.watchdog.beat("update", step)
                step += 1
                if step == TROUBLE_STEP:
                    self.says("ready")
                if self.stop.agreed(self.ranks):
                    break
                self.watchdog.beat("log", step)
                time.sleep(0.02)
        return step

    def trouble(self, rank: int, phase: str, what: Callable[[], None]) -> Callable[[str, int], None]:
        """`what` happens to a rank in a phase of a step."""

        def happen(now: str, step: int) -> None:
            if (self.ranks.rank, now, step) == (rank, phase, TROUBLE_STEP):
                what()

        return happen


def asleep() -> None:
    time.sleep(FOREVER)


def endless() -> None:
    while True:
        pass


def halted(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def alone_then_killed(rank: Rank) -> None:
    """The first rank works alone when the other, which waits for it, is killed."""
    rank.train(TROUBLE_STEP)
    if rank.ranks.is_first:
        with rank.watchdog.paused("compare"):
            asleep()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
    rank.ranks.wait()


def first_killed_while_others_wait(rank: Rank) -> None:
    rank.says("ready")
    if rank.ranks.is_first:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        asleep()
    rank.ranks.wait()


def long_alone(rank: Rank) -> None:
    """Longer than the watch allows: alone on the first rank, then slowly but surely; the other waits in a collective."""
    rank.train(TROUBLE_STEP)
    if rank.ranks.is_first:
        with rank.watchdog.paused("export"):
            time.sleep(1.3 * rank.seconds)
        for _ in range(13):
            rank.watchdog.beat("forward", TROUBLE_STEP)
            time.sleep(rank.seconds / 10)
    rank.ranks.sum(torch.ones(1))


def first_prepares(rank: Rank) -> None:
    """The signals come from the test, to either rank, while the other sleeps or waits."""
    rank.says("ready")
    if rank.ranks.is_first:
        asleep()
    rank.ranks.wait()


def talks(rank: Rank) -> None:
    """All the ways in which ranks talk, in two threads at once."""
    ranks, heard = rank.ranks, []
    rank.says("ready")

    def aside() -> None:
        heard.extend(ranks.gather_aside(("aside", ranks.rank, number)) for number in range(20))

    thread = threading.Thread(target=aside)
    thread.start()
    sums = [float(ranks.sum(torch.ones(1) * number)) for number in range(50)]
    flags = [ranks.any(flag) for flag in (False, ranks.rank == 0, ranks.rank == 1, True)]
    waits = []
    for number in range(10):
        if ranks.rank == number % 2:
            time.sleep(0.03)
        before = time.monotonic()
        ranks.wait()
        waits.append((before, time.monotonic()))
    thread.join()
    rank.says("heard", repr({"aside": heard, "sums": sums, "flags": flags, "gathered": ranks.gather(ranks.rank), "waits": waits}))


DRILLS: dict[str, Callable[[Rank], Any]] = {
    "asleep in its data": lambda rank: rank.train(trouble=rank.trouble(1, "data", asleep)),
    "endless loop": lambda rank: rank.train(trouble=rank.trouble(0, "forward", endless)),
    "stopped": lambda rank: rank.train(trouble=rank.trouble(1, "data", halted(signal.SIGSTOP))),
    "first stopped": lambda rank: rank.train(trouble=rank.trouble(0, "data", halted(signal.SIGSTOP))),
    "killed in a step": lambda rank: rank.train(trouble=rank.trouble(1, "data", halted(signal.SIGKILL))),
    "first killed in a step": lambda rank: rank.train(trouble=rank.trouble(0, "data", halted(signal.SIGKILL))),
    "both asleep": lambda rank: rank.train(trouble=lambda phase, step: asleep() if (phase, step) == ("data", TROUBLE_STEP) else None),
    "killed while the first works alone": alone_then_killed,
    "first killed while others wait": first_killed_while_others_wait,
    "long but alive": long_alone,
    "stop of one that waits": first_prepares,
    "stop of one that prepares": first_prepares,
    "stop of one that trains": lambda rank: rank.says("stopped", rank.train()),
    "second signal in a collective": lambda rank: rank.train(trouble=rank.trouble(1, "data", asleep)),
    "talks": talks,
}
UNWATCHED = {"stop of one that waits", "second signal in a collective"}


def run_drill(name: str, rank: int, port: int, seconds: float, folder: Path) -> None:
    """The whole life of a rank. Ends the process with the code that the launcher would give."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    terminal = os.open(folder / f"terminal-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(terminal, 2)
    torch.set_num_threads(1)
    (folder / f"process-{rank}").write_text(str(os.getpid()), encoding="utf-8")
    config = WatchdogConfig(seconds=0 if name in UNWATCHED else seconds)
    code = 0
    try:
        with open_ranks() as ranks, listen_for_stop(ranks) as stop, watch(ranks, stop, config, folder) as watchdog:
            DRILLS[name](Rank(ranks, stop, watchdog, seconds, folder))
    except KeyboardInterrupt as stopped:
        code = REQUEUE_EXIT_CODE
        print(f"stopped by {stopped}", file=sys.stderr)
    except Exception as error:
        code = REQUEUE_EXIT_CODE if is_lost_rank(error) else 1
        print(f"lost: {error}" if code == REQUEUE_EXIT_CODE else traceback.format_exc(), file=sys.stderr)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)
