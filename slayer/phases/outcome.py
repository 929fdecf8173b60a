"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: its objective (None before the comparison), its report, the step of a stop that was asked for, and whether its tracker
    still lacks records."""

    objective: float | None
    report: Path | None
    stopped_at: int | None = None
    unsent: bool = False
