"""What a run folder holds, read with patience: a report is written from whatever is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from slayer.config import RunConfig, load_config
from slayer.errors import SlayerError
from slayer.reporting.events import read_events
from slayer.surgery.plan import LayerPlan, load_plan

Record = Mapping[str, Any]
HELDOUT = "heldout/"
TASKS = "tasks/"
SOURCE_LOSS = "loss/"
SOURCE_TOKENS = "tokens/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """A run as its files tell it. Metric lines are ordered by step, each step once; events as they happened."""

    path: Path
    config: RunConfig | None
    plan: LayerPlan | None
    training: tuple[Record, ...]
    heldout: tuple[Record, ...]
    results: Record
    events: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.results.get("run") or (self.config.run if self.config else self.path.resolve().name))

    @property
    def model_name(self) -> str:
        """The base model's short name."""
        return str(self.results.get("model") or (self.config.model.name if self.config else "the base model"))

    def section(self, name: str) -> dict[str, Any]:
        """A dictionary of results.json, empty when it is missing."""
        value = self.results.get(name)
        return value if isinstance(value, dict) else {}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A list of dictionaries of results.json, empty when it is missing."""
        value = self.results.get(name)
        return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def read_run(run_dir: Path) -> RunFolder:
    """Read a run folder; files that are missing or unreadable leave their part empty."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return RunFolder(
        path=run_dir, config=_config(run_dir / "config.yaml"), plan=_plan(run_dir / "plan.json"),
        training=_by_step(line for line in lines if not is_heldout(line)),
        heldout=_merged(line for line in lines if is_heldout(line)),
        results=read_json(run_dir / "results.json"), events=tuple(read_events(run_dir / "events.jsonl")),
    )  # fmt: skip


def is_heldout(record: Record) -> bool:
    """True for a line of scores (of held-out text, of benchmark tasks), false for a training line."""
    return any(key.startswith((HELDOUT, TASKS)) for key in record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl in file order; a line torn by a kill is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _by_step(lines: Any) -> tuple[Record, ...]:
    # A resumed run may have written a step twice: what it wrote last is what it went on from.
    last = {line["step"]: line for line in lines}
    return tuple(last[step] for step in sorted(last))


def _merged(lines: Any) -> tuple[Record, ...]:
    # Held-out text and tasks may have lines of their own at the same step.
    steps: dict[int, dict[str, Any]] = {}
    for line in lines:
        steps[line["step"]] = {**steps.get(line["step"], {}), **line}
    return tuple(steps[step] for step in sorted(steps))


def source_names(records: tuple[Record, ...], prefix: str) -> list[str]:
    """Names after `prefix` in the keys of these records, in order of first appearance."""
    names: dict[str, None] = {}
    for record in records:
        names |= {key.removeprefix(prefix): None for key in record if key.startswith(prefix)}
    return list(names)


def series(records: tuple[Record, ...], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, without the records that lack it."""
    points = [(record["step"], float(record[key])) for record in records if isinstance(record.get(key), (int, float))]
    return [step for step, _ in points], [value for _, value in points]


def stage_starts(records: tuple[Record, ...]) -> list[tuple[int, int]]:
    """(first step, stage from 1) of each freeze stage after the first, as far as the records of a staged run tell."""
    starts = []
    for before, record in pairwise(records):
        stage = record.get("stage")
        if isinstance(stage, int) and stage != before.get("stage"):
            starts.append((before["step"] + 1, stage))  # the last step of a stage is always logged
    return starts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _config(path: Path) -> RunConfig | None:
    try:
        return load_config(path)
    except Exception:
        # YAML, pydantic and file errors alike: a report without its configuration is better than no report.
        return None


def _plan(path: Path) -> LayerPlan | None:
    try:
        return load_plan(path)
    except SlayerError:
        return None
