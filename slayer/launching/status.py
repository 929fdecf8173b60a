"""How runs stand: what SLURM says of their jobs, and what their folders tell. `python -m slayer.launching status RUNS…`"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from slayer.errors import ConfigError, Problem
from slayer.launching.job import settle
from slayer.launching.job_record import JobRecord
from slayer.launching.restarts import FAILURE_NAME, newest_step
from slayer.launching.scheduler import Queued, find_jobs
from slayer.reporting.events import read_events
from slayer.reporting.run_folder import read_json, read_metrics

State = Literal["planned", "pending", "running", "requeued", "stopped", "failed", "done", "unknown"]

RECENT_STEPS = 20
"""The time of a step is the median of so many."""
LIVELY_SECONDS = 60.0
"""A folder in which something was written so recently belongs to a run that is at work, wherever that is."""

WHY = {
    "PartitionNodeLimit": "asks for more nodes than the partition gives: it will never start",
    "PartitionTimeLimit": "asks for more time than the partition gives: it will never start",
    "BeginTime": "queued again, waits a moment", "Priority": "others are first", "Resources": "waits for free nodes",
    "TimeLimit": "out of time before it had saved: a larger launcher.signal_seconds", "OutOfMemory": "out of memory",
}  # fmt: skip
"""SLURM's reasons in words, where its own say little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a run stands. `where`: job of SLURM, this machine (`here`), or – ; `changed_seconds`: since something in its folder last changed."""

    run: str
    folder: str
    state: State
    where: str = "–"
    why: str = ""
    restarts: int = 0
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    changed_seconds: float | None = None
    eta_seconds: float | None = None


def find_runs(names: Sequence[str]) -> list[Path]:
    """The run folders that are meant: runs, sweeps (for their points) and folders of runs; each once. ConfigError where there are none."""
    found: dict[Path, None] = {}
    for name in names:
        folder = Path(name).expanduser()
        runs = _runs_in(folder)
        if not runs:
            why = "holds no run" if folder.is_dir() else "is no folder"
            fix = "python -m slayer.launching status runs   (a run, a sweep, or a folder of runs)"
            raise ConfigError([Problem(key="RUNS", value=name, why=why, fix=fix)])
        found |= dict.fromkeys(runs)
    return list(found)


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "config.yaml").is_file() or (folder / "slurm").is_dir():
        return [folder]
    points = [read_json(path) for path in sorted((folder / "points").glob("*.json"))]
    if points:
        named = [Path(str(point.get("run_dir") or folder.parents[1] / str(point.get("run")))) for point in points]
        return [next((place for place in (run, folder.parents[1] / run.name) if place.exists()), run) for run in named]
    return sorted(inner for inner in folder.glob("*") if (inner / "config.yaml").is_file())


def standings(folders: Sequence[Path]) -> list[Standing]:
    """How each run stands, with one question to SLURM for all jobs."""
    jobs = {folder: job for folder in folders if (job := JobRecord(folder).job) is not None}
    queue = find_jobs(sorted(set(jobs.values()))) if jobs else {}
    held = _held_here() if len(jobs) < len(folders) else set()
    now = time.time()
    return [_standing(folder, jobs.get(folder), queue, folder.resolve() in held, now) for folder in folders]


def _standing(folder: Path, job: str | None, queue: Mapping[str, Queued] | None, is_held: bool, now: float) -> Standing:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    last = lines[-1] if lines else {}
    changed = _changed(folder)
    ago = now - changed if changed is not None else None
    queued = queue.get(job) if queue is not None and job is not None else None
    state: State
    if "objective" in read_json(folder / "results.json"):
        state, why = "done", ""
    elif job is not None and queued is not None:
        state, why = _of_job(queued, JobRecord(folder))
    elif job is not None:
        state, why = _remembered(JobRecord(folder), job, "SLURM does not answer" if queue is None else f"SLURM has forgotten job {job}")
    else:
        state, why = _of_folder(folder, is_held, ago)
    step = newest_step(folder)
    steps = int(last["steps"]) if isinstance(last.get("steps"), int) else None
    seconds = [float(line["step_seconds"]) for line in lines[-RECENT_STEPS:] if isinstance(line.get("step_seconds"), (int, float))]
    eta = (steps - step) * statistics.median(seconds) if state == "running" and steps is not None and seconds else None
    where = f"job {job}" if job is not None else "here" if is_held else "–"
    return Standing(
        run=folder.resolve().name, folder=str(folder), state=state, where=where, why=why, step=step, steps=steps, loss=last.get("loss"),
        restarts=queued.restarts if queued is not None else _restarts(folder, job), changed_seconds=ago, eta_seconds=eta,
    )  # fmt: skip


def _of_job(queued: Queued, record: JobRecord) -> tuple[State, str]:
    """What SLURM says, in our words."""
    why = WHY.get(queued.reason, queued.reason)
    if queued.waits:
        return ("requeued" if queued.restarts or record.last("started", queued.job) else "pending"), why
    if queued.runs:
        return "running", ""
    ended = record.last("ended", queued.job)
    told = str(ended["why"]) if ended is not None and ended.get("state") in ("failed", "stopped") else ""
    if queued.state == "CANCELLED":
        return "stopped", "cancelled; the same command goes on"
    if ended is not None and ended["state"] == "stopped":
        return "stopped", told
    return "failed", f"{queued.state.lower()}: {WHY.get(queued.reason) or told or queued.reason}"


def _remembered(record: JobRecord, job: str, excuse: str) -> tuple[State, str]:
    """What the folder knows of a job that SLURM says nothing about."""
    ended, started = record.last("ended", job), record.last("started", job)
    if ended is None or (started is not None and started["time"] > ended["time"]):
        return "unknown", f"{excuse}; {'it had started' if started else 'it had not started'}"
    state = {"finished": "done", "requeued": "requeued", "stopped": "stopped"}.get(str(ended["state"]), "failed")
    return state, str(ended.get("why") or "") if state == "failed" else excuse  # type: ignore[return-value]


def _of_folder(folder: Path, is_held: bool, ago: float | None) -> tuple[State, str]:
    """A run without a job: by the processes of this machine, else by what was written when."""
    if is_held:
        return "running", ""
    if not folder.exists():
        return "failed", "was refused before it began; the page of its sweep has the reason"
    failure = folder / FAILURE_NAME
    if failure.exists():
        return "failed", failure.read_text(encoding="utf-8")
    events = read_events(folder / "events.jsonl")
    if events and events[-1]["event"] == "stopped":
        return "stopped", "the same command goes on"
    if ago is not None and ago < LIVELY_SECONDS:
        return "running", ""
    if not any((folder / name).exists() for name in ("expanded", "checkpoints", "model")):
        return "planned", ""
    return "unknown", "no process here has it open: stopped, lost, or at work on another machine"


def _held_here() -> set[Path]:
    """Run folders of which a process of ours on this machine has a file open, or that it was told to work in."""
    held: set[Path] = set()
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid():
                continue
            words = process.cmdline()
            works_in = Path(process.cwd(), words[words.index("slayer.launching.worker") + 1]) if "slayer.launching.worker" in words[:-1] else None
            paths = [Path(file.path) for file in process.open_files()]
        except (psutil.Error, OSError):  # it has ended, or is not to be looked into
            continue
        held |= {path.parent for path in paths if path.name in ("metrics.jsonl", "events.jsonl")}
        if works_in is not None:
            held.add(works_in.resolve())
    return held


def _changed(folder: Path) -> float | None:
    """When something in a run folder was last written, seconds since 1970."""
    times = []
    for path in (folder, *folder.glob("*"), *folder.glob("checkpoints/*"), *folder.glob("slurm/*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=None)


def _restarts(folder: Path, job: str | None) -> int:
    lines = JobRecord(folder).lines if job is not None else []
    return max((int(line.get("start") or 0) for line in lines if line.get("event") == "started" and str(line.get("job")) == job), default=0)


def status(names: Sequence[str], *, as_json: bool) -> None:
    """Print how these runs stand, and bring the pages of their sweeps up to date with jobs that have ended without a word."""
    found = standings(find_runs(names))
    for one in found:
        if one.state in ("failed", "stopped") and one.where.startswith("job "):
            settle(Path(one.folder), one.where.removeprefix("job "), one.why)
    if as_json:
        print(json.dumps([as_values(one) for one in found], indent=1))
        return
    print_standings(found)


def as_values(standing: Standing) -> dict[str, Any]:
    """A standing as JSON."""
    return {name: getattr(standing, name) for name in Standing.__slots__}


def print_standings(found: Sequence[Standing]) -> None:
    """The table, and what to type about runs that do not go on by themselves."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from slayer.reporting.console import open_console
    from slayer.reporting.numbers import MISSING, duration, fixed

    console = open_console()
    styles = {"running": "green", "done": "bold green", "failed": "red", "pending": "yellow", "requeued": "yellow", "stopped": "yellow"}
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in ("run", "where", "state", "starts", "step", "loss", "changed", "left"):
        right = name in ("starts", "step", "loss", "changed", "left")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "run", overflow="fold")
    for one in found:
        step = f"{one.step} of {one.steps}" if one.steps is not None else str(one.step) if one.step else MISSING
        changed = f"{duration(one.changed_seconds)} ago" if one.changed_seconds is not None else MISSING
        starts = str(one.restarts + 1) if one.where.startswith("job") else MISSING
        state = Text(one.state, style=styles.get(one.state, ""))
        table.add_row(Text(one.run), one.where, state, starts, step, fixed(one.loss, 4), changed, duration(one.eta_seconds))
    console.print(table)
    for one in found:
        if one.why:
            console.print(f"  [dim]{escape(one.run)}:[/] {escape(one.why)}", soft_wrap=True)
    logs = [(one, JobRecord(Path(one.folder)).log(one.where.removeprefix("job "))) for one in found if one.where.startswith("job")]
    for one, log in logs:
        if one.state == "failed" and log.exists():
            console.print(f"  [dim]{escape(one.run)}:[/] tail {escape(shlex.quote(str(log)))}", soft_wrap=True)
