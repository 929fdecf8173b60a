"""The layout to take on GPUs of one kind: every stage, micro-batch and use of checkpointing is tried, and of those that fit the cheapest is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from slayer.config import RunConfig
from slayer.cost.devices import Device
from slayer.cost.layout_cost import LayoutCost, layout_cost, run_layout
from slayer.cost.tensors import TrainedTensors

GPU_COUNTS = (1, 2, 4, 8, 16, 64)
ZERO_STAGES = (0, 1, 2, 3)
MOST_MICRO_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layout with what it costs, and the train.batch_rows that it divides."""

    cost: LayoutCost
    batch_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The cheapest layout that fits a device; `fewer_gpus` do not do. `override`: what is typed for it, empty where the run asks for it already."""

    cost: LayoutCost
    spare_bytes: float
    fewer_gpus: bool
    override: str
    sentence: str


def candidates(stages: Sequence[TrainedTensors], config: RunConfig, gpus: int) -> list[Candidate]:
    """Every layout on so many GPUs."""
    found = []
    for rows, batch_rows in _micro_batches(config.train.batch_rows, gpus):
        for stage in ZERO_STAGES:
            layout = replace(run_layout(config, gpus, stage), micro_batch_rows=rows, accumulation=batch_rows // (rows * gpus))
            cost = layout_cost(stages, layout)
            for recompute in (False, True):
                tried = replace(cost, layout=replace(layout, activation_checkpointing=recompute))
                found.append(Candidate(cost=tried, batch_rows=batch_rows))
    return found


def _micro_batches(batch_rows: int, gpus: int) -> list[tuple[int, int]]:
    """Micro-batches that divide the batch among so many GPUs, with that batch: the next larger one where it cannot be divided."""
    each = ceil(batch_rows / gpus)
    return [(rows, each * gpus) for rows in range(1, min(each, MOST_MICRO_BATCH_ROWS) + 1) if each % rows == 0]


def recommend(tried: Sequence[Candidate], config: RunConfig, device: Device, *, asked_gpus: int) -> Recommendation | None:
    """The cheapest of the candidates that fit: least recomputation first, then least traffic, then the largest micro-batch, then the stage that
    the run asks for, then least memory. None where none fits."""
    fitting = [one for one in tried if one.cost.needed_bytes <= device.memory_bytes]
    if not fitting:
        return None
    best = min(fitting, key=lambda one: _preference(one.cost, config.engine.zero_stage))
    spare = device.memory_bytes - best.cost.needed_bytes
    words = _words(best.cost, device, spare, asked_gpus)
    return Recommendation(
        cost=best.cost, spare_bytes=spare, fewer_gpus=best.cost.layout.gpus > asked_gpus, override=_override(best, config),
        sentence=f"{words}{_reason(best.cost, tried, device)}",
    )  # fmt: skip


def _preference(cost: LayoutCost, asked_stage: int) -> tuple[bool, float, int, bool, float]:
    layout = cost.layout
    return layout.activation_checkpointing, cost.traffic_bytes, -layout.micro_batch_rows, layout.zero_stage != asked_stage, cost.needed_bytes


def _words(cost: LayoutCost, device: Device, spare: float, asked_gpus: int) -> str:
    """zero2, micro-batch 4, no activation checkpointing fits 80 GB with 11 GB to spare."""
    layout = cost.layout
    where = "" if layout.gpus == asked_gpus else f"{layout.gpus} GPUs, "
    checkpointing = "activation checkpointing" if layout.activation_checkpointing else "no activation checkpointing"
    room = f"{device.memory_name} with {spare / 1e9:.0f} GB to spare"
    return f"{where}zero{layout.zero_stage}, micro-batch {layout.micro_batch_rows}, {checkpointing} fits {room}"


def _reason(cost: LayoutCost, tried: Sequence[Candidate], device: Device) -> str:
    """Why frozen weights should be whole on every GPU, or why they cannot be."""
    layout = cost.layout
    if layout.gpus == 1:
        return ""
    alike = [one.cost for one in tried if one.cost.layout == replace(layout, zero_stage=one.cost.layout.zero_stage)]
    others = {one.layout.zero_stage: one for one in alike}
    if layout.zero_stage == 3:
        short = others[2].needed_bytes - device.memory_bytes
        return f"; with weights whole on every GPU (zero2) {short / 1e9:.0f} GB are missing" if short > 0 else ""
    sent, by_zero3 = cost.traffic_bytes / 1e9, others[3].traffic_bytes / 1e9
    return f"; weights stay whole on every GPU, so {sent:.1f} GB are sent for a step and not the {by_zero3:.1f} of zero3"


def _override(best: Candidate, config: RunConfig) -> str:
    layout, engine = best.cost.layout, config.engine
    asked = {
        "engine": (f"zero{layout.zero_stage}", f"zero{engine.zero_stage}"),
        "engine.micro_batch_rows": (layout.micro_batch_rows, engine.micro_batch_rows),
        "engine.activation_checkpointing": (layout.activation_checkpointing, engine.activation_checkpointing),
        "train.batch_rows": (best.batch_rows, config.train.batch_rows),
    }
    return " ".join(f"{key}={str(value).lower()}" for key, (value, now) in asked.items() if value != now)
