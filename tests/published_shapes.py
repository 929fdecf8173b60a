"""Models by their sizes in conf/model, and plans of them, as the tests of cost use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slayer.config import DataConfig, EngineConfig, ExpansionConfig, FreezeConfig, ModelConfig, RunConfig, TrainConfig
from slayer.surgery.plan import LayerPlan, build_plan
from slayer.surgery.shape import ModelShape, shape_from_sizes

CONF = Path(__file__).parents[1] / "conf" / "model"


def model_in_conf(name: str) -> ModelConfig:
    """The model section of a file in conf/model."""
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return ModelConfig.model_validate(values.get("model", values))


def shape_in_conf(name: str) -> ModelShape:
    """Sizes of a model that need not be here."""
    sizes = model_in_conf(name).shape
    assert sizes is not None
    return shape_from_sizes(sizes)


def plan_of(n_base: int, strategy: str, schedule: str = "originals", train_layers: tuple[int, ...] = (), **keys: Any) -> LayerPlan:
    """A plan; `prune` and `tail` go to it, other keys to expansion."""
    pruning = {key: keys.pop(key) for key in ("prune", "tail") if key in keys}
    freeze = FreezeConfig.model_validate({"schedule": schedule, "train_layers": list(train_layers)})
    return build_plan(n_base, ExpansionConfig.model_validate({"strategy": strategy, **keys}), freeze, **pruning)


def staged_plan(n_base: int, *stages: tuple[str, ...], strategy: str = "shallow_half", **keys: Any) -> LayerPlan:
    """A plan with these parts stage by stage, each five tokens long but for the last."""
    listed = [{"parts": dict.fromkeys(parts, 1.0), "until_tokens": 5 * n if n < len(stages) else None} for n, parts in enumerate(stages, 1)]
    freeze = FreezeConfig.model_validate({"schedule": "staged", "stages": listed})
    return build_plan(n_base, ExpansionConfig.model_validate({"strategy": strategy}), freeze, **keys)


def config_of(*, sequence_length: int = 4096, batch_rows: int = 64, estimate: dict[str, Any] | None = None, **engine: Any) -> RunConfig:
    """A run of which only rows, engine and estimate matter."""
    return RunConfig.model_validate(
        {
            "run": "test", "model": ModelConfig(name="test"), "expansion": ExpansionConfig(strategy="none"),
            "freeze": FreezeConfig(schedule="none"), "data": DataConfig(name="test", sources={}, sequence_length=sequence_length),
            "engine": EngineConfig(**{"zero_stage": 2, "micro_batch_rows": 1, **engine}), "train": TrainConfig(batch_rows=batch_rows),
            "estimate": estimate or {},
        }
    )  # fmt: skip
