"""What really is in memory: bytes of live tensors on a CPU, storage by storage. The other side of the estimates of slayer/cost/memory.py."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slayer.config import RunConfig, ShapeConfig
from slayer.cost.layout import Layout
from slayer.cost.memory import memory_per_gpu
from slayer.cost.tensors import trained_tensors
from slayer.forward import logits_of
from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import shape_from_sizes
from slayer.training.engine import TrainingEngine
from slayer.training.optim import TrainedGroup
from slayer.training.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class FullRows:
    """Rows of one document each, int64 [B, L]."""

    input_ids_BL: torch.Tensor
    labels_BL: torch.Tensor
    positions_BL: torch.Tensor
    documents_BL: torch.Tensor


def full_rows(rows: int, length: int, vocabulary: int) -> FullRows:
    """Random tokens with a label each."""
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(ids)
    return FullRows(input_ids_BL=ids, labels_BL=ids.roll(-1, 1), positions_BL=zeros + torch.arange(length), documents_BL=zeros)


def open_sized_engine(sizes: ShapeConfig, plan: LayerPlan, config: RunConfig, ranks: Ranks, stage: int = 0) -> TrainingEngine:
    """An engine over a random model of these sizes and as many layers as the plan has, with what trains in a freeze stage."""
    import transformers

    name = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[sizes.architecture]
    shape = getattr(transformers, name)(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size, num_hidden_layers=plan.n_layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_value_heads, head_dim=sizes.head_dim,
        tie_word_embeddings=sizes.tied_embeddings,
        sliding_window=None,
    )  # fmt: skip
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[config.engine.precision]
    model = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa").to(ranks.device)
    names = trained_tensors(shape_from_sizes(sizes), plan, stage).factors
    return TrainingEngine(model, [TrainedGroup(names=tuple(names))], config, ranks)


def storage_bytes(tensors: Iterable[torch.Tensor | None], without: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the storages behind these tensors, each once, without those behind others."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in without}
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage() if tensor is not None else None
        if storage is not None and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


@dataclass
class Saved:
    """Storages that autograd keeps, each once, those of parameters left out, gathered ones too."""

    of_parameters: set[int]
    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """All of them."""
        return sum(storage.nbytes() for storage in self.storages.values())


@contextmanager
def saved_tensors(parameters: Iterable[torch.Tensor]) -> Iterator[Saved]:
    """What autograd saves in the body."""
    saved = Saved({parameter.untyped_storage().data_ptr() for parameter in parameters})

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in saved.of_parameters and not hasattr(tensor, "ds_id"):
            saved.storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that come to be in the body and are not gone yet, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in before and storage._cdata not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= n_bytes

        weakref.finalize(storage, gone)


def engine_state(engine: TrainingEngine) -> dict[str, int]:
    """Bytes of what an engine keeps between steps: weights, and masters with moments."""
    weights = [engine.resident(name) for name in engine.names]
    states = [value for state in engine._adamw.state.values() for value in state.values() if isinstance(value, torch.Tensor) and value.dim() > 0]
    masters = [tensor for group in engine._adamw.param_groups for tensor in group["params"]]
    if engine.stage == 3:
        masters = list(engine._engine.optimizer.fp32_partitioned_groups_flat)
    return {"weights": storage_bytes(weights), "optimizer": storage_bytes([*masters, *states], without=weights)}


def engine_gradients(engine: TrainingEngine) -> int:
    """Bytes of the gradients that an engine holds between the backward pass and the update, buckets left out."""
    optimizer = engine._engine.optimizer
    if engine.stage == 3:
        return storage_bytes([optimizer.grad_partitions_flat_buffer])
    partitioned = [tensor for held in getattr(optimizer, "averaged_gradients", {}).values() for tensor in held or ()]
    return storage_bytes([*(parameter.grad for parameter in engine._parameters.values()), *partitioned])


def layout_of(config: RunConfig, ranks: Ranks) -> Layout:
    """How a configuration makes a step on these ranks."""
    engine = config.engine
    return Layout(
        zero_stage=engine.zero_stage, gpus=ranks.world, precision=engine.precision, micro_batch_rows=engine.micro_batch_rows,
        accumulation=config.train.batch_rows // (engine.micro_batch_rows * ranks.world), sequence_length=config.data.sequence_length,
        activation_checkpointing=engine.activation_checkpointing,
    )  # fmt: skip


def comparison(sizes: ShapeConfig, plan: LayerPlan, config: RunConfig, ranks: Ranks, stage: int = 0) -> dict[str, tuple[float, float]]:
    """(estimated, measured) bytes of every part that can be told apart. Activations are those up to the logits, where autograd alone keeps them;
    passes: all that comes to be in a forward and a backward pass, at its peak."""
    tensors, layout = trained_tensors(shape_from_sizes(sizes), plan, stage), layout_of(config, ranks)
    memory = memory_per_gpu(tensors, layout)
    rows = full_rows(layout.micro_batch_rows, layout.sequence_length, sizes.vocabulary)
    engine = open_sized_engine(sizes, plan, config, ranks, stage)
    try:
        state = engine_state(engine)
        found: dict[str, tuple[float, float]] = {"weights": (memory.weights, state["weights"]), "optimizer": (memory.optimizer, state["optimizer"])}
        if not layout.activation_checkpointing:
            found["activations"] = (memory.activations, forward_saves(engine, rows))
        held = []
        for step in range(2):  # ZeRO-3 learns the order of layers in the first passes, and keeps weights for the second time from then on
            for _ in range(engine.accumulation):
                engine.forward_backward(rows, rows.labels_BL.numel())
                held.append(engine_gradients(engine))
            engine.update(step, 0.0, 0.0)
        found["gradients"] = (memory.gradients, max(held))
        persistent = storage_bytes(engine._parameters.values(), without=map(engine.resident, engine.names)) if engine.stage == 3 else 0
        with LiveBytes() as live:
            engine.forward_backward(rows, rows.labels_BL.numel())
        # ZeRO-3 has room for its gradients from the beginning.
        arriving = 0.0 if layout.zero_stage == 3 else memory.gradients + memory.buffers
        behind_the_loss = memory.recomputed + arriving if layout.activation_checkpointing else 0.0
        found["passes"] = (memory.gathered + memory.activations + max(memory.logits, behind_the_loss), live.peak + persistent)
    finally:
        engine.close()
    return found


def forward_saves(engine: TrainingEngine, rows: Any) -> int:
    """Bytes that autograd keeps of a forward pass, up to the logits."""
    with saved_tensors(engine.resident(name) for name in engine.names) as saved:
        logits = logits_of(engine._engine, rows, engine.model_config)
    assert logits.requires_grad
    return saved.n_bytes
