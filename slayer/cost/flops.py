"""Freeze-aware arithmetic cost of training: what frozen layers do not need is not counted.

Per weight of a matrix and token a linear layer costs 2 FLOP forward, 2 for the gradient of its input (only above the first trained
block) and 2 for the gradient of its weight (only where it trains). Causal attention costs 2·L·width forward per block and
twice that backward. The output head needs its weight gradient only when it trains. Norms cost nothing of their own, but the
backward pass reaches down to the lowest that trains.
"""

from __future__ import annotations

from dataclasses import dataclass

from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFlops:
    """FLOP per token of one pass: matrices of the layers, attention, output head."""

    linear: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All three."""
        return self.linear + self.attention + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlops:
    """FLOP per trained token of one step. `recompute` is what activation checkpointing adds; it is no part of the total, nor of MFU."""

    forward: PassFlops
    input_gradients: PassFlops
    weight_gradients: PassFlops
    recompute: float

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward.total + self.input_gradients.total + self.weight_gradients.total


def layers_with_backward(plan: LayerPlan) -> int:
    """How many layers, counted from the last, the backward pass goes through."""
    if plan.trains_everything or "embeddings" in plan.parts:
        return plan.n_layers
    return plan.n_layers - min(plan.trainable, default=plan.n_layers)


def train_flops(shape: ModelShape, plan: LayerPlan, sequence_length: int) -> TrainFlops:
    """FLOP per trained token, pass by pass, with rows of `sequence_length` tokens.

    Of a staged plan give `plan.at_stage(stage)`; the whole plan costs as if all its parts trained together.
    """
    head_trains = plan.trains_everything or "head" in plan.parts or (shape.tied and "embeddings" in plan.parts)
    backward = layers_with_backward(plan)
    linear, attention, head = 2.0 * shape.block_matrices, 2.0 * sequence_length * shape.attention_width, 2.0 * shape.head_parameters
    return TrainFlops(
        forward=PassFlops(linear=linear * plan.n_layers, attention=attention * plan.n_layers, head=head),
        # Below a head that trains alone nothing asks for its input's gradient.
        input_gradients=PassFlops(linear=linear * backward, attention=2 * attention * backward, head=head * bool(backward)),
        weight_gradients=PassFlops(linear=linear * len(plan.whole_layers), attention=0.0, head=head * head_trains),
        recompute=(linear + attention) * backward,
    )


def train_flops_per_token(shape: ModelShape, plan: LayerPlan, sequence_length: int) -> float:
    """FLOP per trained token of one step (forward and backward); see `train_flops`."""
    return train_flops(shape, plan, sequence_length).total
