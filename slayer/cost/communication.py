"""Bytes that one GPU sends for a step (ZeRO: arXiv 1910.02054, section 7), each collective in a ring: (N − 1)/N of what it moves."""

from __future__ import annotations

from slayer.cost.layout import Layout
from slayer.cost.tensors import TrainedTensors


def traffic_bytes(tensors: TrainedTensors, layout: Layout) -> float:
    """Bytes per GPU and step.

    Without ZeRO and with stage 1 gradients are reduced once a step and what trains is spread once; stage 2 reduces after every micro-batch. Stage 3
    fetches all weights, frozen ones too, for both passes of every micro-batch: frozen weights that stay whole are never sent.
    """
    trained, everything = tensors.trained, tensors.parameters
    moved = {
        0: 2 * trained,
        1: 2 * trained,
        2: (layout.accumulation + 1) * trained,
        3: layout.accumulation * (2 * everything + trained),
    }[layout.zero_stage]
    return layout.value_bytes * moved * (layout.gpus - 1) / layout.gpus
