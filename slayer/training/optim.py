"""How many steps, at which learning rate and weight decay, and which tensors decay: pure functions of the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGroup:
    """Tensors that train alike: with a factor of the learning rate, since the same step."""

    names: tuple[str, ...]
    lr_factor: float = 1.0
    since_step: int = 0

    def learning_rate(self, step: int, base_rate: float, warmup_steps: int) -> float:
        """Rate of this group at 0-based `step`; tensors that joined a run under way warm up on their own."""
        into = step - self.since_step
        rising = min((into + 1) / (warmup_steps + 1), 1.0) if self.since_step > 0 else 1.0
        return base_rate * self.lr_factor * rising


def trained_groups(stage_factors: Sequence[Mapping[str, float]], stage_steps: Sequence[int]) -> list[TrainedGroup]:
    """Groups of the newest freeze stage begun. `stage_factors` gives name → learning-rate factor of each stage, `stage_steps` the step
    at which each one begun so far did.

    A tensor trains since the first of the stages in a row that all train it: one that paused starts clean. Stages without a step do not count.
    """
    now = len(stage_steps) - 1
    members: dict[tuple[int, float], list[str]] = {}
    made_steps = [stage for stage in range(now) if stage_steps[stage] < stage_steps[stage + 1]]
    for name, factor in stage_factors[now].items():
        first = now
        for stage in reversed(made_steps):
            if name not in stage_factors[stage]:
                break
            first = stage
        members.setdefault((stage_steps[first], factor), []).append(name)
    return [TrainedGroup(names=tuple(names), lr_factor=factor, since_step=since) for (since, factor), names in members.items()]


def parameter_groups(groups: Sequence[TrainedGroup], parameters: Mapping[str, torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """torch's groups, each with its `trained` group: matrices decay (`decays`); norms and biases (one dimension) do not."""
    found: list[dict[str, Any]] = []
    for group in groups:
        # ds_shape: under ZeRO-3 a partitioned tensor's own shape is empty
        is_matrix = {name: len(getattr(parameters[name], "ds_shape", parameters[name].shape)) > 1 for name in group.names}
        for decays in (True, False):
            chosen = [parameters[name] for name in group.names if is_matrix[name] == decays]
            if chosen:
                found.append({"params": chosen, "weight_decay": weight_decay if decays else 0.0, "decays": decays, "trained": group})
    return found
