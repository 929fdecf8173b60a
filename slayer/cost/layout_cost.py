"""What one layout costs on one GPU, of all freeze stages of a run the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

from slayer.config import RunConfig
from slayer.cost.communication import traffic_bytes
from slayer.cost.layout import Layout
from slayer.cost.memory import Memory, memory_per_gpu
from slayer.cost.tensors import TrainedTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutCost:
    """A layout with the memory of each GPU, without and with activation checkpointing, and the bytes it sends for a step."""

    layout: Layout
    memory: Memory
    checkpointed: Memory
    traffic_bytes: float

    @property
    def needed_bytes(self) -> float:
        """Peak of a GPU, as the layout asks."""
        return (self.checkpointed if self.layout.activation_checkpointing else self.memory).total

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **asdict(self.layout), "memory": _values(self.memory), "checkpointed": _values(self.checkpointed), "traffic_bytes": self.traffic_bytes,
            "needed_bytes": self.needed_bytes,
        }  # fmt: skip


def _values(memory: Memory) -> dict[str, float]:
    return {**asdict(memory), "state": memory.state, "total": memory.total}


def layout_cost(stages: Sequence[TrainedTensors], layout: Layout) -> LayoutCost:
    """Memory and traffic of a layout, in the freeze stage that needs most."""
    plain, checkpointed = (replace(layout, activation_checkpointing=on) for on in (False, True))
    return LayoutCost(
        layout=layout, memory=max((memory_per_gpu(stage, plain) for stage in stages), key=lambda memory: memory.total),
        checkpointed=max((memory_per_gpu(stage, checkpointed) for stage in stages), key=lambda memory: memory.total),
        traffic_bytes=max(traffic_bytes(stage, layout) for stage in stages),
    )  # fmt: skip


def run_layout(config: RunConfig, gpus: int, zero_stage: int | None = None) -> Layout:
    """The run's own layout on so many GPUs, or under another stage."""
    rows = config.engine.micro_batch_rows
    return Layout(
        zero_stage=config.engine.zero_stage if zero_stage is None else zero_stage, gpus=gpus, precision=config.engine.precision,
        micro_batch_rows=rows, accumulation=max(ceil(config.train.batch_rows / (rows * gpus)), 1), sequence_length=config.data.sequence_length,
        activation_checkpointing=config.engine.activation_checkpointing,
    )  # fmt: skip
