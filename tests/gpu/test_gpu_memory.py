"""Estimated memory against what CUDA's allocator saw. `make gpu` runs these."""

from __future__ import annotations

import pytest
import torch
from live_memory import full_rows, layout_of, open_sized_engine
from published_shapes import config_of, plan_of

from slayer.config import ShapeConfig
from slayer.cost.memory import memory_per_gpu
from slayer.cost.tensors import trained_tensors
from slayer.surgery.shape import shape_from_sizes
from slayer.training.ranks import Ranks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; torch sees none")]

SIZES = ShapeConfig(
    architecture="llama", layers=16, hidden_size=1024, intermediate_size=2816, heads=16, key_value_heads=4, head_dim=64, vocabulary=32_000
)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_peak_of_a_step(ranks: Ranks, stage: int, checkpointing: bool) -> None:
    plan = plan_of(16, "shallow_half", prune=2)
    config = config_of(sequence_length=2048, batch_rows=4, zero_stage=stage, micro_batch_rows=4, activation_checkpointing=checkpointing)
    memory = memory_per_gpu(trained_tensors(shape_from_sizes(SIZES), plan), layout_of(config, ranks))
    engine = open_sized_engine(SIZES, plan, config, ranks)
    rows = full_rows(4, 2048, SIZES.vocabulary)
    rows = type(rows)(**{name: getattr(rows, name).to(ranks.device) for name in rows.__dataclass_fields__})
    try:
        for step in range(2):
            torch.cuda.reset_peak_memory_stats()
            engine.forward_backward(rows, rows.labels_BL.numel())
            engine.update(step, 1e-4, 0.0)
        assert torch.cuda.max_memory_allocated() == pytest.approx(memory.total, rel=0.1)
    finally:
        engine.close()
