"""Estimated memory against live tensors: engines over small models make real passes on a CPU, and every part is counted storage by storage.

Models are large enough (width 256, rows of 256) that constants of a few bytes do not matter. One document a row: packing changes no size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from live_memory import comparison, forward_saves, full_rows, layout_of, open_sized_engine
from published_shapes import config_of, plan_of, staged_plan

from slayer.config import ShapeConfig
from slayer.cost import memory
from slayer.cost.activations import activation_bytes
from slayer.cost.tensors import trained_tensors
from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import shape_from_sizes
from slayer.training.engine import deepspeed_settings
from slayer.training.ranks import Ranks

SIZES = {"layers": 6, "hidden_size": 256, "intermediate_size": 640, "heads": 4, "key_value_heads": 2, "head_dim": 64, "vocabulary": 2048}


def sizes_of(architecture: str = "llama", **changes: Any) -> ShapeConfig:
    return ShapeConfig.model_validate({"architecture": architecture, **SIZES, **changes})


@pytest.fixture(autouse=True)
def plain_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 replaces torch's linear layer for the rest of a process, and keeps other tensors in it."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)


@pytest.mark.parametrize(
    ("stage", "precision", "checkpointing"),
    [
        (0, "bf16", False), (0, "fp32", True), (1, "fp32", False), (1, "bf16", True), (2, "bf16", False), (2, "fp32", True), (3, "fp32", False),
        (3, "bf16", True),
    ],
)  # fmt: skip
def test_every_part_is_within_ten_percent(stage: int, precision: str, checkpointing: bool, ranks: Ranks) -> None:
    config = config_of(
        sequence_length=256, batch_rows=2, zero_stage=stage, precision=precision, micro_batch_rows=2, activation_checkpointing=checkpointing
    )
    found = comparison(sizes_of(), plan_of(6, "shallow_half", prune=1), config, ranks)
    assert set(found) >= {"weights", "gradients", "optimizer", "passes"} and ("activations" in found) is not checkpointing
    for part, (estimated, measured) in found.items():
        assert measured == pytest.approx(estimated, rel=0.1 if part == "passes" else 0.02), part


PLANS = {
    "full": plan_of(6, "even", "none"),
    "existing": plan_of(6, "none", "existing_layers", (3,)),
    "norms": staged_plan(6, ("norms",)),
    "norms and new": staged_plan(6, ("new", "norms")),
    "head": staged_plan(6, ("head",)),
    "embeddings": staged_plan(6, ("tail", "embeddings")),
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(("architecture", "plan"), [("qwen3", "full"), ("qwen3", "norms"), ("qwen2", "norms and new"), ("mistral", "existing"),
    ("llama", "head"), ("llama", "embeddings")])  # fmt: skip
def test_activations_follow_what_trains(architecture: str, plan: str, stage: int, ranks: Ranks) -> None:
    """Within 2 % of what saved_tensors_hooks see, parameters left out."""
    assert_saves(sizes_of(architecture), PLANS[plan], ranks, zero_stage=stage)


@pytest.mark.parametrize("changes", [{"key_value_heads": 4}, {"heads": 8, "head_dim": 32, "key_value_heads": 1}, {"tied_embeddings": True}])
def test_activations_follow_the_shape(changes: dict[str, Any], ranks: Ranks) -> None:
    assert_saves(sizes_of(**changes), PLANS["full"], ranks, precision="fp32", sequence_length=128)


def assert_saves(sizes: ShapeConfig, plan: LayerPlan, ranks: Ranks, *, sequence_length: int = 256, **engine: Any) -> None:
    config = config_of(sequence_length=sequence_length, batch_rows=2, micro_batch_rows=2, **engine)
    estimated = activation_bytes(trained_tensors(shape_from_sizes(sizes), plan), layout_of(config, ranks))
    opened = open_sized_engine(sizes, plan, config, ranks)
    try:
        assert forward_saves(opened, full_rows(2, sequence_length, sizes.vocabulary)) == pytest.approx(estimated, rel=0.02)
    finally:
        opened.close()


def test_buckets_and_thresholds_are_deepspeeds_own() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    settings = deepspeed_settings(config_of(zero_stage=3), 1, 10**12)["zero_optimization"]
    zero = DeepSpeedZeroConfig(**settings)
    assert zero.reduce_bucket_size == memory.BUCKET
    assert (zero.param_persistence_threshold, zero.prefetch_bucket_size, zero.max_reuse_distance) == (
        memory.PERSISTS, memory.PREFETCH, memory.REUSE_DISTANCE,
    )  # fmt: skip
