"""What a forward pass keeps for the backward pass, in transformers' Llama family over packed rows.

Counted as autograd keeps it (a storage once, parameters left out), measured in tests with saved_tensors_hooks. RMSNorm computes in fp32
and keeps its input in fp32; attention over packed rows takes a mask, which scaled_dot_product_attention turns into numbers anew in every
layer, and with which keys and values are repeated for all query heads; SwiGLU keeps gate, its activation and up. A trained matrix keeps its
input too, and under ZeRO-3 a frozen one as well (DeepSpeed's own linear layer, deepspeed/runtime/zero/linear.py). Layers below the first trained one
keep nothing.
"""

from __future__ import annotations

from slayer.cost.layout import Layout
from slayer.cost.tensors import TrainedTensors
from slayer.surgery.families import EMBEDDINGS, HEAD, is_norm
from slayer.surgery.shape import ModelShape

FP32 = 4
LOGIT_COPIES = 3
"""fp32 values per logit where the loss begins its way back: the log-probabilities and two gradients of their size."""


def activation_bytes(tensors: TrainedTensors, layout: Layout) -> float:
    """Bytes that one micro-batch keeps from its forward to its backward pass, without the loss. With checkpointing: the input of every layer."""
    model, value, blocks = tensors.model, layout.value_bytes, _blocks(tensors, layout)
    per_token = _around(tensors, layout, below=bool(blocks))
    if blocks:
        per_token += 2 * model.head_dim * value  # cosines and sines of the positions, for all layers
    if layout.activation_checkpointing:  # recomputing takes the boolean mask, too
        per_token += layout.sequence_length + model.hidden_size * value * len(blocks)
    else:
        per_token += sum(blocks)
    return layout.micro_batch_tokens * per_token


def recomputed_bytes(tensors: TrainedTensors, layout: Layout) -> float:
    """Bytes of the layer that keeps most, recomputed once the loss is gone; nothing without checkpointing."""
    return layout.micro_batch_tokens * max(_blocks(tensors, layout), default=0.0) if layout.activation_checkpointing else 0.0


def logits_bytes(tensors: TrainedTensors, layout: Layout) -> float:
    """Bytes of the loss at its peak, when all activations are still held."""
    return float(layout.micro_batch_tokens * tensors.model.vocabulary * FP32 * LOGIT_COPIES)


def first_with_backward(tensors: TrainedTensors) -> int | None:
    """The lowest layer that the backward pass reaches; the number of layers where only what is behind them trains, None where nothing does."""
    if not tensors.factors:
        return None
    if EMBEDDINGS in tensors.factors:
        return 0
    return next((layer for layer in range(tensors.n_layers) if tensors.trained_in(layer)), tensors.n_layers)


def _blocks(tensors: TrainedTensors, layout: Layout) -> list[float]:
    """Bytes per token of each layer that the backward pass reaches."""
    first = first_with_backward(tensors)
    if first is None:
        return []
    embeds = EMBEDDINGS in tensors.factors
    return [_block(tensors, layout, layer, input_has_gradient=layer > first or embeds) for layer in range(first, tensors.n_layers)]


def _block(tensors: TrainedTensors, layout: Layout, layer: int, *, input_has_gradient: bool) -> float:
    """Bytes per token that a layer keeps."""
    model, value = tensors.model, layout.value_bytes
    names = tensors.trained_in(layer)
    trains_norms = any(is_norm(name) for name in names)
    keeps_inputs = any(not is_norm(name) for name in names) or layout.zero_stage == 3
    hidden, inner = model.hidden_size, model.intermediate_size
    norm_input = FP32 * (hidden + 1)
    kept = norm_input * (1 + input_has_gradient) + _attention(model, layout, trains_norms) + 3 * value * inner
    if trains_norms:
        kept += 2 * value * hidden
    if keeps_inputs:
        kept += 2 * value * hidden + value * inner
    return float(kept)


def _attention(model: ModelShape, layout: Layout, trains_norms: bool) -> float:
    """Queries, keys and values of all heads, what comes out, its logarithm of the sum, the mask; and the norms of heads where there are any."""
    value = layout.value_bytes
    # A single head of keys is repeated as a view, several are copied.
    keys = model.attention_width if model.key_value_heads > 1 else model.key_value_width
    kept = 2 * value * (model.attention_width + keys) + FP32 * model.heads + value * layout.sequence_length
    if "self_attn.q_norm.weight" in model.block:
        width = model.attention_width + model.key_value_width
        kept += FP32 * (width + model.heads + model.key_value_heads) + (value * width if trains_norms else 0)
    return float(kept)


def _around(tensors: TrainedTensors, layout: Layout, *, below: bool) -> float:
    """Bytes per token of the final norm and the head. `below`: the backward pass goes on into the layers."""
    model, value = tensors.model, layout.value_bytes
    norm_trains = "model.norm.weight" in tensors.factors
    head_trains = HEAD in tensors.factors or (model.tied and EMBEDDINGS in tensors.factors)
    kept = FP32 * (model.hidden_size + 1) if below else 0
    kept += value * model.hidden_size * (norm_trains + (head_trains or layout.zero_stage == 3))
    return float(kept)
