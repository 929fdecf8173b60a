"""Where a run runs, and where its numbers go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


class TrackerConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    name: Literal["jsonl", "wandb", "tensorboard", "trackio"] = Field("jsonl", description="jsonl is always written")
    project: str = Field("slayer", description="project name at the tracker")


class LauncherConfig(Section):
    """Where a run runs."""

    name: Literal["local"] = Field("local", description="this machine")
    processes: int = Field(1, ge=1, description="ranks on this machine")
    port: int = Field(0, ge=0, le=65535, description="rendezvous port of the ranks; 0: any free one")
    restarts: int = Field(0, ge=0, description="times a run that was killed or hung is started again without having made a step in between")
