"""A sweep as its files tell it: its points, which of them is best and how sure that is, and what belongs together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.evaluation.document_scores import SourceDocuments, read_document_scores
from slayer.evaluation.forgetting import OBJECTIVE_ROLES
from slayer.evaluation.ranking import Spread, Standing, dominated_by, spread, standings
from slayer.reporting.run_folder import read_json
from slayer.reporting.scores import RoleChange, role_change, source_scores

STATUSES = ("finished", "running", "requeued", "pending", "failed")
"""Of points, in the order in which they are shown."""
SEED = "seed"
ONE_PROBLEM = "1 problem in the configuration\n  1. "
"""How the error of a refused point begins, which says nothing that its status does not."""
SEARCH_NAME = "search.json"
"""In the folder of a sweep whose points are searched for: what is searched, and how."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepPoint:
    """One run of a sweep. `overrides` maps keys to values; objective: lower is better; `documents`: its result on the held-out documents."""

    number: int
    run: str
    run_dir: Path
    overrides: Mapping[str, str]
    status: str
    error: str
    job: str
    seconds: float | None
    objective: float | None
    objective_name: str
    learnt: RoleChange | None
    forgotten: RoleChange | None
    trained_parameters: float | None
    documents: Mapping[str, SourceDocuments] | None

    @property
    def is_ranked(self) -> bool:
        """Finished, with a score."""
        return self.status == "finished" and self.objective is not None

    @property
    def short_error(self) -> str:
        """The first line of its error that says what is wrong."""
        head, _, rest = self.error.partition("\n")
        return rest.partition("\n")[0].strip() if rest and head.endswith("in the configuration") else head

    @property
    def command(self) -> str:
        """What makes this run, or finds it where it is finished."""
        return shlex.join(["python", "train.py", *(f"{key}={value}" for key, value in self.overrides.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Points that are equal in everything but their seed. `spread` is None for less than two finished ones."""

    label: str
    points: tuple[SweepPoint, ...]
    spread: Spread | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """`ranked` are the finished points from best to worst, with `standings` and `dominators` (the point that beats each on what it learnt
    and on what it forgot, None on the Pareto front or where nothing was compared) in the same order; `others` are all that are not finished."""

    folder: Path
    keys: tuple[str, ...]
    ranked: tuple[SweepPoint, ...]
    standings: tuple[Standing, ...]
    dominators: tuple[SweepPoint | None, ...]
    others: tuple[SweepPoint, ...]
    settings: tuple[Setting, ...]
    search: Mapping[str, Any]

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """All points, by number."""
        return tuple(sorted((*self.ranked, *self.others), key=lambda point: point.number))

    @property
    def best(self) -> SweepPoint | None:
        """The finished point with the lowest objective."""
        return self.ranked[0] if self.ranked else None

    @property
    def tied(self) -> tuple[SweepPoint, ...]:
        """Those that cannot be told apart from it."""
        return tuple(point for point, standing in zip(self.ranked, self.standings, strict=True) if standing.is_tied)

    @property
    def front(self) -> tuple[SweepPoint, ...]:
        """Those that no other point beats on both counts."""
        pairs = zip(self.ranked, self.dominators, strict=True)
        return tuple(point for point, dominator in pairs if dominator is None and point.learnt and point.forgotten)

    def label(self, point: SweepPoint) -> str:
        """What tells a point from the others."""
        return label_of(point, self.keys)


def read_sweep(sweep_dir: Path) -> Sweep:
    """Everything that the page of a sweep shows."""
    points = read_points(sweep_dir)
    ranked = sorted((point for point in points if point.is_ranked), key=lambda point: (point.objective, point.number))
    others = sorted((point for point in points if not point.is_ranked), key=lambda point: (STATUSES.index(point.status), point.number))
    keys = swept_keys(points)
    objective = ranked[0].objective_name if ranked else ""
    found = (
        standings([point.documents for point in ranked], 0, objective) if objective in OBJECTIVE_ROLES else [Standing(interval=None)] * len(ranked)
    )
    return Sweep(
        folder=sweep_dir, keys=tuple(keys), ranked=tuple(ranked), standings=tuple(found), dominators=tuple(_dominators(ranked)),
        others=tuple(others), settings=tuple(_settings(ranked, keys)), search=read_json(sweep_dir / SEARCH_NAME),
    )  # fmt: skip


def read_points(sweep_dir: Path) -> list[SweepPoint]:
    """The points of a sweep folder in order of their numbers; a point file that cannot be read is left out."""
    values = [read_json(path) for path in (sweep_dir / "points").glob("*.json")]
    return sorted((_point(value, sweep_dir) for value in values if value), key=lambda point: point.number)


def _point(values: Mapping[str, Any], sweep_dir: Path) -> SweepPoint:
    run_dir = found_run(Path(str(values.get("run_dir") or values.get("run") or "")), sweep_dir)
    results = read_json(run_dir / "results.json")
    scores = source_scores(results)
    training, objective = results.get("training"), results.get("objective")
    status = str(values.get("status"))
    return SweepPoint(
        number=int(values.get("number", 0)), run=str(values.get("run", run_dir.name)), run_dir=run_dir,
        overrides=dict(item.partition("=")[::2] for item in values.get("overrides") or []),
        status=status if status in STATUSES else "running", error=str(values.get("error") or "").removeprefix(ONE_PROBLEM),
        job=str(values.get("job") or ""),
        seconds=values.get("seconds"), objective=values.get("objective"),
        objective_name=str(objective.get("name")) if isinstance(objective, dict) else "",
        learnt=role_change(scores, "domain"), forgotten=role_change(scores, "replay"),
        trained_parameters=training.get("trained_parameters") if isinstance(training, dict) else None,
        documents=read_document_scores(run_dir) if status == "finished" else None,
    )  # fmt: skip


def found_run(run_dir: Path, sweep_dir: Path) -> Path:
    """The folder of a run as its sweep recorded it; where that is not there, since both were moved or are read from elsewhere, the one of this name
    around the sweep's folder (runs/NAME beside runs/sweeps/NAME, or both in one folder)."""
    if run_dir.exists() or not run_dir.name:
        return run_dir
    around = [folder / run_dir.name for folder in sweep_dir.resolve().parents[:2]]
    return next((folder for folder in around if folder.exists()), run_dir)


def swept_keys(points: Sequence[SweepPoint]) -> list[str]:
    """Override keys whose value is not the same at all points, in order of first appearance."""
    keys = dict.fromkeys(key for point in points for key in point.overrides)
    return [key for key in keys if len({point.overrides.get(key) for point in points}) > 1]


def label_of(point: SweepPoint, keys: Sequence[str]) -> str:
    """The values of these keys in words; the run's name where there are none."""
    return " ".join(f"{key.rpartition('.')[2]}={point.overrides.get(key, '–')}" for key in keys) or point.run


def _dominators(ranked: Sequence[SweepPoint]) -> list[SweepPoint | None]:
    compared = [(point, point.learnt, point.forgotten) for point in ranked]
    known = [(point, learnt.percent, forgotten.percent) for point, learnt, forgotten in compared if learnt is not None and forgotten is not None]
    places = dominated_by([learnt for _, learnt, _ in known], [forgotten for *_, forgotten in known])
    found = {point.number: known[place][0] for (point, *_), place in zip(known, places, strict=True) if place is not None}
    return [found.get(point.number) for point in ranked]


def _settings(ranked: Sequence[SweepPoint], keys: Sequence[str]) -> list[Setting]:
    """Finished points by everything but their seed, the lowest mean first; none where no two differ in the seed alone."""
    if SEED not in keys:
        return []
    others = [key for key in keys if key != SEED]
    by_setting: dict[tuple[str | None, ...], list[SweepPoint]] = {}
    for point in ranked:
        by_setting.setdefault(tuple(point.overrides.get(key) for key in others), []).append(point)
    settings = [
        Setting(
            label=label_of(points[0], others) if others else "all", points=tuple(points),
            spread=spread([point.objective for point in points if point.objective is not None]),
        )
        for points in by_setting.values()
    ]  # fmt: skip
    if not any(setting.spread for setting in settings):
        return []
    return sorted(settings, key=lambda setting: _mean([point.objective or 0.0 for point in setting.points]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
