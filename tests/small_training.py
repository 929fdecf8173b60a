"""Small trainings for tests: a configuration, a Llama of a few thousand weights, and a loader of random rows.

The rows of a step hold different numbers of labels and of documents, so that nothing that is divided by the wrong count goes unseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from slayer.config import DataConfig, EngineConfig, ExpansionConfig, FreezeConfig, ModelConfig, RunConfig, TrainConfig
from slayer.data.order.loader import Batch
from slayer.training.checkpoint.saver import Saved, Saver
from slayer.training.engine import TrainingEngine
from slayer.training.loop import Callbacks, Course, Pace, train
from slayer.training.optim import TrainedGroup
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest
from slayer.training.state import Binding, RunState

STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
VOCABULARY, LENGTH = 61, 16
ZEROED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
BINDING = Binding(model="model of the test", data="data of the test")
PACE = Pace(flops_per_token=6000.0, peak_flops=None)


def run_config(
    stage: int = 2,
    precision: str = "fp32",
    *,
    micro_batch_rows: int = 2,
    batch_rows: int = 4,
    activation_checkpointing: bool = False,
    **settings: Any,
) -> RunConfig:
    """A run of which only engine and train matter here; `settings` are keys of train."""
    engine = EngineConfig(zero_stage=stage, precision=precision, micro_batch_rows=micro_batch_rows, activation_checkpointing=activation_checkpointing)
    return RunConfig(
        run="test", model=ModelConfig(name="test"), expansion=ExpansionConfig(strategy="none"), freeze=FreezeConfig(schedule="none"),
        data=DataConfig(name="test", sources={}, sequence_length=LENGTH), engine=engine, train=TrainConfig(batch_rows=batch_rows, **settings),
    )  # fmt: skip


def small_model(precision: str = "fp32", *, zeroed: Sequence[int] = (), **sizes: int) -> Any:
    """A random Llama of three layers whose every weight is random; the output projections of the layers `zeroed` are zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, **sizes}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=3, tie_word_embeddings=True, initializer_range=0.2, **shape)  # type: ignore[arg-type]
        )
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if any(name == f"model.layers.{layer}.{inner}" for layer in zeroed for inner in ZEROED):
                parameter.zero_()
    return model.to(torch.bfloat16 if precision == "bf16" else torch.float32)


def names_in_layer(model: Any, layer: int = 1) -> list[str]:
    """Names of a layer's parameters."""
    return [name for name, _ in model.named_parameters() if name.startswith(f"model.layers.{layer}.")]


@dataclass
class RandomRows:
    """A loader: the rows of step k are a pure function of k. `consumed` lists the first ids of every micro-batch it gave."""

    batch_rows: int = 4
    source_names: tuple[str, ...] = ("law", "general")
    consumed: list[tuple[int, list[list[int]]]] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """Row r of step k ends after a number of tokens of its own and holds two documents; the rest is padding without labels."""
        generator = torch.Generator().manual_seed(1000 + step)
        shape = (self.batch_rows, LENGTH)
        ids = torch.randint(0, VOCABULARY, shape, generator=generator)
        labels, positions, documents = torch.full(shape, -100), torch.zeros(shape, dtype=torch.long), torch.full(shape, 2)
        for row in range(self.batch_rows):
            cut = int(torch.randint(2, 7, (1,), generator=generator))
            end = int(torch.randint(9, LENGTH + 1, (1,), generator=generator))
            for number, (start, stop) in enumerate(((0, cut), (cut, end))):
                labels[row, start : stop - 1] = ids[row, start + 1 : stop]
                positions[row, start:stop] = torch.arange(stop - start)
                documents[row, start:stop] = number
            positions[row, end:] = torch.arange(LENGTH - end)
        sources = torch.arange(self.batch_rows) % len(self.source_names)
        return Batch(input_ids_BL=ids, labels_BL=labels, positions_BL=positions, documents_BL=documents, sources_B=sources)

    def valid_tokens(self, step: int) -> int:
        """Labels in the batch of a step."""
        return int((self.batch(step).labels_BL != -100).sum())

    def position(self, step: int) -> dict[str, Any]:
        """Where this loader stands before a step, so that a checkpoint has something to keep."""
        return {"step": step}

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        """This rank's slices of the batch, in the order that the real loader promises."""
        batch = self.batch(step)
        parts = []
        for start in range(rank * micro_batch_rows, self.batch_rows, world * micro_batch_rows):
            cut = {name: getattr(batch, name)[start : start + micro_batch_rows] for name in Batch.__dataclass_fields__}
            parts.append(Batch(**cut))
            self.consumed.append((step, parts[-1].input_ids_BL.tolist()))
        return parts


@dataclass
class Diary:
    """What the loop told its callbacks, in order. Records lose what a clock or the machine decides."""

    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[str, int]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """The loss of each record."""
        return [record["loss"] for record in self.records]

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """The records without speed and memory."""
        clocked = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")
        return [{key: value for key, value in record.items() if key not in clocked} for record in self.records]

    def callbacks(self, engine: TrainingEngine, checkpoints: Path | None = None) -> Callbacks:
        """Callbacks that write this diary, and checkpoints into a folder."""
        saver = open_saver(checkpoints, engine) if checkpoints is not None else None

        def log(record: dict[str, Any]) -> None:
            self.records.append(record)
            self.events.append(("log", record["step"]))

        def save(state: RunState) -> None:
            self.events.append(("save", state.step))
            if saver is not None:
                saver.save(state)
                saver.wait()

        def evaluate(state: RunState) -> bool:
            self.events.append(("evaluate", state.step))
            return True

        return Callbacks(
            on_log=log, on_evaluate=evaluate, on_save=save, on_skip=lambda step, why: self.skipped.append((step, why))
        )  # fmt: skip


def train_steps(
    engine: TrainingEngine, config: RunConfig, steps: int, *, state: RunState | None = None, total: int | None = None,
    loader: Any = None, checkpoints: Path | None = None,
) -> tuple[RunState, Diary]:  # fmt: skip
    """Run the real loop from `state` over `steps` steps of a run of `total` steps."""
    diary, state = Diary(), state or RunState()
    callbacks = diary.callbacks(engine, checkpoints)
    until = state.step + steps
    total = total or until
    stop = StopRequest()

    def beat(_: str, step: int) -> None:
        stop.requested = step + 1 >= until and until != total

    course = Course(total_steps=total)
    rows = loader or RandomRows(config.train.batch_rows)
    state, _ = train(engine, rows, state, course, config.train, replace(callbacks, beat=beat), PACE, stop)
    return state, diary


def open_saver(checkpoints: Path, engine: TrainingEngine, binding: Binding = BINDING, **settings: Any) -> Saver:
    """A saver that keeps everything, unless `settings` (keys of train) say otherwise."""
    return Saver(checkpoints, engine, binding, TrainConfig(**{"keep_checkpoints": 99, **settings}), {})


def save_now(checkpoints: Path, engine: TrainingEngine, state: RunState, binding: Binding = BINDING, **settings: Any) -> Saved:
    """Save and wait for the end of it."""
    saver = open_saver(checkpoints, engine, binding, **settings)
    saver.save(state)
    saved = saver.wait()
    assert saved is not None
    return saved


def state_of(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Masters and moments of every trained tensor."""
    return {f"{kind}/{name}": engine.state_of(name, kind).clone() for name in engine.trainable for kind in ("master", "exp_avg", "exp_avg_sq")}


def weights_of(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Every parameter in the compute type, whole."""
    weights = {}
    for name in engine.names:
        with engine.whole(name) as parameter:
            weights[name] = parameter.detach().cpu().clone()
    return weights


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """The same names and the same bytes."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def open_engine(ranks: Ranks, config: RunConfig, model: Any = None, trainable: list[str] | None = None) -> TrainingEngine:
    """An engine over the small model with its middle layer trained."""
    model = model if model is not None else small_model(config.engine.precision, zeroed=(1,))
    names = trainable if trainable is not None else names_in_layer(model)
    return TrainingEngine(model, [TrainedGroup(names=tuple(names))], config, ranks)


def difference(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one) if one.keys() == two.keys() else math.inf


@contextmanager
def recorded_batches() -> Iterator[list[list[list[int]]]]:
    """The token ids of every micro-batch that an engine of this process trains on, in order."""
    batches: list[list[list[int]]] = []
    original = TrainingEngine.forward_backward

    def recorded(self: TrainingEngine, rows: Any, global_valid_tokens: int) -> torch.Tensor:
        batches.append(rows.input_ids_BL.tolist())
        return original(self, rows, global_valid_tokens)

    TrainingEngine.forward_backward = recorded  # type: ignore[method-assign]
    try:
        yield batches
    finally:
        TrainingEngine.forward_backward = original  # type: ignore[method-assign]
