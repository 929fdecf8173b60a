"""launcher=slurm: a run becomes a job, submitted at once; and waiting for it, where somebody asks for that."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from slayer.config import RunConfig, save_config
from slayer.errors import ConfigError, EngineError, Problem, SlayerError
from slayer.launching.job import settle
from slayer.launching.job_record import JobRecord
from slayer.launching.local import INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, Launched, next_commands, run_here
from slayer.launching.sbatch import write_script
from slayer.launching.scheduler import Queued, find_jobs, send
from slayer.launching.sweep import Point, record_point, refuse
from slayer.results import Results
from slayer.training.signals import REQUEUE_EXIT_CODE

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS, POLL_SHARE = 1.0, 15.0, 0.05
"""Whoever waits asks again after this share of the time waited, within these bounds: controllers serve thousands."""
SETTLE_SECONDS = 10.0
"""A job that is to be queued again may be gone from the queue so long."""


def run_on_slurm(config: RunConfig, command: str, point: Point | None, *, sweeper_learns: bool) -> Launched:
    """Submit a run; wait for its end where launcher.wait says so. Points of a sweep are all submitted first (train.py waits for them), unless
    the sweeper learns from each score: that it cannot do without waiting, so the whole search ends with the message (SystemExit) and nothing is
    submitted. A dry run shows its plan here."""
    if config.dry_run:
        return run_here(config, command)
    if point is not None and sweeper_learns and not config.launcher.wait:
        why = "the sweeper learns from the score of each run, and a run that is only submitted has none yet"
        refuse(ConfigError([Problem(key="launcher.wait", value=False, why=why, fix="--wait, or launcher.wait=true")]), point)
        raise SystemExit(REFUSED_EXIT_CODE)
    launched = submit(config, command, point)
    must_wait = config.launcher.wait and (point is None or sweeper_learns)
    return wait_for_end(config, launched.job) if must_wait and launched.job is not None else launched


def submit(config: RunConfig, command: str, point: Point | None = None) -> Launched:
    """Freeze the configuration, write the script and give it to SLURM. Returns at once, with exit code 0 and no objective.

    Of a run whose job is pending or running nothing is submitted; one that is finished says so.
    """
    try:
        return _submit(config, command, point)
    except (SlayerError, OSError) as error:
        return refuse(error, point)


def _submit(config: RunConfig, command: str, point: Point | None) -> Launched:
    from slayer.pipeline import check_run_folder
    from slayer.reporting.console import open_console, print_next

    directory, folder = Path.cwd(), config.folder.absolute()
    for key, path in (("runs_dir", folder), ("the working directory", directory)):
        if not str(path).isprintable():
            raise ConfigError(
                [Problem(key=key, value=str(path), why="cannot stand in a script: it holds a line break or the like", fix="another folder")]
            )
    check_run_folder(config)
    record, console = JobRecord(folder), open_console()
    objective = Results(folder).objective
    if objective is not None:
        if point is not None:
            record_point(point, run=config.run, run_dir=str(config.folder), status="finished", objective=objective)
        console.print(f"{config.run} is finished; nothing is submitted", soft_wrap=True, markup=False)
        print_next(next_commands(config, command), console=console)
        return Launched(exit_code=0, objective=objective)
    record.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(record.folder / ".lock"):
        live = _live(record)
        if live is None:
            save_config(config, config.folder / "config.yaml")
            script = write_script(config, command, directory)
        if point is not None:  # before the job can begin: it keeps the point from here on
            record.write("point", point=str(point.file.absolute()))
            status = "running" if live is not None and live.runs else "pending"
            record_point(point, run=config.run, run_dir=str(config.folder), status=status, job=live.job if live else None)
        if live is not None:
            console.print(f"{config.run} is job {live.job} already, {_told(live)}; nothing is submitted", soft_wrap=True, markup=False)
            job = live.job
        else:
            job = send(script)
            record.write("submitted", job=job, command=command)
            if point is not None:
                record_point(point, run=config.run, run_dir=str(config.folder), status="pending", job=job)
            console.print(f"{config.run} is job {job}", soft_wrap=True, markup=False)
    if point is None:
        print_next(commands_of_job(config.folder, job), console=console)
    return Launched(exit_code=0, objective=None, job=job)


def _live(record: JobRecord) -> Queued | None:
    """The run's job that is pending or running. EngineError where it may be, and SLURM does not answer."""
    job = record.job
    if job is None:
        return None
    found = find_jobs([job])
    if found is None:
        raise EngineError(f"SLURM does not say how job {job} of this run stands (squeue fails or is not there); try again")
    queued = found.get(job)
    return queued if queued is not None and (queued.waits or queued.runs) else None


def _told(queued: Queued) -> str:
    return f"{queued.state.lower()}{f' ({queued.reason})' if queued.reason else ''}"


def commands_of_job(folder: Path, job: str) -> list[tuple[str, str]]:
    """What a person types next."""
    log = shlex.quote(str(JobRecord(folder).log(job)))
    return [
        (f"python -m slayer.launching status {shlex.quote(str(folder))}", "how it stands"),
        (f"tail -F {log}", "what it says"),
        (f"scancel {job}", "end it; the same command goes on"),
    ]


def wait_for_all(configs: Sequence[RunConfig]) -> list[Launched]:
    """Wait for the jobs of several runs, until nobody wants to wait any longer."""
    launches: list[Launched] = []
    for config in configs:
        job = JobRecord(config.folder).job
        if job is not None and not any(launched.stopped for launched in launches):
            launches.append(wait_for_end(config, job))
    return launches


def wait_for_end(config: RunConfig, job: str) -> Launched:
    """Return when a job of the run is over, with its objective. Ctrl-C leaves the job alone."""
    from slayer.reporting.console import open_console, print_error, print_next

    record, began = JobRecord(config.folder), time.monotonic()
    gone_since: float | None = None
    try:
        while gone_since is None or time.monotonic() - gone_since < SETTLE_SECONDS:
            found = find_jobs([job])
            queued = found.get(job) if found is not None else None
            ended = record.last("ended", job)
            if found is not None and (queued is None or not (queued.waits or queued.runs)):
                gone_since = gone_since or time.monotonic()
                if ended is None or ended["state"] != "requeued" or (queued is not None and queued.state == "CANCELLED"):
                    break
            elif found is not None:
                gone_since = None
            time.sleep(min(max(FIRST_POLL_SECONDS, POLL_SHARE * (time.monotonic() - began)), LONGEST_POLL_SECONDS))
    except KeyboardInterrupt:
        open_console().print(f"\nno longer waiting; job {job} of {config.run} goes on", soft_wrap=True, markup=False)
        print_next(commands_of_job(config.folder, job))
        return Launched(exit_code=INTERRUPTED_EXIT_CODE, objective=None, error="no longer waited for", stopped=True)
    launched = _ended(config, record, job, queued)
    if launched.error is not None:
        settle(config.folder, job, launched.error)
        print_error(EngineError(f"job {job} of {config.run}: {launched.error}"))
    return launched


def _ended(config: RunConfig, record: JobRecord, job: str, queued: Queued | None) -> Launched:
    objective = Results(config.folder).objective
    if objective is not None:
        return Launched(exit_code=0, objective=objective)
    ended = record.last("ended", job)
    if ended is not None and ended["state"] == "failed" and ended["code"] == REFUSED_EXIT_CODE:
        return Launched(exit_code=REFUSED_EXIT_CODE, objective=None, error=str(ended["why"]))
    state = f"SLURM says {_told(queued)}" if queued is not None else "SLURM knows nothing of it any more"
    return Launched(exit_code=REQUEUE_EXIT_CODE, objective=None, error=f"ended before its end ({state}); the same command goes on")
