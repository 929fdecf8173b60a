"""One run, complete."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from slayer.config.estimate import EstimateConfig
from slayer.config.launching import LauncherConfig, TrackerConfig
from slayer.config.layers import ExpansionConfig, FreezeConfig, ModelConfig, PlanScore
from slayer.config.scoring import HeldoutConfig, SuiteConfig
from slayer.config.section import Section
from slayer.config.text import DataConfig
from slayer.config.training import EngineConfig, GuardConfig, TrainConfig, WatchdogConfig


class RunConfig(Section):
    """One run, complete."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of data order and random initialisation")
    run: str = Field(description="name of the run folder; default: made from the overrides")
    runs_dir: str = Field("runs", description="folder of run folders")
    dry_run: bool = Field(False, description="stop after the plan and the estimate; nothing is downloaded")
    objective: Literal["domain_bits_per_byte", "replay_bits_per_byte", "mean_bits_per_byte"] = Field(
        "domain_bits_per_byte", description="the held-out score returned to a sweeper (lower is better)"
    )
    model: ModelConfig
    expansion: ExpansionConfig
    prune: int = Field(0, ge=0, description="number of base layers removed")
    prune_by: Literal["last", "last_but_final", "explicit", PlanScore] = Field(
        "last", description="which layers are removed: by place, or those that matter least by a score"
    )
    prune_layers: list[int] = Field(default_factory=list, description="prune_by=explicit only: the 0-based base layers to remove")
    score_tokens: int = Field(4_096, ge=1_000, description="tokens of training text that score layers (prune_by, expansion.score)")
    tail: Literal["auto", "average", "train", "frozen"] = Field(
        "auto", description="the block that is last after pruning; auto: average when prune_by=last removes layers, else frozen"
    )
    freeze: FreezeConfig
    warm_start: str | None = Field(
        None, description="another run's folder: its result, made by the same plan, is where the trained weights of this run start"
    )
    data: DataConfig
    engine: EngineConfig
    train: TrainConfig
    guard: GuardConfig = Field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    heldout: HeldoutConfig = Field(default_factory=HeldoutConfig)
    suite: SuiteConfig = Field(default_factory=lambda: SuiteConfig(name="heldout"))
    tracker: TrackerConfig = Field(default_factory=TrackerConfig)
    launcher: LauncherConfig = Field(default_factory=LauncherConfig)
    estimate: EstimateConfig = Field(default_factory=EstimateConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs_dir) / self.run
