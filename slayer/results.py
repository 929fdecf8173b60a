"""results.json: what a run has found out so far. Written whole after each finding, so an interrupted run keeps what it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slayer.errors import CheckpointError
from slayer.secrets import without_secrets

FORMAT = 1


class Results:
    """The findings of one run folder, by section."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; CheckpointError when it is no results file of ours."""
        self.path = folder / "results.json"
        self.values: dict[str, Any] = {"format": FORMAT}
        if self.path.exists():
            try:
                self.values = json.loads(self.path.read_text(encoding="utf-8"))
                known = self.values["format"] == FORMAT
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); move it away, or type run=NAME to start a new run") from error
            if not known:
                raise CheckpointError(f"{self.path} has format {self.values['format']}, not {FORMAT}; type run=NAME to start a new run")

    def __contains__(self, section: str) -> bool:
        return section in self.values

    def __getitem__(self, section: str) -> Any:
        return self.values[section]

    @property
    def objective(self) -> float | None:
        """The score of a finished run; None before its end."""
        value: float | None = self.values.get("objective", {}).get("value")
        return value

    def update(self, **sections: Any) -> None:
        """Set sections and write the file, aside and renamed. What looks like a secret stays out."""
        self.values |= without_secrets(sections)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def write_items(folder: Path, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """items/TASK.jsonl: one line per question with each model's value of every metric, and what it wrote where it wrote something.

    `scores` maps a role (base, result) to tasks and their TaskScores.
    """
    for task in scores["result"]:
        mine = {role: tasks[task] for role, tasks in scores.items()}
        lines = []
        for place, item in enumerate(mine["result"].items.tolist()):
            line: dict[str, Any] = {"item": item}
            for role, one in mine.items():
                values = {name: metric.values_N[place].item() for name, metric in one.metrics.items() if metric.aggregation != "corpus"}
                line[role] = values | ({"answer": one.answers[place]} if one.answers else {})
            lines.append(json.dumps(line, ensure_ascii=False))
        path = folder / "items" / f"{task.replace('/', '_')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
