"""The one typed schema of a run. Hydra composes it once; every rank and every resume reads the frozen result.

Each field carries one line of help: `train.py --help` and docs/configuration.md are generated from them.
"""

from slayer.config.estimate import DeviceName, EstimateConfig
from slayer.config.evaluation import EvaluationConfig
from slayer.config.launching import LauncherConfig, TrackerConfig
from slayer.config.layers import (
    ExpansionConfig,
    FreezeConfig,
    FreezeStageConfig,
    Init,
    ModelConfig,
    PlanScore,
    RandomModelConfig,
    ShapeConfig,
    Strategy,
)
from slayer.config.run import RunConfig
from slayer.config.saved import NOT_PART_OF_A_RUN, config_differences, differing_keys, load_config, save_config
from slayer.config.scoring import AnalysisConfig, DecodingConfig, HeldoutConfig, SuiteConfig, TaskConfig
from slayer.config.section import Section
from slayer.config.text import CleaningConfig, DataConfig, SourceConfig, StageConfig
from slayer.config.training import EngineConfig, GuardConfig, TrainConfig, WatchdogConfig

__all__ = [
    "NOT_PART_OF_A_RUN",
    "AnalysisConfig",
    "CleaningConfig",
    "DataConfig",
    "DecodingConfig",
    "DeviceName",
    "EngineConfig",
    "EstimateConfig",
    "EvaluationConfig",
    "ExpansionConfig",
    "FreezeConfig",
    "FreezeStageConfig",
    "GuardConfig",
    "HeldoutConfig",
    "Init",
    "LauncherConfig",
    "ModelConfig",
    "PlanScore",
    "RandomModelConfig",
    "RunConfig",
    "Section",
    "ShapeConfig",
    "SourceConfig",
    "StageConfig",
    "Strategy",
    "SuiteConfig",
    "TaskConfig",
    "TrackerConfig",
    "TrainConfig",
    "WatchdogConfig",
    "config_differences",
    "differing_keys",
    "load_config",
    "save_config",
]
