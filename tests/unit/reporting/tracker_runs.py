"""Runs that log to a tracker, what the trackers then hold, and how long a log call took."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from sample_run import sample_config

from slayer.reporting.run_folder import read_metrics
from slayer.reporting.trackers import Trackers, open_trackers

PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from sample_run import sample_config, sample_records
from slayer.reporting import trackers as module
from slayer.reporting.trackers import open_trackers
module.FINISH_SECONDS = 2.0
config = sample_config(sys.argv[1])
trackers = open_trackers(config.tracker, Path(sys.argv[2]), name=config.run, values=config.model_dump())
"""


def opened(folder: Path, name: str = "jsonl") -> Trackers:
    config = sample_config(name)
    return open_trackers(config.tracker, folder, name=config.run, values=config.model_dump())


def log_steps(trackers: Trackers, steps: Iterable[int], *, seconds: float = 0.0, **more: Any) -> list[float]:
    """Log a record for each step, `seconds` apart; returns the seconds that each call took."""
    took = []
    for step in steps:
        started = time.perf_counter()
        trackers.log({"step": step, "steps": 1000, "loss": 2.0 + step / 1000, "lr": 1e-3, "time": time.time(), **more})
        took.append(time.perf_counter() - started)
        time.sleep(seconds)
    return took


def start_program(program: str, *arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A program behind the preamble, which opens the tracker of its first argument in the folder of its second."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(program), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read_metrics(folder / "metrics.jsonl")]


def tensorboard_steps(folder: Path, tag: str = "loss") -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def trackio_steps(folder: Path) -> list[int]:
    (database,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        return [row[0] for row in opened.execute("SELECT step FROM metrics ORDER BY id")]


def feeders() -> list[psutil.Process]:
    """Living processes of this one that feed a tracker; other tests may have left a child that nobody has waited for."""
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "slayer.reporting.feed" in child.cmdline()]


def wandb_services() -> list[psutil.Process]:
    """The service processes that wandb keeps beside them."""
    return [child for feeder in feeders() for child in feeder.children() if child.name() == "wandb-core"]
