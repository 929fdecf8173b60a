"""A sweep: one run per point, one page that compares them and is written anew after each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import RunConfig
from slayer.data.cache import write_file
from slayer.errors import SlayerError
from slayer.launching.commandline import groups
from slayer.launching.local import REFUSED_EXIT_CODE, Launched, launch
from slayer.launching.naming import run_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination of a sweep's values."""

    sweep_dir: Path
    number: int
    overrides: Sequence[str]


def run_point(point: Point, config: RunConfig, command: str) -> Launched:
    """Run one point in a process of its own and put it on the page, finished or failed. The others go on either way."""
    record_point(point, run=config.run, run_dir=str(config.folder), status="running")
    started = time.monotonic()
    launched = launch(config, command, own_process=True)
    status = "finished" if launched.exit_code == 0 else "failed"
    record_point(
        point, run=config.run, run_dir=str(config.folder), status=status, error=launched.error, seconds=time.monotonic() - started,
        objective=launched.objective,
    )  # fmt: skip
    return launched


def refuse(error: SlayerError, point: Point | None) -> Launched:
    """Tell why a configuration cannot run; a point of a sweep is on the page with its reason."""
    from slayer.reporting.console import print_error

    print_error(error)
    if point is not None:
        record_point(point, run=run_name(point.overrides, list(groups())), status="failed", error=str(error), seconds=0)
    return Launched(exit_code=REFUSED_EXIT_CODE, objective=None, error=str(error))


def record_point(point: Point, **findings: Any) -> None:
    """Write a point's file and the page anew. Status: pending, running, requeued, finished or failed; `job`: the id that SLURM gave it."""
    from slayer.reporting.sweep_page import write_sweep_page

    path = point.sweep_dir / "points" / f"{point.number:04d}.json"
    empty = {"run": "", "run_dir": "", "status": "running", "error": None, "seconds": None, "objective": None}
    values = {"number": point.number, "overrides": list(point.overrides), **empty, **findings}
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())
    write_sweep_page(point.sweep_dir)


def objective_for_sweeper(launched: Launched) -> float:
    """What a Hydra sweeper minimises; infinite for a point that failed."""
    return launched.objective if launched.objective is not None else math.inf
