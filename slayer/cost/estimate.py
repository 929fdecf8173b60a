"""What a run will need and take, before anything starts: a pure function of model shape, plan and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from slayer.config import RunConfig
from slayer.cost.devices import DEVICES, Device
from slayer.cost.flops import TrainFlops, train_flops
from slayer.cost.layout_cost import LayoutCost, layout_cost, run_layout
from slayer.cost.memory import MASTER, MOMENTS
from slayer.cost.recommendation import GPU_COUNTS, ZERO_STAGES, Recommendation, candidates, recommend
from slayer.cost.tensors import TrainedTensors, trained_tensors
from slayer.surgery.families import layer_of
from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import ModelShape

UNSET_TOKENS = 1_000_000_000
"""What times are told for where the length of the run is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameters of the expanded model: all, those that train at any time, those that never do; of the trained, those in new blocks and the tail."""

    total: int
    trained: int
    frozen: int
    new_blocks: int
    tail: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCost:
    """A run on GPUs of one kind: the layout to take there, None where none fits on any number of them, and time at the stated MFU."""

    device: Device
    asked_fits: bool
    recommended: Recommendation | None
    tokens_per_second: float
    seconds: float
    gpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Everything that can be said of a run's cost. `tokens_known`: the run's own length, not a round number."""

    gpus: int
    parameters: Parameters
    flops: TrainFlops
    tokens: int
    tokens_known: bool
    mfu: float
    checkpoint_bytes: int
    asked: LayoutCost
    layouts: tuple[LayoutCost, ...]
    devices: tuple[DeviceCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: results.json's `estimate`."""
        plain = ("gpus", "tokens", "tokens_known", "mfu", "checkpoint_bytes")
        return {
            **{name: getattr(self, name) for name in plain}, "parameters": asdict(self.parameters),
            "flops_per_token": {**asdict(self.flops), "total": self.flops.total}, "asked": self.asked.to_dict(),
            "layouts": [cost.to_dict() for cost in self.layouts], "devices": [_device_values(cost) for cost in self.devices],
        }  # fmt: skip


def _device_values(found: DeviceCost) -> dict[str, Any]:
    best = found.recommended
    recommended = None
    if best is not None:
        recommended = {**{name: getattr(best, name) for name in ("spare_bytes", "fewer_gpus", "override", "sentence")}, **best.cost.to_dict()}
    plain = ("asked_fits", "tokens_per_second", "seconds", "gpu_hours")
    return {**asdict(found.device), **{name: getattr(found, name) for name in plain}, "recommended": recommended}


def estimate(shape: ModelShape, plan: LayerPlan, config: RunConfig, *, gpus: int, tokens: int | None) -> Estimate:
    """The cost of a run on `gpus` GPUs over `tokens` tokens (None: not known)."""
    stages = [trained_tensors(shape, plan, stage) for stage in range(plan.n_stages)]
    length = tokens if tokens is not None else UNSET_TOKENS
    flops = mean_flops([train_flops(shape, plan.at_stage(stage), config.data.sequence_length) for stage in range(plan.n_stages)], plan, length)
    tried = [candidates(stages, config, count) for count in (gpus, *(more for more in GPU_COUNTS if more > gpus))]
    asked = layout_cost(stages, run_layout(config, gpus))
    devices = []
    for device in (DEVICES[name] for name in config.estimate.devices):
        found = (recommend(layouts, config, device, asked_gpus=gpus) for layouts in tried)
        devices.append(_device_cost(device, asked, next(filter(None, found), None), flops, config, length))
    return Estimate(
        gpus=gpus, parameters=_parameters(plan, stages), flops=flops, tokens=length, tokens_known=tokens is not None, mfu=config.estimate.mfu,
        checkpoint_bytes=checkpoint_bytes(stages), asked=asked, devices=tuple(devices),
        layouts=tuple(layout_cost(stages, run_layout(config, count, stage)) for count in sorted({*GPU_COUNTS, gpus}) for stage in ZERO_STAGES),
    )  # fmt: skip


def needed_bytes(shape: ModelShape, plan: LayerPlan, config: RunConfig, ranks: int) -> float:
    """Peak of each rank of a run as its configuration asks."""
    stages = [trained_tensors(shape, plan, stage) for stage in range(plan.n_stages)]
    return layout_cost(stages, run_layout(config, ranks)).needed_bytes


def _device_cost(
    device: Device, asked: LayoutCost, recommended: Recommendation | None, flops: TrainFlops, config: RunConfig, tokens: int
) -> DeviceCost:
    layout = recommended.cost.layout if recommended is not None else asked.layout
    per_token = flops.total + (flops.recompute if layout.activation_checkpointing else 0.0)
    rate = layout.gpus * device.peak_flops * config.estimate.mfu / per_token
    return DeviceCost(
        device=device, asked_fits=asked.needed_bytes <= device.memory_bytes, recommended=recommended, tokens_per_second=rate,
        seconds=tokens / rate, gpu_hours=layout.gpus * tokens / rate / 3600,
    )  # fmt: skip


def checkpoint_bytes(stages: Sequence[TrainedTensors]) -> int:
    """A checkpoint at its largest: fp32 master and moments of what trains, and the masters of what trained in a stage before."""
    largest, before = 0, set[str]()
    for tensors in stages:
        retired = tensors.size_of(before - set(tensors.factors))
        largest = max(largest, (MASTER + MOMENTS) * tensors.trained + MASTER * retired)
        before |= set(tensors.factors)
    return largest


def _parameters(plan: LayerPlan, stages: Sequence[TrainedTensors]) -> Parameters:
    every = stages[0]
    trained = {name for tensors in stages for name in tensors.factors}
    layers = {name: at[0] for name in trained if (at := layer_of(name)) is not None}
    new_blocks = every.size_of(name for name, layer in layers.items() if layer in plan.new_indices)
    tail = every.size_of(name for name, layer in layers.items() if layer == plan.tail_index)
    total, trains = every.parameters, every.size_of(trained)
    return Parameters(total=total, trained=trains, frozen=total - trains, new_blocks=new_blocks, tail=tail)


def mean_flops(flops: Sequence[TrainFlops], plan: LayerPlan, tokens: int) -> TrainFlops:
    """FLOP per token of a staged plan: the mean over the tokens of each stage, as far as the run reaches."""
    if len(flops) == 1:
        return flops[0]
    ends = [min(stage.until_tokens if stage.until_tokens is not None else tokens, tokens) for stage in plan.stages]
    shares = [(end - start) / tokens for start, end in zip([0, *ends], ends, strict=False)]

    def mean(values: Sequence[Any]) -> Any:
        if isinstance(values[0], float):
            return sum(share * value for share, value in zip(shares, values, strict=True))
        return replace(values[0], **{name: mean([getattr(value, name) for value in values]) for name in type(values[0]).__dataclass_fields__})

    found: TrainFlops = mean(list(flops))
    return found
