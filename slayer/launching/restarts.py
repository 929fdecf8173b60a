"""Starts a run that was killed, hung or lost a rank again, as long as it gets further in between."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from slayer.config import RunConfig
from slayer.launching.processes import Ended, run_ranks, threads_per_rank
from slayer.reporting.events import Events
from slayer.reporting.run_folder import read_metrics
from slayer.training.signals import REQUEUE_EXIT_CODE

FAILURE_NAME = "failure.txt"
"""In the run folder: why the last start in processes of its own did not finish, unless that is not known."""


def run_restarted(command: list[str], config: RunConfig) -> Ended:
    """Run `command` in the ranks of the configuration, and again after each loss, up to launcher.restarts times without a step in between.

    A run that was refused, or that a signal to this process has stopped, is not started again.
    """
    from slayer.reporting.console import open_console

    launcher, console, events = config.launcher, open_console(), Events(config.folder / "events.jsonl")
    environment = {**os.environ, "OMP_NUM_THREADS": threads_per_rank(launcher.processes)}
    furthest, left = newest_step(config.folder), launcher.restarts
    while True:
        (config.folder / FAILURE_NAME).unlink(missing_ok=True)
        ended = run_ranks(command, processes=launcher.processes, port=launcher.port, environment=environment)
        is_lost = ended.code < 0 or ended.code == REQUEUE_EXIT_CODE
        if not is_lost or ended.signals:
            return ended
        step = newest_step(config.folder)
        if ended.code < 0:
            events.record("killed", step, rank=ended.rank, signal=signal.Signals(-ended.code).name)
        if step > furthest:
            furthest, left = step, launcher.restarts
        if left == 0:
            return ended
        left -= 1
        events.record("restarted", step, code=ended.code)
        console.print(
            f"{death(ended, launcher.processes)}\nstarted again ({launcher.restarts - left} of {launcher.restarts} since step {furthest})",
            soft_wrap=True,
        )


def newest_step(folder: Path) -> int:
    """The last step that a run folder tells of, in metrics.jsonl or by its checkpoints; 0 before the first."""
    names = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    saved = [int(name) for name in names if name.isdigit()]
    logged = [int(record["step"]) for record in read_metrics(folder / "metrics.jsonl")]
    return max([0, *saved, *logged])


def death(ended: Ended, processes: int) -> str:
    """What is known of a run of so many ranks that left no reason."""
    if ended.code == REQUEUE_EXIT_CODE:
        return "the run has ended before its time (hung, or without one of its ranks); start it again to go on from its newest checkpoint"
    if ended.code >= 0:
        return f"the run ended with exit code {ended.code}; what it said stands in the terminal"
    hint = ", which is what a system does that runs out of memory" if -ended.code == signal.SIGKILL else ""
    who = "the run" if processes == 1 else f"rank {ended.rank}"
    return f"{who} was killed by {signal.Signals(-ended.code).name}{hint}; start it again to go on from its newest checkpoint"
