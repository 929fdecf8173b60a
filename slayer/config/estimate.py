"""What the estimate of a run's cost takes for granted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section

DeviceName = Literal["A100", "H100", "H200", "B200", "L40S", "RTX4090"]
NAMED: tuple[DeviceName, ...] = ("A100", "H100", "H200", "B200")


class EstimateConfig(Section):
    """What the estimate takes for granted; nothing of it changes a run."""

    mfu: float = Field(0.4, gt=0, le=1, description="share of a GPU's peak that training is taken to reach (recomputation counts as work)")
    devices: list[DeviceName] = Field(default_factory=lambda: list(NAMED), min_length=1, description="GPUs that times and memory are told for")
    gpus: int | None = Field(None, ge=1, description="GPUs that the run is taken to have; null: as many as it has ranks")
