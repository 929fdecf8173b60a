"""Where metrics go: metrics.jsonl always, and by choice wandb, tensorboard or trackio.

A tracker may fail, hang, or be missing; the run goes on. metrics.jsonl is the whole truth, and a process of its own (feed.py) hands its
lines to the tracker: a log call writes one line and looks in passing at how that process fares.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slayer.config import TrackerConfig
from slayer.reporting.destinations import DESTINATIONS, Job
from slayer.reporting.json_lines import JsonLines
from slayer.reporting.tracker_process import TrackerProcess

logger = logging.getLogger(__name__)

FINISH_SECONDS = 10.0


class JsonlTracker:
    """metrics.jsonl: one JSON object a line, in the file when `log` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = JsonLines(path)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record. OSError when the disk refuses: it is kept then, and written with the next one that the disk takes."""
        self._lines.append(record)

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps: a run that goes on from `step` will write them again. OSError when the disk refuses; nothing changes then."""
        self._lines.keep(lambda line: _step_of(line) <= step)

    def finish(self) -> None:
        """Write what is pending and close the file."""
        self._lines.close()


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def sync_command(folder: Path) -> str:
    """What a person types to send the records of a run to its tracker later."""
    return f"python -m slayer.reporting.sync {shlex.quote(str(folder))}"


class Trackers:
    """metrics.jsonl and the tracker beside it, as one."""

    def __init__(self, jsonl: JsonlTracker, name: str = "jsonl", process: TrackerProcess | None = None) -> None:
        self._jsonl, self._name, self._process = jsonl, name, process
        self._warned = False
        self._told = False

    @property
    def unsent(self) -> bool:
        """True when the tracker lacks records; `sync_command` sends them. Meant for after `finish`: before, some are always on their way."""
        return self._process is not None and not self._process.arrived

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand one record to all of them; never raises, never waits."""
        try:
            self._jsonl.log(record)
        except Exception as error:
            self._warn(error)
        if self._process is not None:
            self._process.look()
            self._tell()

    def truncate_after(self, step: int) -> None:
        """Call whenever a run goes on from `step`, at its start or after a rewind: later lines of metrics.jsonl will be written again.

        tensorboard and trackio then hold what the file holds. wandb cannot take rows back: the new ones come behind them on the same axis.
        """
        try:
            self._jsonl.truncate_after(step)
        except OSError as error:
            self._warn(error)

    def finish(self) -> None:
        """Close all of them; never raises, takes FINISH_SECONDS at most."""
        try:
            self._jsonl.finish()
        except OSError as error:
            self._warn(error)
        if self._process is not None:
            self._process.finish(FINISH_SECONDS)
            self._tell()

    def _tell(self) -> None:
        # Once: a server that is away for hours is one piece of news.
        if self._process is not None and self._process.problem is not None and not self._told:
            self._told = True
            logger.warning(
                "tracker %s %s. The run goes on; metrics.jsonl has every number, and what does not arrive is sent by: %s",
                self._name, self._process.problem, sync_command(self._jsonl.path.parent),
            )  # fmt: skip

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s could not be written (%s: %s). The run goes on.", self._jsonl.path, type(error).__name__, error)


def open_trackers(tracker: TrackerConfig, folder: Path, *, name: str, values: Mapping[str, Any]) -> Trackers:
    """Open metrics.jsonl in a folder, and the tracker that `tracker=` asks for. Only rank 0 calls this."""
    jsonl = JsonlTracker(folder / "metrics.jsonl")
    if tracker.name not in DESTINATIONS:
        return Trackers(jsonl)
    job = Job(tracker=tracker.name, project=tracker.project, name=name, folder=str(folder), values=values)
    return Trackers(jsonl, tracker.name, TrackerProcess(job))


def track_once(tracker: TrackerConfig, folder: Path, *, name: str, values: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Hand the scores of an evaluation to the tracker that `tracker=` asks for, beside what it has of this folder's run.

    jsonl: nothing, results.json has them.
    """
    if tracker.name in DESTINATIONS:
        job = Job(tracker=tracker.name, project=tracker.project, name=name, folder=str(folder), values=values, evaluation=record)
        process = TrackerProcess(job)
        process.finish(FINISH_SECONDS)
        if not process.arrived:
            logger.warning("tracker %s %s. results.json has every score; the same command sends them again.", tracker.name, process.problem)
