"""How many steps, at which learning rate and weight decay, and which tensors decay: pure functions of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from slayer.config import TrainConfig

if TYPE_CHECKING:
    import torch


def planned_steps(train: TrainConfig, sequence_length: int, steps_per_domain_epoch: int | None) -> int:
    """Steps of the whole run: the smaller of max_steps and max_tokens; one pass over the domain text when neither is set.

    ValueError when neither is set and the domain text has no known end (None); the configuration is refused before that.
    """
    limits = []
    if train.max_steps is not None:
        limits.append(train.max_steps)
    if train.max_tokens is not None:
        limits.append(max(train.max_tokens // (train.batch_rows * sequence_length), 1))
    if not limits and steps_per_domain_epoch is None:
        raise ValueError("a streamed text has no known end: max_steps or max_tokens must be set")
    return min(limits) if limits else int(steps_per_domain_epoch or 0)


def learning_rate(step: int, total_steps: int, train: TrainConfig) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then cosine, constant, or warm-up–stable–decay.

    Cosine: Loshchilov & Hutter, arXiv 1608.03983; WSD: Hu et al., arXiv 2404.06395 (linear decay over the last share).
    """
    peak, floor = train.learning_rate, train.learning_rate * train.final_lr_share
    warmup_steps = math.ceil(train.warmup_share * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    match train.schedule:
        case "constant":
            return peak
        case "cosine":
            progress = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
            return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            decay_steps = max(math.ceil(train.decay_share * total_steps), 1)
            into_decay = step - (total_steps - decay_steps)
            decayed = max(into_decay + 1, 0) / decay_steps
            return peak * (1 - decayed) + floor * decayed  # so the last step's rate is the floor itself, however small


def weight_decay(step: int, train: TrainConfig) -> float:
    """Weight decay of 0-based `step`: none in the first.

    There a new block gets gradients at its zeroed projections only; decay would move its other matrices, which have learnt nothing yet.
    """
    return train.weight_decay if step > 0 else 0.0


def parameter_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay (`decays`); norms and biases (one dimension) do not. Frozen tensors must not be passed at all."""
    listed = list(parameters)
    # ds_shape: under ZeRO-3 a partitioned tensor's own shape is empty
    matrices = [parameter for parameter in listed if len(getattr(parameter, "ds_shape", parameter.shape)) > 1]
    vectors = [parameter for parameter in listed if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay, "decays": True}, {"params": vectors, "weight_decay": 0.0, "decays": False}]
    return [group for group in groups if group["params"]]
