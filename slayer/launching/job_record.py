"""RUN/slurm/: the script of a run's jobs, their output, and jobs.jsonl, in which each start and end of one is a line."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slayer.reporting.json_lines import JsonLines, read_json_lines
from slayer.training.signals import REQUEUE_EXIT_CODE

LOG_PATTERN = "job-%j.log"
"""Output of a job, all its starts one after the other."""
CODE_NAME = "code"
"""The exit code of a rank that must not be started again: srun tells the largest code of all ranks, which says less."""


class JobRecord:
    """What is known of a run's jobs. Lines of jobs.jsonl: {"time", "event": point | submitted | started | ended, "job", …}."""

    def __init__(self, run_folder: Path) -> None:
        self.folder = run_folder / "slurm"
        self.script = self.folder / "job.sbatch"
        self.code_file = self.folder / CODE_NAME

    def write(self, event: str, **facts: Any) -> None:
        """Add a line."""
        lines = JsonLines(self.folder / "jobs.jsonl", durable=True)
        lines.append({"time": time.time(), "event": event, **facts})
        lines.close()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        return read_json_lines(self.folder / "jobs.jsonl")

    @property
    def job(self) -> str | None:
        """The id of the newest job."""
        return next((str(line["job"]) for line in reversed(self.lines) if line.get("job")), None)

    def last(self, event: str, job: str) -> Mapping[str, Any] | None:
        """The newest line of an event of a job."""
        return next((line for line in reversed(self.lines) if line.get("event") == event and str(line.get("job")) == job), None)

    @property
    def points(self) -> list[Path]:
        """The files of the points of sweeps that this run is, as far as they are still there."""
        paths = dict.fromkeys(Path(str(line["point"])) for line in self.lines if line.get("point"))
        return [path for path in paths if path.exists()]

    def log(self, job: str) -> Path:
        """Where the output of a job goes."""
        return self.folder / LOG_PATTERN.replace("%j", job)

    def tries_since(self, step: int, job: str) -> int:
        """How often a job asked to be queued again since it first came as far as `step`; 0 where it has never been that far."""
        ended = [
            line for line in self.lines if line.get("event") == "ended" and line.get("code") == REQUEUE_EXIT_CODE and str(line.get("job")) == job
        ]
        requeued = [int(line.get("step") or 0) for line in ended]
        furthest = max(requeued, default=0)
        return len(requeued) - requeued.index(furthest) if requeued and step <= furthest else 0


def leave_code(run_folder: Path, code: int) -> None:
    """Called by a rank that ends: what is neither an end nor a loss is left for the script of its job. Only inside one."""
    record = JobRecord(run_folder)
    if code not in (0, REQUEUE_EXIT_CODE) and "SLURM_JOB_ID" in os.environ and record.folder.is_dir():
        record.code_file.write_text(f"{code}\n", encoding="utf-8")
