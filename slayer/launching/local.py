"""Starts a run on this machine: in this process, or as ranks of its own."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from dataclasses import dataclass

from slayer.config import RunConfig, save_config
from slayer.errors import EngineError, SlayerError, ToldError
from slayer.launching.job_record import leave_code
from slayer.launching.joined import is_joined
from slayer.launching.restarts import FAILURE_NAME, death, run_restarted
from slayer.training.ranks import is_lost_rank, require_free_port
from slayer.training.signals import REQUEUE_EXIT_CODE, STOPS

INTERRUPTED_EXIT_CODE = 130
"""Ctrl-C in a command that is no run: evaluate.py, python -m slayer.data."""
REFUSED_EXIT_CODE = 2
"""A run that cannot start or go on until a person mends something."""

SECOND_SIGNALS = tuple(128 + number for number in STOPS)
"""Ended at once by a second signal."""

REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
"""Errors of the disk that a person mends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """How a launched run ended. `error` is the message for a person; `objective` is None unless the run is finished; `stopped`: its owner
    asked for it; `job`: the one of SLURM that it was given to, and that may well go on."""

    exit_code: int
    objective: float | None
    error: str | None = None
    stopped: bool = False
    job: str | None = None


def launch(config: RunConfig, command: str, *, own_process: bool) -> Launched:
    """Run to the end. A sweep asks for `own_process`, so that nothing of one point reaches the next; what is started again needs one, too."""
    if is_joined() or (config.launcher.processes == 1 and config.launcher.restarts == 0 and not own_process):
        return run_here(config, command)
    return _run_apart(config, command)


def run_here(config: RunConfig, command: str) -> Launched:
    """Run in this process, with messages instead of tracebacks for everything a person can mend."""
    code = 1  # of an error that nobody expected
    try:
        launched = _run_here(config, command)
        code = launched.exit_code
        return launched
    finally:
        leave_code(config.folder, code)


def _run_here(config: RunConfig, command: str) -> Launched:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch tells the stack of each lost connection as a warning
    from slayer.pipeline import run_pipeline
    from slayer.reporting.console import open_console, print_next
    from slayer.reporting.trackers import sync_command

    first = os.environ.get("RANK", "0") == "0"
    try:
        outcome = run_pipeline(config, command)
    except KeyboardInterrupt:
        if first:
            open_console().print(f"\nstopped; the same command goes on where {config.folder} stands", soft_wrap=True)
        return Launched(exit_code=REQUEUE_EXIT_CODE, objective=None, error="stopped before the end", stopped=True)
    except (SlayerError, OSError, RuntimeError) as error:
        return ended_by(error)
    if outcome.stopped_at is not None:
        if first:
            open_console().print(f"stopped and saved at step {outcome.stopped_at}")
            print_next([(command, "go on from there")])
        return Launched(exit_code=REQUEUE_EXIT_CODE, objective=None, error=f"stopped at step {outcome.stopped_at}", stopped=True)
    if first and outcome.report is not None:
        unsent = [(sync_command(config.folder), "send what the tracker missed")] if outcome.unsent else []
        print_next([*next_commands(config, command), *unsent])
    return Launched(exit_code=0, objective=outcome.objective)


def ended_by(error: Exception) -> Launched:
    """Tell what has ended a run or kept it from starting. What no person can mend is raised again."""
    from slayer.reporting.console import print_error

    if is_lost_rank(error):
        lost = f"rank {os.environ.get('RANK', '0')} has lost another rank ({_reason(error)}); the same command goes on"
        print(lost, file=sys.stderr, flush=True)
        return Launched(exit_code=REQUEUE_EXIT_CODE, objective=None, error=lost)
    if not isinstance(error, (SlayerError, OSError)):
        raise error
    told = as_message(error)
    print_error(told)
    return Launched(exit_code=REFUSED_EXIT_CODE, objective=None, error=None if isinstance(told, ToldError) else str(told))


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
        return ended_by(error)
    worker = [sys.executable, "-m", "slayer.launching.worker", str(config.folder), command]
    ended = run_restarted(worker, config)
    if ended.code == 0:
        return Launched(exit_code=0, objective=Results(config.folder).objective)
    failure, guess = config.folder / FAILURE_NAME, death(ended, config.launcher.processes)
    if not ended.signals and (ended.code < 0 or not failure.exists()):
        print_error(EngineError(guess))
    why = guess if ended.code < 0 or not failure.exists() else failure.read_text(encoding="utf-8")
    # What a signal has killed goes on when it is started again; a fault of ours, with its traceback, does not.
    exit_code = REQUEUE_EXIT_CODE if ended.code < 0 else ended.code if ended.code in (REQUEUE_EXIT_CODE, *SECOND_SIGNALS) else REFUSED_EXIT_CODE
    return Launched(exit_code=exit_code, objective=None, error=why, stopped=bool(ended.signals))


def _reason(error: BaseException) -> str:
    """What torch says of a lost connection, without the place in its source and its advice."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).partition("\n")[0]).partition(". This is ")[0]
