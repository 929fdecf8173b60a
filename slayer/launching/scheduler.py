"""What SLURM is asked: take a job, and how jobs stand. squeue alone: sacct needs a database that many clusters do not have."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slayer.errors import EngineError

WAITS = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED", "STOPPED")
RUNS = ("RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT")
"""States of squeue of jobs that are not over; COMPLETED and all others are of jobs that are."""

FIELDS = {"JobID": 20, "State": 20, "Reason": 60, "RestartCnt": 12}
"""Columns asked of squeue, and how wide."""
PER_CALL = 200
ASKED_SECONDS = 60.0
"""A controller that does not answer is given so long."""

KEYS = {
    "partition": "partition", "account": "account", "qos": "qos", "time limit": "time", "gres": "gres", "generic resource": "gres",
    "memory": "memory", "cpu count": "cpus_per_task", "node count": "nodes", "feature": "constraint", "node configuration": "nodes",
    "--": "options",
}  # fmt: skip
"""What sbatch speaks of when it refuses a job, and the key of launcher that says it."""
NOBODY_THERE = ("configuration source", "configuration file", "unable to contact slurm")
"""What it speaks of when there is no cluster behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """How SLURM says that a job stands. `reason`: why it waits or has failed, "" where SLURM names none."""

    job: str
    state: str
    reason: str
    restarts: int

    @property
    def waits(self) -> bool:
        """True for a job that has yet to start, or to start again."""
        return self.state in WAITS

    @property
    def runs(self) -> bool:
        """True while its processes are there."""
        return self.state in RUNS


def find_jobs(jobs: Sequence[str]) -> dict[str, Queued] | None:
    """How these jobs stand; those that SLURM has forgotten are left out. None where SLURM does not answer."""
    found: dict[str, Queued] = {}
    columns = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
    for start in range(0, len(jobs), PER_CALL):
        asked = jobs[start : start + PER_CALL]
        try:
            done = _ask(["squeue", "--noheader", "--states=all", f"--jobs={','.join(asked)}", f"--Format={columns}"])
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and "Invalid job id" not in done.stderr:
            return None
        for line in done.stdout.splitlines():
            job = _read(line)
            found[job.job] = job
    return found


def _read(line: str) -> Queued:
    values, at = [], 0
    for width in FIELDS.values():
        values.append(line[at : at + width].strip())
        at += width
    job, state, reason, restarts = values
    return Queued(job=job, state=state, reason="" if reason in ("None", "(null)") else reason, restarts=int(restarts) if restarts.isdigit() else 0)


def send(script: Path) -> str:
    """Submit a script; the job's id. EngineError with SLURM's words and the key to change where it refuses."""
    if shutil.which("sbatch") is None:
        raise EngineError("there is no sbatch on this machine; type this where jobs are submitted (a login node), or leave out launcher=slurm")
    try:
        done = _ask(["sbatch", "--parsable", str(script)])
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"sbatch did not answer in {ASKED_SECONDS:g} s; try again, and look at squeue --me first") from error
    if done.returncode:
        said = " ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in done.stderr.splitlines() if line.strip()) or "no reason"
        if any(words in said.lower() for words in NOBODY_THERE):
            raise EngineError(f"SLURM is not to be reached from here: {said}\n     type this where jobs are submitted, or set SLURM_CONF")
        fix = next((f"launcher.{key}=…" for word, key in KEYS.items() if word in said.lower()), "another launcher.… (--help shows all)")
        raise EngineError(f"SLURM does not take the job: {said}\n     type: {fix}   ({script} is what it was given)")
    return done.stdout.strip().partition(";")[0]  # behind it stands the cluster, where there are several


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASKED_SECONDS, check=False)
