"""python -m slayer.launching.job begin RUN | end RUN CODE ENDING: what the script of a job says before its ranks and after them.

`begin` notes the start. `end` says what becomes of the job: its exit code is that of the script. The points of sweeps that the run is are
kept up to date by both.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from slayer.config import load_config
from slayer.errors import EngineError, SlayerError
from slayer.launching.job_record import JobRecord
from slayer.launching.local import REFUSED_EXIT_CODE
from slayer.launching.restarts import FAILURE_NAME, newest_step
from slayer.launching.scheduler import find_jobs
from slayer.launching.sweep import Point, record_point
from slayer.reporting.events import Events
from slayer.reporting.run_folder import read_json
from slayer.training.signals import REQUEUE_EXIT_CODE

RESTARTS_BY_HAND = 3
"""As in conf/launcher/slurm.yaml."""
CANCELLED_EXIT_CODE = 143
"""SLURM itself has ended the job."""


def begin(folder: Path, job: str, start: int) -> None:
    """Note that a job has started. EngineError where another one is at work in the same folder."""
    record = JobRecord(folder)
    record.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(record.folder / ".lock"):  # whoever submits it may still be writing its id
        _begin(record, folder, job, start)


def _begin(record: JobRecord, folder: Path, job: str, start: int) -> None:
    others = {str(line["job"]) for line in record.lines if line.get("event") == "started"} - {job}
    running = sorted(other for other, found in (find_jobs(sorted(others)) or {}).items() if found.state == "RUNNING") if others else []
    if running:
        raise EngineError(f"job {running[0]} is at work in {folder}, and a run has room for one; type: scancel {job}")
    record.code_file.unlink(missing_ok=True)
    (folder / FAILURE_NAME).unlink(missing_ok=True)
    record.write("started", job=job, start=start, step=newest_step(folder), nodes=os.environ.get("SLURM_JOB_NODELIST"))
    tell_points(record, status="running", job=job, error=None)


def end(folder: Path, job: str, code: int, *, by_slurm: bool, start: int = 0) -> int:
    """Note how the ranks of a job have ended, and say with which exit code its script ends: 0 finished, 75 once more, 2 not again."""
    record, step = JobRecord(folder), newest_step(folder)
    restarts, requeue = _rules(folder)
    told = (folder / FAILURE_NAME).read_text(encoding="utf-8") if (folder / FAILURE_NAME).exists() else None
    state, why = "failed", told
    if code == 0:
        state, why = "finished", None
    elif by_slurm:
        queued = (find_jobs([job]) or {}).get(job)
        state = "requeued" if queued is not None and queued.restarts > start else "failed"  # SLURM counts the next start by now
        code, why = CANCELLED_EXIT_CODE, "ended by SLURM: cancelled, out of time, or making room for another job"
    elif record.code_file.exists():
        code = REFUSED_EXIT_CODE
        why = told or f"a rank ended with exit code {record.code_file.read_text(encoding='utf-8').strip()}; {record.log(job)} has what it said"
    elif record.tries_since(step, job) >= restarts:
        code, why = REFUSED_EXIT_CODE, f"queued again {restarts} times without a step behind step {step}; {record.log(job)} has what it said"
        why += "\n     type launcher.restarts=N for more tries"
    else:
        why = told or ("stopped and saved" if code == REQUEUE_EXIT_CODE else f"lost a rank (exit code {code})")
        code, state = REQUEUE_EXIT_CODE, "requeued" if requeue else "stopped"
    record.write("ended", job=job, state=state, code=code, step=step, why=why)
    if code == REQUEUE_EXIT_CODE and state == "requeued":
        Events(folder / "events.jsonl").record("restarted", step, code=code, job=job)
    print(f"slayer: {state} at step {step}{f': {why}' if why else ''}", flush=True)
    started = next((float(line["time"]) for line in record.lines if line.get("event") == "started" and str(line.get("job")) == job), time.time())
    status = {"finished": "finished", "requeued": "requeued"}.get(state, "failed")
    objective = read_json(folder / "results.json").get("objective", {}).get("value") if state == "finished" else None
    tell_points(record, status=status, job=job, error=why if status == "failed" else None, seconds=time.time() - started, objective=objective)
    return code


def _rules(folder: Path) -> tuple[int, bool]:
    """launcher.restarts and launcher.requeue of a run. One whose script was written by hand knows neither, or was refused before it was frozen."""
    try:
        launcher = load_config(folder / "config.yaml").launcher
    except SlayerError:
        return RESTARTS_BY_HAND, True
    return (launcher.restarts, launcher.requeue) if launcher.name == "slurm" else (RESTARTS_BY_HAND, True)


def tell_points(record: JobRecord, **findings: Any) -> None:
    """Put something on the pages of the sweeps whose point a run is."""
    for path in record.points:
        values = read_json(path)
        point = Point(sweep_dir=path.parent.parent, number=int(values.pop("number", path.stem)), overrides=values.pop("overrides", []))
        record_point(point, **values | findings)


def settle(folder: Path, job: str, why: str) -> None:
    """Put the end of a job that could not say it itself (cancelled while it waited, killed) on the pages of its sweeps."""
    record = JobRecord(folder)
    open_points = [read_json(path) for path in record.points]
    if any(values.get("status") in ("pending", "running", "requeued") and values.get("job") == job for values in open_points):
        tell_points(record, status="failed", job=job, error=why)


def main(arguments: list[str]) -> int:
    """Called by the script of a job, in its folder and environment."""
    from slayer.reporting.console import print_error

    job, start = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        match arguments if job else []:
            case ["begin", folder]:
                begin(Path(folder), job, start)
                return 0
            case ["end", folder, code, ending]:
                return end(Path(folder), job, int(code), by_slurm=ending == "yes", start=start)
    except SlayerError as error:
        print_error(error)
        return REFUSED_EXIT_CODE
    print("in a job of SLURM: python -m slayer.launching.job begin RUN | end RUN CODE ENDING", file=sys.stderr)
    return REFUSED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
