"""A sweep: one run per point, a file per point, and one page that compares them and is written anew after each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.config import RunConfig
from slayer.data.cache import one_at_a_time, write_file
from slayer.errors import SlayerError
from slayer.launching.commandline import groups, is_override, is_sweep
from slayer.launching.local import Launched, ended_by, launch
from slayer.launching.naming import run_name, split_override

EMPTY = {"run": "", "run_dir": "", "status": "running", "error": None, "seconds": None, "objective": None}
"""What a point's file holds besides its number and overrides, before anything is known."""
LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination of a sweep's values."""

    sweep_dir: Path
    number: int
    overrides: Sequence[str]

    @property
    def file(self) -> Path:
        """Where it is recorded."""
        return self.sweep_dir / "points" / f"{self.number:04d}.json"


def run_point(point: Point, config: RunConfig, command: str) -> Launched:
    """Run one point in a process of its own and put it on the page, finished or failed. The others go on either way.

    A run that is finished is shown as it is; nothing is started for it.
    """
    known = finished_objective(config)
    if known is not None:
        record_point(point, run=config.run, run_dir=str(config.folder), status="finished", objective=known)
        return Launched(exit_code=0, objective=known)
    record_point(point, run=config.run, run_dir=str(config.folder), status="running")
    started = time.monotonic()
    launched = launch(config, command, own_process=True)
    status = "finished" if launched.exit_code == 0 else "pending" if launched.stopped else "failed"
    record_point(
        point, run=config.run, run_dir=str(config.folder), status=status, error=launched.error, seconds=time.monotonic() - started,
        objective=launched.objective,
    )  # fmt: skip
    return launched


def refuse(error: Exception, point: Point | None) -> Launched:
    """Tell why a configuration cannot run; a point of a sweep is on the page with its reason."""
    launched = ended_by(error)
    if point is not None:
        record_point(point, run=run_name(point.overrides, list(groups())), status="failed", error=launched.error, seconds=0, objective=None)
    return launched


def record_point(point: Point, **findings: Any) -> None:
    """Write what is new of a point into its file, and the page anew. Status: pending, running, requeued, finished or failed; `job`: the id that
    SLURM gave it.

    What was known of the same overrides stays, but for its error, which belongs to its status. Points that end at the same moment, on
    whichever machine, do it one after the other.
    """
    record_points([(point, findings)])


def record_points(found: Iterable[tuple[Point, dict[str, Any]]]) -> None:
    """The same for several points of one sweep at once."""
    from slayer.reporting.sweep_page import write_sweep_page

    told = list(found)
    if not told:
        return
    sweep_dir = told[0][0].sweep_dir
    with one_at_a_time(sweep_dir / LOCK):
        for point, findings in told:
            values = {"number": point.number, "overrides": list(point.overrides), **EMPTY, **known_of(point), "error": None, **findings}
            write_file(point.file, (json.dumps(values, indent=1) + "\n").encode())
        write_sweep_page(sweep_dir)


def known_of(point: Point) -> dict[str, Any]:
    """What the file of a point says of these very overrides; nothing where it is missing, torn, or of others."""
    try:
        values: dict[str, Any] = json.loads(point.file.read_text(encoding="utf-8"))
        return values if values["overrides"] == list(point.overrides) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def announce(first: Point, points: Sequence[Sequence[str]]) -> None:
    """Put all points of a sweep on its page before its `first` one begins. What is known of a finished one stays.

    Nothing is done where `first` is not among them: a launcher of Hydra has brought it to a process that was not told of the others.
    """
    if first.number >= len(points) or list(points[first.number]) != list(first.overrides):
        return
    waiting = [Point(sweep_dir=first.sweep_dir, number=number, overrides=overrides) for number, overrides in enumerate(points)]
    unfinished = [point for point in waiting if known_of(point).get("status") != "finished"]
    names = list(groups())
    record_points((point, {"run": run_name(point.overrides, names), "status": "pending"}) for point in unfinished)


def is_plain_sweep(sweeper: Any) -> bool:
    """True where Hydra's own sweeper makes the points, from the command line alone: then they are known beforehand."""
    return not learns_from_scores(sweeper) and not sweeper.get("params")


def learns_from_scores(sweeper: Any) -> bool:
    """True where a sweeper chooses points by what others came to."""
    return not str(sweeper.get("_target_")).endswith(".BasicSweeper")


def typed_points(words: Sequence[str], config_loader: Any) -> list[list[str]]:
    """The overrides of each point that Hydra's own sweeper will make of a command line, in its order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = [word for word in words if word.startswith("~") or is_override(word)]
    overrides = [one for one in OverridesParser.create(config_loader=config_loader).parse_overrides(typed) if not one.is_hydra_override()]
    (points,) = BasicSweeper.split_arguments(overrides, None)
    return [as_typed(point) for point in points]


def sweep_folder(arguments: Sequence[str]) -> list[str]:
    """The word that names the folder of a sweep. Written out here, so that jobs which Hydra's launchers start elsewhere know it, too."""
    words = [word for word in arguments if is_override(word)]
    is_named = "hydra.sweep.dir" in [split_override(word)[0] for word in words]
    return [f"hydra.sweep.dir=${{runs_dir}}/sweeps/{run_name(words, list(groups()))}"] if is_sweep(arguments) and not is_named else []


def as_typed(words: Sequence[str]) -> list[str]:
    """Overrides without what was put in front of them for Hydra."""
    return ["=".join(split_override(word)) for word in words]


def finished_objective(config: RunConfig) -> float | None:
    """The score of a run that is finished and is the one asked for."""
    from slayer.pipeline import check_run_folder
    from slayer.results import Results

    try:
        check_run_folder(config)
        return Results(config.folder).objective
    except SlayerError:  # told by whoever starts it
        return None


def objective_for_sweeper(launched: Launched) -> float:
    """What a Hydra sweeper minimises; infinite for a point that failed."""
    return launched.objective if launched.objective is not None else math.inf
