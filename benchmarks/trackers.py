"""What a tracker costs a training step, whatever becomes of it: python benchmarks/trackers.py [--records 300]

Each tracker is used as train.py uses it, on a folder of its own: healthy, hanging (a server that accepts and never answers, a database
that is locked, a process that is stopped) and dead (killed in the middle). Printed are the seconds of the log calls as a share of a
step of 100 ms, the seconds that the end took, what the tracker's own process took from other cores, and what arrived.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit" / "reporting"))
from sample_run import sample_records
from tracker_runs import feeders, opened, wandb_services
from wandb_server import WandbServer

from slayer.reporting import trackers as module

STEP_SECONDS = 0.1
FINISH_SECONDS = 3.0
"""Shorter than in a run, so that this ends within a minute."""


@contextmanager
def healthy(_: Path) -> Iterator[Callable[[], None]]:
    """Nothing happens."""
    yield lambda: None


@contextmanager
def silent_server(_: Path) -> Iterator[Callable[[], None]]:
    """wandb's server accepts and never answers."""
    server = WandbServer("silent")
    os.environ.update(server.environment)
    yield lambda: None
    server.close()


@contextmanager
def locked_database(folder: Path) -> Iterator[Callable[[], None]]:
    """Somebody else holds trackio's database."""
    connections = []

    def lock() -> None:
        for database in (folder / "trackio").glob("*.db"):
            connections.append(sqlite3.connect(database))
            connections[-1].execute("BEGIN EXCLUSIVE")

    yield lock
    for connection in connections:
        connection.close()


@contextmanager
def stopped(_: Path) -> Iterator[Callable[[], None]]:
    """The tracker's process hangs."""
    yield lambda: [process.send_signal(signal.SIGSTOP) for process in feeders()]  # type: ignore[func-returns-value]


@contextmanager
def killed(_: Path) -> Iterator[Callable[[], None]]:
    """The tracker's process is killed, or what it keeps beside it."""
    yield lambda: [process.kill() for process in wandb_services() or feeders()]  # type: ignore[func-returns-value]


ARMS = (
    ("jsonl", "healthy", healthy), ("wandb", "healthy", healthy), ("wandb", "server hangs", silent_server), ("wandb", "service killed", killed),
    ("tensorboard", "healthy", healthy), ("tensorboard", "process hangs", stopped), ("tensorboard", "process killed", killed),
    ("trackio", "healthy", healthy), ("trackio", "database locked", locked_database), ("trackio", "process killed", killed),
)  # fmt: skip


def measure(
    name: str, condition: Callable[[Path], Iterator[Callable[[], None]]], folder: Path, n_records: int
) -> tuple[list[float], float, float, bool]:
    """Seconds of each log call and of the end, CPU seconds of the tracker's processes, and whether everything arrived."""
    records = sample_records(n_records)[1:]
    with condition(folder) as happen:
        trackers = opened(folder, name)
        calls, cpu_seconds = [], 0.0
        for number, record in enumerate(records):
            started = time.perf_counter()
            trackers.log(record)
            calls.append(time.perf_counter() - started)
            time.sleep(0.01)
            if number == len(records) // 2:
                happen()
        for process in (*feeders(), *wandb_services()):
            cpu_seconds += sum(process.cpu_times()[:2])
        started = time.perf_counter()
        trackers.finish()
        return calls, time.perf_counter() - started, cpu_seconds, not trackers.unsent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=300)
    n_records = parser.parse_args().records
    module.FINISH_SECONDS = FINISH_SECONDS
    os.environ.pop("WANDB_MODE", None)
    server = WandbServer()
    print(f"{n_records} records of {len(sample_records(1)[1])} values each, 10 ms apart; {os.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}")
    print("| tracker | | log call, median | 99th percentile | longest | share of a 100 ms step (median, 99th) | end | its own CPU | arrived |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, what, condition in ARMS:
        os.environ.update(server.environment)
        with tempfile.TemporaryDirectory() as folder:
            calls, end_seconds, cpu_seconds, arrived = measure(name, condition, Path(folder), n_records)
        median, high = statistics.median(calls), statistics.quantiles(calls, n=100)[98]
        shares = f"{median / STEP_SECONDS:.2%}, {high / STEP_SECONDS:.2%}"
        times = f"{1e3 * median:.2f} ms | {1e3 * high:.2f} ms | {1e3 * max(calls):.2f} ms"
        print(
            f"| {name} | {what} | {times} | {shares} | {end_seconds:.1f} s | {cpu_seconds:.1f} s | {'all' if arrived else 'later, by sync'} |",
            flush=True,
        )
    server.close()


if __name__ == "__main__":
    main()
