"""The proof that runs on every build: inserting the new blocks changes no logit, and what the pruning costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slayer.forward import PackedRows, logits_of, nll_BL, split_rows
from slayer.surgery.plan import Keep, LayerPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was measured on real text. Losses are nats per token; the difference is the largest of any logit."""

    identity_max_difference: float
    base_loss: float
    start_loss: float
    sample_tokens: int

    @property
    def loss_jump(self) -> float:
        """What the surgery cost before any training, in nats per token."""
        return self.start_loss - self.base_loss


def prove(base: Any, expanded: Any, plan: LayerPlan, rows: PackedRows, micro_batch_rows: int = 2) -> Proof:
    """Compare two loaded models on packed rows of real text.

    Without pruning the expanded model itself is compared with the base. With pruning, the base is run once more with the
    expanded model's new blocks put in place (nothing removed), since pruning is meant to change logits and insertion is not.
    """
    import torch

    difference, base_total, start_total, count = 0.0, 0.0, 0.0, 0
    with torch.inference_mode():
        for part in split_rows(rows, micro_batch_rows):
            base_logits = logits_of(base, part)
            start_logits = logits_of(expanded, part)
            changed = bool(plan.pruned) or plan.tail == "average"
            inserted_logits = _logits_with_insertions(base, expanded, plan, part) if changed else start_logits
            difference = max(difference, float((inserted_logits.float() - base_logits.float()).abs().max()))
            base_total += float(nll_BL(base_logits, part.labels_BL).double().sum())
            start_total += float(nll_BL(start_logits, part.labels_BL).double().sum())
            count += int((part.labels_BL != -100).sum())
    return Proof(identity_max_difference=difference, base_loss=base_total / count, start_loss=start_total / count, sample_tokens=count)


def _logits_with_insertions(base: Any, expanded: Any, plan: LayerPlan, part: PackedRows) -> Any:
    from torch import nn

    whole = plan.without_pruning()
    new_blocks = [expanded.model.layers[index] for index in plan.new_indices]
    base_layers, base_kinds = base.model.layers, getattr(base.config, "layer_types", None)
    layers, kinds, taken = [], [], 0
    for entry in whole.entries:
        if isinstance(entry, Keep):
            layers.append(base_layers[entry.base_index])
        else:
            layers.append(new_blocks[taken])
            taken += 1
        kinds.append(base_kinds[entry.base_index if isinstance(entry, Keep) else entry.sources[0]] if base_kinds else None)
    n_base = base.config.num_hidden_layers
    try:
        base.model.layers = nn.ModuleList(layers)
        base.config.num_hidden_layers = len(layers)
        if base_kinds:
            base.config.layer_types = kinds
        return logits_of(base, part)
    finally:
        base.model.layers = base_layers
        base.config.num_hidden_layers = n_base
        if base_kinds:
            base.config.layer_types = base_kinds
