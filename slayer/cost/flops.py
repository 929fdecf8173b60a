"""Freeze-aware arithmetic cost of training: what frozen layers do not need is not counted.

Per weight and token a linear layer costs 2 FLOP forward, 2 for the gradient of its input (only above the first trained
block) and 2 for the gradient of its weight (only where it trains). Causal attention costs 2·L·width forward per block and
twice that backward. The output head needs its weight gradient only when it trains. Norms cost nothing of their own, but the
backward pass reaches down to the lowest that trains.
"""

from __future__ import annotations

from slayer.surgery.families import ModelShape
from slayer.surgery.plan import LayerPlan

PEAK_TERAFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0, "L40S": 362.0, "4090": 165.0}
"""Dense bf16 peak by a word of the device's name (vendors' data sheets)."""


def train_flops_per_token(shape: ModelShape, plan: LayerPlan, sequence_length: int) -> float:
    """FLOP per trained token of one step (forward and backward), with rows of `sequence_length` tokens.

    Of a staged plan give `plan.at_stage(stage)`; the whole plan costs as if all its parts trained together.
    """
    embeddings_train, head_trains = plan.trains_everything or "embeddings" in plan.parts, plan.trains_everything or "head" in plan.parts
    head_trains = head_trains or (embeddings_train and shape.tied)
    lowest_trained = 0 if embeddings_train else min(plan.trainable, default=plan.n_layers)
    with_backward = plan.n_layers - lowest_trained
    # Below a head that trains alone nothing asks for its input's gradient.
    head_passes = 1 + bool(with_backward) + head_trains
    weights = shape.block_parameters * (plan.n_layers + with_backward + len(plan.whole_layers)) + shape.head_parameters * head_passes
    attention = sequence_length * shape.attention_width * (plan.n_layers + 2 * with_backward)
    return 2.0 * (weights + attention)


def peak_flops(device_name: str, configured_teraflops: float | None) -> float | None:
    """Peak FLOP per second of one device, None where unknown (a CPU without engine.peak_teraflops)."""
    if configured_teraflops is not None:
        return configured_teraflops * 1e12
    return next((peak * 1e12 for word, peak in PEAK_TERAFLOPS.items() if word in device_name), None)
