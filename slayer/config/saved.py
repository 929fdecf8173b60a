"""The frozen configuration on disk, and whether two of them are one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from slayer.config.run import RunConfig
from slayer.errors import CheckpointError

NOT_PART_OF_A_RUN: dict[str, Any] = {
    "dry_run": True, "runs_dir": True, "launcher": True, "tracker": True, "watchdog": True, "estimate": True, "guard": True,
    "model": {"shape": True}, "data": {"processes": True, "suite": True},
    "engine": {"zero_stage": True, "micro_batch_rows": True, "accumulation": True, "activation_checkpointing": True, "peak_teraflops": True},
    "train": {"keep_checkpoints": True, "keep_every": True, "max_failed_saves": True},
}  # fmt: skip
"""Keys that may differ between two starts of the same run: they do not change what is computed (of the guard: but for what it skips, where
a person decides that a run which it has stopped is to go on)."""


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` gives an equal object back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    OmegaConf.save(OmegaConf.create(config.model_dump()), temporary)
    temporary.replace(path)


def load_config(path: Path) -> RunConfig:
    """Read a configuration that `save_config` wrote; CheckpointError when it is not one."""
    try:
        return RunConfig.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, YAMLError) as error:  # pydantic's ValidationError is a ValueError
        raise CheckpointError(f"{path} is not a configuration of this version; start a new run with run=NAME") from error


def config_differences(saved: RunConfig, asked: RunConfig) -> list[tuple[str, object, object]]:
    """(key, saved value, asked value) of every difference that would change what a run computes."""
    return _differences(saved.model_dump(exclude=NOT_PART_OF_A_RUN), asked.model_dump(exclude=NOT_PART_OF_A_RUN), "")


def differing_keys(one: RunConfig, other: RunConfig) -> list[tuple[str, object, object]]:
    """(key, value, other value) of every difference at all."""
    return _differences(one.model_dump(), other.model_dump(), "")


def _differences(value: object, other: object, prefix: str) -> list[tuple[str, object, object]]:
    if isinstance(value, dict) and isinstance(other, dict):
        keys = sorted({*value, *other})
        return [found for key in keys for found in _differences(value.get(key), other.get(key), f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, value, other)] if value != other else []
