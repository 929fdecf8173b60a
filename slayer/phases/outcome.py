"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: its objective (None before the comparison), its report, and whether it was asked to stop early."""

    objective: float | None
    report: Path | None
    stopped_at: int | None = None
