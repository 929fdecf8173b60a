"""python -m slayer.reporting.sync RUN [tracker=wandb|tensorboard|trackio]: sends the records of a run to its tracker.

RUN is a run folder; its metrics.jsonl has every record, whatever became of the tracker while it was at work. Nothing is sent
twice: wandb is asked what it has, tensorboard and trackio are written anew.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slayer.config import RunConfig, load_config
from slayer.errors import ConfigError, EngineError, Problem, SlayerError
from slayer.reporting.console import open_console, print_error, print_next
from slayer.reporting.destinations import DESTINATIONS, Job
from slayer.reporting.progress import progress_bar
from slayer.reporting.run_folder import read_metrics
from slayer.reporting.tracker_process import TrackerProcess

COMMAND = "python -m slayer.reporting.sync"
LONGEST_SECONDS = 24 * 3600.0


def sync(run_dir: Path, tracker: str | None) -> None:
    """Send every record of a run that its tracker lacks, and say where they can be looked at.

    `tracker`: None for the one that the run's config.yaml names. ConfigError for a folder that is no run, a tracker that is none or not
    named; EngineError when the tracker does not take the records.
    """
    config = _config(run_dir)
    name = _tracker(run_dir, config, tracker)
    n_records = len(read_metrics(run_dir / "metrics.jsonl"))
    if not n_records:
        raise _bad_run(run_dir, "it has no records yet (metrics.jsonl)")
    values = config.model_dump()
    job = Job(tracker=name, project=config.tracker.project, name=config.run, folder=str(run_dir), values=values, live=False)
    console = open_console()
    process = TrackerProcess(job)
    try:
        with progress_bar("sending", console) as on_progress:
            process.follow(LONGEST_SECONDS, lambda: on_progress(name, process.sent, process.lines) if process.lines else None)
    finally:
        process.kill()
    if not process.arrived:
        raise EngineError(f"tracker {name} {process.problem}\n    type: {COMMAND} {shlex.quote(str(run_dir))} tracker={name} to try again")
    new = process.lines - process.had
    sent = "has all" if not new else f"was sent {new:,} of" if new < process.lines else "was sent all"
    console.print(f"{name} {sent} {process.lines:,} records of {run_dir}", soft_wrap=True, markup=False)
    if process.where.startswith("http"):
        console.print(process.where, soft_wrap=True, markup=False)
    else:
        print_next([(process.where, "look at them")], console=console)


def _config(run_dir: Path) -> RunConfig:
    if not (run_dir / "config.yaml").exists():
        raise _bad_run(run_dir, "there is no such folder" if not run_dir.exists() else "it is no run folder (no config.yaml)")
    return load_config(run_dir / "config.yaml")


def _bad_run(run_dir: Path, why: str) -> ConfigError:
    return ConfigError([Problem(key="RUN", value=str(run_dir), why=why, fix=f"{COMMAND} runs/NAME   (a folder that train.py made)")])


def _tracker(run_dir: Path, config: RunConfig, asked: str | None) -> str:
    name = asked or config.tracker.name
    if name in DESTINATIONS:
        return name
    why = "the run was given no tracker" if asked is None else "there is no such tracker to send to"
    fix = ", or ".join(f"{COMMAND} {shlex.quote(str(run_dir))} tracker={known}" for known in DESTINATIONS)
    raise ConfigError([Problem(key="tracker", value=name, why=why, fix=fix)])


def _arguments(typed: Sequence[str]) -> tuple[Path, str | None]:
    trackers = [word.partition("=")[2] for word in typed if word.startswith("tracker=")]
    folders = [word for word in typed if not word.startswith("tracker=")]
    if len(folders) != 1 or len(trackers) > 1:
        why = "one run folder is needed, and one tracker at most"
        raise ConfigError([Problem(key="RUN", value=shlex.join(typed), why=why, fix=f"{COMMAND} runs/NAME")])
    return Path(folders[0]), trackers[0] if trackers else None


def main() -> int:
    """Exit code: 0 everything is there, 2 something to mend, 130 interrupted."""
    typed = sys.argv[1:]
    if {"--help", "-h"} & set(typed):
        print(__doc__)
        return 0
    try:
        sync(*_arguments(typed))
    except SlayerError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
