"""Bytes of one GPU by part, as our engine and DeepSpeed 0.19 hold them.

ZeRO (Rajbhandari et al., arXiv 1910.02054): stage 1 partitions masters and moments, 2 gradients too, 3 the weights as well. Only tensors that train
have gradients, masters and moments; frozen weights are whole on every GPU up to stage 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from slayer.cost.activations import activation_bytes, first_with_backward, logits_bytes, recomputed_bytes
from slayer.cost.layout import Layout
from slayer.cost.tensors import TrainedTensors
from slayer.surgery.families import EMBEDDINGS, HEAD, LAYER_PREFIX

MASTER, MOMENTS = 4, 8
"""fp32 bytes per trained weight: the master, and AdamW's two moments."""
BUCKET = 50_000_000
"""Elements of DeepSpeed's buckets at most (slayer/training/engine.py); what trains where that is less."""
PERSISTS, PREFETCH, REUSE_DISTANCE = 100_000, 50_000_000, 1_000_000_000
"""DeepSpeed's defaults of stage3_param_persistence_threshold, stage3_prefetch_bucket_size and stage3_max_reuse_distance, in elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one GPU. `buffers` are DeepSpeed's buckets and what it holds of gradients beyond its partition, `gathered` the weights that ZeRO-3
    fetches, `recomputed` the layer in hand under activation checkpointing, `update` what a step needs for a moment when activations are gone."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    gathered: float
    activations: float
    logits: float
    recomputed: float
    update: float

    @property
    def state(self) -> float:
        """What lasts: weights, gradients, masters and moments."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """The peak: loss, recomputed layers and update do not meet."""
        passes = self.gathered + self.activations + max(self.logits, self.recomputed)
        return self.state + self.buffers + max(passes, self.update)


def memory_per_gpu(tensors: TrainedTensors, layout: Layout) -> Memory:
    """Bytes of each GPU under a layout."""
    value, trained = layout.value_bytes, tensors.trained
    share = 1 / layout.gpus
    weights = tensors.parameters * (share if layout.zero_stage == 3 else 1)
    gradients = trained * (share if layout.zero_stage >= 2 else 1)
    return Memory(
        weights=value * weights, gradients=value * gradients, optimizer=trained * _optimizer_bytes(layout) * (share if layout.zero_stage else 1),
        buffers=value * _buffers(tensors, layout), gathered=value * _gathered(tensors, layout),
        activations=activation_bytes(tensors, layout), logits=logits_bytes(tensors, layout), recomputed=recomputed_bytes(tensors, layout),
        update=_update_bytes(layout) * max(map(sum, tensors.groups), default=0) * (share if layout.zero_stage else 1),
    )  # fmt: skip


def _optimizer_bytes(layout: Layout) -> int:
    """Bytes per trained weight. In fp32 the weights are their own masters without ZeRO; its stages copy them all the same."""
    has_master = layout.precision == "bf16" or layout.zero_stage > 0
    return MOMENTS + (MASTER if has_master else 0)


def _update_bytes(layout: Layout) -> int:
    """Bytes per trained weight of the largest group in a step: its gradients in fp32, and before that in one piece. Without ZeRO one or the other."""
    in_one_piece = layout.value_bytes if layout.zero_stage else 0
    return MASTER + (in_one_piece if layout.precision == "bf16" else 0)


def _buffers(tensors: TrainedTensors, layout: Layout) -> float:
    """Elements that DeepSpeed holds besides the state while gradients come in: a bucket, and with stage 3 another that is being reduced."""
    if layout.zero_stage == 0:
        return 0
    bucket = min(tensors.trained, BUCKET)
    if layout.zero_stage != 2:
        return bucket * (2 if layout.zero_stage == 3 else 1)
    # Stage 2 keeps gradients of whole tensors where a partition begins or ends inside one, and adds a micro-batch to those before it.
    kept = _cut_gradients(tensors, layout.gpus) * (2 if layout.accumulation > 1 else 1)
    return bucket + kept - tensors.trained / layout.gpus


def _cut_gradients(tensors: TrainedTensors, gpus: int) -> int:
    """Elements of the tensors that lie, in part or whole, in the partition of the GPU that holds most of them."""
    held = [0] * gpus
    for sizes in tensors.groups:
        partition = ceil(sum(sizes) / (2 * gpus)) * 2
        start = 0
        for size in sizes:
            for gpu in range(start // partition, (start + size - 1) // partition + 1):
                held[gpu] += size
            start += size
    return max(held)


def _gathered(tensors: TrainedTensors, layout: Layout) -> float:
    """Elements of weights that are whole at once under ZeRO-3, where the forward pass turns into the backward one and activations are at their
    most: small tensors always; of the others what is needed again soon, what is fetched ahead, and the one in use. One GPU gathers nothing."""
    first = first_with_backward(tensors)
    if layout.zero_stage != 3 or layout.gpus == 1 or first is None:
        return 0
    modules = _modules(tensors)
    needed_again = [size for layer, size in modules if layer >= first]
    rest, distance, kept = list(needed_again), 0, 0
    while rest and distance < REUSE_DISTANCE:
        size = rest.pop()
        kept += _unless_small(size)
        distance += 2 * size
    persistent = sum(size for _, size in modules if size <= PERSISTS)
    ahead = PREFETCH + max(rest, default=0)
    return persistent + min(kept + ahead, sum(map(_unless_small, needed_again)))


def _unless_small(size: int) -> int:
    return size if size > PERSISTS else 0


def _modules(tensors: TrainedTensors) -> list[tuple[int, int]]:
    """(layer, elements) of each tensor in the order of the forward pass; −1 before the layers, their number behind them."""
    embedding = [(-1, prod(tensors.shapes[EMBEDDINGS]))]
    blocks = [(layer, prod(shape)) for layer in range(tensors.n_layers) for shape in tensors.model.block.values()]
    behind = [
        (tensors.n_layers, prod(shape))
        for name, shape in tensors.shapes.items()
        if not name.startswith(LAYER_PREFIX) and name not in (EMBEDDINGS, HEAD)
    ]
    return [*embedding, *blocks, *behind, (tensors.n_layers, tensors.model.head_parameters)]
