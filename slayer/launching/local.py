"""Starts a run on this machine: in this process, or as ranks of its own."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from dataclasses import dataclass

from slayer.config import RunConfig, save_config
from slayer.errors import EngineError, SlayerError
from slayer.launching.compose import under_torchrun
from slayer.launching.processes import run_ranks, threads_per_rank
from slayer.training.ranks import require_free_port

STOPPED_EXIT_CODE = 130
"""A run that was asked to stop and saved itself."""
REFUSED_EXIT_CODE = 2
"""A run that cannot start or go on until a person mends something."""

REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
"""Errors of the disk that a person mends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """How a launched run ended. `error` is the message for a person; `objective` is None unless the run is finished."""

    exit_code: int
    objective: float | None
    error: str | None = None


def launch(config: RunConfig, command: str, *, own_process: bool) -> Launched:
    """Run to the end. A sweep asks for `own_process`, so that nothing of one point reaches the next."""
    if under_torchrun() or (config.launcher.processes == 1 and not own_process):
        return run_here(config, command)
    return _run_apart(config, command)


def run_here(config: RunConfig, command: str) -> Launched:
    """Run in this process, with messages instead of tracebacks for everything a person can mend."""
    from slayer.pipeline import run_pipeline
    from slayer.reporting.console import open_console, print_error, print_next

    try:
        outcome = run_pipeline(config, command)
    except (SlayerError, OSError) as error:
        told = as_message(error)
        print_error(told)
        return Launched(exit_code=REFUSED_EXIT_CODE, objective=None, error=str(told))
    except KeyboardInterrupt:
        open_console().print(f"\ninterrupted; the same command goes on where {config.folder} stands")
        return Launched(exit_code=STOPPED_EXIT_CODE, objective=None, error="interrupted")
    first = os.environ.get("RANK", "0") == "0"
    if outcome.stopped_at is not None:
        if first:
            open_console().print(f"stopped and saved at step {outcome.stopped_at}")
            print_next([(command, "go on from there")])
        return Launched(exit_code=STOPPED_EXIT_CODE, objective=None, error=f"stopped at step {outcome.stopped_at}")
    if first and outcome.report is not None:
        print_next(next_commands(config, command))
    return Launched(exit_code=0, objective=outcome.objective)


def as_message(error: SlayerError | OSError) -> SlayerError:
    """What a disk refuses (space, permission, a file where a folder should be) as one message; any other OSError is raised again."""
    if isinstance(error, SlayerError):
        return error
    if error.errno not in REFUSALS:
        raise error
    where = f" ({error.filename})" if error.filename else ""
    return EngineError(f"the disk refuses: {error.strerror}{where}; free some space, or type runs_dir=DIR (SLAYER_CACHE=DIR for the cache)")


def next_commands(config: RunConfig, command: str) -> list[tuple[str, str]]:
    """What a person types next."""
    folder = shlex.quote(str(config.folder))
    if config.dry_run:
        return [(shlex.join(word for word in shlex.split(command) if not word.startswith("dry_run=")), "train this plan")]
    return [
        (f"xdg-open {folder}/report.html", "look at the report"),
        (f"python evaluate.py checkpoint={folder}", "score the result again beside its base"),
    ]


def _run_apart(config: RunConfig, command: str) -> Launched:
    """Ranks in processes of their own. They read the frozen config.yaml; nothing composes twice."""
    from slayer.pipeline import check_run_folder
    from slayer.reporting.console import print_error
    from slayer.results import Results

    try:
        require_free_port(config.launcher.port)
        check_run_folder(config)
        save_config(config, config.folder / "config.yaml")
    except (SlayerError, OSError) as error:
        told = as_message(error)
        print_error(told)
        return Launched(exit_code=REFUSED_EXIT_CODE, objective=None, error=str(told))
    failure = config.folder / "failure.txt"
    failure.unlink(missing_ok=True)
    launcher = config.launcher
    environment = {**os.environ, "OMP_NUM_THREADS": threads_per_rank(launcher.processes)}
    worker = [sys.executable, "-m", "slayer.launching.worker", str(config.folder), command]
    exit_code = run_ranks(worker, processes=launcher.processes, port=launcher.port, environment=environment)
    if exit_code == 0:
        values = Results(config.folder).values
        return Launched(exit_code=0, objective=values.get("objective", {}).get("value"))
    error_text = failure.read_text(encoding="utf-8") if failure.exists() else _death(exit_code)
    return Launched(exit_code=STOPPED_EXIT_CODE if error_text.startswith("stopped") else REFUSED_EXIT_CODE, objective=None, error=error_text)


def _death(exit_code: int) -> str:
    """What is known of a worker that left no reason."""
    if exit_code >= 0:
        return f"the run ended with exit code {exit_code}; what it said stands in the terminal"
    hint = ", which is what a system does that runs out of memory" if -exit_code == signal.SIGKILL else ""
    return f"the run was killed by {signal.Signals(-exit_code).name}{hint}; start it again to go on from its newest checkpoint"
