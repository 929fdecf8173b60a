"""Removal: how much loss a model gains when one layer is left out. High means important; the cheapest layers are pruned first.

Leave-one-out over layers is the analysis of Llama SLayer (arXiv 2410.02330) and of Gromov et al. (2403.17887, depth ablation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slayer.forward import PackedRows, logits_of, nll_BL, split_rows


def removal_losses(
    model: Any,
    rows: PackedRows,
    *,
    chosen: Sequence[int] | None = None,
    micro_batch_rows: int = 4,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[float, list[float]]:
    """Loss of the whole model and loss without each of the `chosen` layers (None: every one), in nats per token over `rows`.

    The forward pass up to the removed layer is not repeated: its input is kept, and only the layers behind it run
    again, with the very arguments the model gave them. That needs half the layer passes of the plain way and gives the same bits.
    """
    import torch

    layers = model.model.layers
    chosen = range(len(layers)) if chosen is None else chosen
    totals = [0.0] * (len(chosen) + 1)
    count = 0
    parts = split_rows(rows, micro_batch_rows)
    with torch.inference_mode():
        for done, part in enumerate(parts):
            inputs, arguments, logits = _forward_with_inputs(model, part)
            totals[-1] += float(nll_BL(logits, part.labels_BL).double().sum())
            count += int((part.labels_BL != -100).sum())
            for place, removed in enumerate(chosen):
                hidden = inputs[removed]
                for layer, kwargs in zip(layers[removed + 1 :], arguments[removed + 1 :], strict=True):
                    hidden = _first(layer(hidden, **kwargs))
                logits = model.lm_head(model.model.norm(hidden))
                totals[place] += float(nll_BL(logits, part.labels_BL).double().sum())
                if on_progress is not None:
                    on_progress(f"without each of {len(chosen)} layers", done * len(chosen) + place + 1, len(parts) * len(chosen))
    losses = [total / max(count, 1) for total in totals]
    return losses[-1], losses[:-1]


def _forward_with_inputs(model: Any, part: PackedRows) -> tuple[list[Any], list[dict[str, Any]], Any]:
    inputs: list[Any] = []
    arguments: list[dict[str, Any]] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0])
        arguments.append(kwargs)

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.model.layers]
    try:
        logits = logits_of(model, part)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, arguments, logits


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
