"""What a run leaves, as tests read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder and what is in it."""

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """results.json."""
        values: dict[str, Any] = json.loads((self.path / "results.json").read_text(encoding="utf-8"))
        return values

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """The lines without what a clock or the machine decides."""
        clocked = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")
        return [{key: value for key, value in line.items() if key not in clocked} for line in self.metrics]

    @property
    def losses(self) -> list[float]:
        """The training loss of every line that has one."""
        return [line["loss"] for line in self.metrics if "loss" in line]
