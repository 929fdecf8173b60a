"""A login node of a cluster, with what a person types there, and what a job leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from local_cluster import Cluster, wait_until
from small_text import run_overrides, write_text

from slayer.launching.restarts import newest_step
from slayer.launching.status import Standing, standings

STARTS_SECONDS, ENDS_SECONDS = 120.0, 150.0
"""A job imports torch and DeepSpeed in every rank before its first step, beside whatever else this machine does."""


class Workspace:
    """A login node: a small text, a folder of runs, and the commands that a person types."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.words = [*run_overrides(write_text(folder / "text"), folder / "runs"), "launcher=slurm", "launcher.signal_seconds=5"]
        self.seen: list[str] = []
        """States that status has shown of the run in hand, each when it began."""
        cluster.environment["SLAYER_CACHE"] = str(folder / "cache")

    def submit(self, run: str, *words: str) -> str:
        """`python train.py … launcher=slurm run=RUN`: the id of the job."""
        self.seen = []
        done = self.cluster.python("train.py", *self.words, f"run={run}", *words)
        match = re.search(rf"^{run} is job (\d+)$", done.stdout, re.MULTILINE)
        assert done.returncode == 0 and match is not None, done.stdout
        return match[1]

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def standing(self, run: str) -> Standing:
        """What `status` says of a run."""
        (standing,) = standings([self.run(run)])
        if self.seen[-1:] != [standing.state]:
            self.seen.append(standing.state)
        return standing

    def until(self, run: str, state: str, seconds: float = ENDS_SECONDS) -> float:
        """Wait until status shows `state`; seconds."""
        return wait_until(lambda: self.standing(run).state == state, seconds, lambda: f"{run} {state} (it was {self.seen}); {self.said(run)}")

    def until_step(self, run: str, step: int, seconds: float = STARTS_SECONDS) -> float:
        """Wait until a run is at work and has made this step; seconds."""
        here = lambda: self.standing(run).state == "running" and newest_step(self.run(run)) >= step  # noqa: E731
        return wait_until(here, seconds, lambda: f"step {step} of {run} ({self.seen}); {self.said(run)}")

    def until_gone_on(self, run: str, step: int) -> float:
        """Wait until a run has gone on from its checkpoint and past `step` in a further start; seconds."""
        gone_on = lambda: bool(resumed(self.run(run))) and self.standing(run).step > step  # noqa: E731
        return wait_until(gone_on, ENDS_SECONDS, lambda: f"{run} past step {step} ({self.seen}); {self.said(run)}")

    def said(self, run: str) -> str:
        """The output of a run's jobs."""
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted((self.run(run) / "slurm").glob("job-*.log")))

    def cancel(self, run: str, job: str) -> None:
        """End a job as a person does, and see that it stays ended."""
        self.cluster.run("scancel", job)
        self.until(run, "stopped")
        wait_until(lambda: self.cluster.facts(job)["JobState"] == "CANCELLED", 60, f"job {job} cancelled")

    @contextmanager
    def configured(self, **changes: Any) -> Iterator[None]:
        """Another slurm.conf while the body runs."""
        self.cluster.configure(**changes)
        try:
            yield
        finally:
            self.cluster.configure()


def resumed(folder: Path) -> list[dict[str, Any]]:
    """Where starts of a run went on from a checkpoint."""
    return [event for event in events(folder) if event["event"] == "resumed"]


def events(folder: Path) -> list[dict[str, Any]]:
    """events.jsonl of a run."""
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def results(folder: Path) -> dict[str, Any]:
    """results.json of a run."""
    values: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return values


def ranks_of(folder: Path) -> list[psutil.Process]:
    """The ranks of a run on this machine, by their command lines; the nodes are all here."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "slayer.launching.worker" in words and str(folder) in words and "python" in Path(words[0]).name:
                found.append((int(process.environ()["RANK"]), process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda one: one[0])]
