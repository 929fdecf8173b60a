"""The training loop. It reads on one screen; what happens once in a while is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from slayer.config import TrainConfig
from slayer.forward import PackedRows
from slayer.training.engine import TrainingEngine
from slayer.training.guard import ACCEPTED, REASONS
from slayer.training.metrics import memory_bytes
from slayer.training.optim import learning_rate, weight_decay
from slayer.training.signals import StopRequest
from slayer.training.state import RunState

if TYPE_CHECKING:
    from torch import Tensor

Ending = Literal["finished", "stage", "stopped", "rewind"]
"""Why training pauses: the last step is done, the freeze stage is over, a stop was asked for, or skipping bad steps does not help."""


class SourceRows(PackedRows, Protocol):
    """Packed rows that also say which source each row is from, [B]."""

    @property
    def sources_B(self) -> Tensor:
        """Index into the loader's source names."""


class Loader(Protocol):
    """The data side: everything is a pure function of the step."""

    @property
    def source_names(self) -> Sequence[str]:
        """Names of the sources."""

    def valid_tokens(self, step: int) -> int:
        """Labels in the global batch of a step."""

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> Sequence[SourceRows]:
        """This rank's share of the global batch of a step."""

    def position(self, step: int) -> dict[str, Any]:
        """Where the sources that are read in order stand before a step; empty where every source is indexed."""


def _nothing(*_: Any) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What the pipeline wants to happen once in a while. All are called on every rank."""

    on_log: Callable[[dict[str, Any]], None]
    on_evaluate: Callable[[RunState], bool]
    """False when it was cut short by a stop."""
    on_save: Callable[[RunState], None]
    on_skip: Callable[[int, str], None] = _nothing
    """A step that the guard skipped, and why."""
    beat: Callable[[str, int], None] = _nothing
    """The phase that begins, for the watchdog."""
    must_halt: Callable[[], bool] = bool
    """True when this rank knows that training must not go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far to train: all steps of the run, the tokens at which this freeze stage and those after it end, the steps from which the data is
    another mixture, and the warm-up of tensors that join under way."""

    total_steps: int
    stage_ends_at_tokens: tuple[int, ...] = ()
    mixture_steps: frozenset[int] = frozenset()
    stage_warmup_steps: int = 0

    def changes_mixture(self, state: RunState) -> bool:
        """Whether the step that begins is the first one on another mixture; a rewind may have gone past the very step."""
        before = replace(state, step=state.step - 1).data_step if state.step > 0 else 0
        return any(before < step <= state.data_step for step in self.mixture_steps)

    def is_over(self, state: RunState) -> Ending | None:
        """Whether `state` is an end."""
        if state.step >= self.total_steps:
            return "finished"
        return "stage" if self.stages_over(state) else None

    def stages_over(self, state: RunState) -> int:
        """How many freeze stages end with this step: one step may reach the ends of several."""
        return sum(state.tokens >= end for end in self.stage_ends_at_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What turns seconds into rates: FLOP per token of this model, and the peak of all devices together if known."""

    flops_per_token: float
    peak_flops: float | None


def train(
    engine: TrainingEngine, loader: Loader, state: RunState, course: Course, train: TrainConfig, callbacks: Callbacks, pace: Pace, stop: StopRequest
) -> tuple[RunState, Ending]:
    """Train from `state` until the course is over, every rank knows of a stop request, or the guard gives up.

    What is returned was handed to `on_save`, but for a rewind and for a stop before the first step.
    """
    window = _Window(engine, loader.source_names)
    if state.step == state.stage_steps[-1]:
        engine.guard.forget()
    if stop.agreed(engine.ranks):
        return state, "stopped"
    if state.owes_evaluation:
        state = _evaluate(state, callbacks, window)
    if state.owes_evaluation:
        return state, "stopped"
    while (ended := course.is_over(state)) is None:
        if course.changes_mixture(state):
            engine.guard.forget()
        state, lr = _step(engine, loader, state, course, train, callbacks, window)
        ended = course.is_over(state)
        stopping = stop.agreed(engine.ranks, halt=callbacks.must_halt())
        evaluating = train.evaluate_every is not None and state.step % train.evaluate_every == 0 and ended != "finished"
        saving = ended is not None or state.step % train.save_every == 0
        logging = state.step % train.log_every == 0 or evaluating or saving
        # What saves or evaluates logs as well: no window reaches over a checkpoint, so a run that goes on logs the same numbers.
        if logging or stopping:
            state = _log(engine, state, course, callbacks, window, lr, pace)
        # Not where only a stop made it log: a run that nobody stopped would not look there.
        if logging and engine.guard.gives_up:
            return state, "rewind"
        # Amid bad steps nothing is new, and a save could push out the checkpoint before them.
        saving = stopping or ended is not None or (saving and engine.guard.in_a_row == 0)
        if evaluating:
            state = replace(state, owes_evaluation=True) if stopping else _evaluate(state, callbacks, window)
            stopping = state.owes_evaluation  # it was cut short
        if ended == "stage":
            state = replace(state, stage_steps=(*state.stage_steps, *[state.step] * course.stages_over(state)))
        if saving or stopping:
            callbacks.beat("save", state.step)
            callbacks.on_save(replace(state, position=loader.position(state.data_step)))
            window.restart_clock()
        if stopping:
            return state, "stopped"
    return state, ended


def _step(
    engine: TrainingEngine, loader: Loader, state: RunState, course: Course, train: TrainConfig, callbacks: Callbacks, window: _Window
) -> tuple[RunState, float]:
    """One optimiser step; the state after it, and its learning rate."""
    ranks, data_step = engine.ranks, state.data_step
    callbacks.beat("data", state.step)
    valid_tokens = loader.valid_tokens(data_step)
    micro_batch_rows = train.batch_rows // (engine.accumulation * ranks.world)
    micro_batches = loader.micro_batches(data_step, rank=ranks.rank, world=ranks.world, micro_batch_rows=micro_batch_rows)
    callbacks.beat("forward", state.step)
    for rows in micro_batches:
        rows = to_device(rows, engine.device)
        window.add(rows, engine.forward_backward(rows, valid_tokens))
    callbacks.beat("update", state.step)
    lr = learning_rate(state.step, course.total_steps, train)
    engine.update(state.step, lr, weight_decay(state.step, train), course.stage_warmup_steps)
    window.tokens, window.steps = window.tokens + valid_tokens, window.steps + 1
    return replace(state, step=state.step + 1, tokens=state.tokens + valid_tokens), lr


def _log(engine: TrainingEngine, state: RunState, course: Course, callbacks: Callbacks, window: _Window, lr: float, pace: Pace) -> RunState:
    """Read back what happened since the last record, and tell it."""
    callbacks.beat("log", state.step)
    record, seconds = window.close(pace)
    verdicts = engine.guard.read()
    for step, verdict in enumerate(verdicts, state.step - len(verdicts)):
        if verdict != ACCEPTED:
            callbacks.on_skip(step, REASONS[verdict])
    skipped = sum(verdict != ACCEPTED for verdict in verdicts)
    state = replace(state, seconds=state.seconds + seconds)
    told = {"skipped_steps": skipped} if skipped else {}
    callbacks.on_log({"step": state.step, "steps": course.total_steps, "tokens": state.tokens, **record, "lr": lr, **told})
    return state


def _evaluate(state: RunState, callbacks: Callbacks, window: _Window) -> RunState:
    callbacks.beat("evaluate", state.step)
    done = callbacks.on_evaluate(state)
    window.restart_clock()
    return replace(state, owes_evaluation=not done)


def to_device(rows: Any, device: Any) -> Any:
    """The same rows on `device`."""
    if rows.input_ids_BL.device == device:
        return rows
    moved = {
        name: getattr(rows, name).to(device, non_blocking=True) for name in ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL", "sources_B")
    }
    return replace(rows, **moved)


class _Window:
    """What is summed between two log lines, on the device: nothing is read back before `close`."""

    def __init__(self, engine: TrainingEngine, source_names: Sequence[str]) -> None:
        self.engine, self.source_names = engine, list(source_names)
        self.restart_clock()
        self._clear()

    def _clear(self) -> None:
        import torch

        self.sums_2S = torch.zeros((2, len(self.source_names)), dtype=torch.float64, device=self.engine.device)
        self.tokens, self.steps = 0, 0

    def restart_clock(self) -> None:
        """Leave out of the rates what the callbacks took."""
        self.started = time.perf_counter()

    def add(self, rows: SourceRows, nats_BL: Tensor) -> None:
        """Add a micro-batch's nats and labels to its sources' sums."""
        self.sums_2S[0].index_add_(0, rows.sources_B, nats_BL.sum(1).double())
        self.sums_2S[1].index_add_(0, rows.sources_B, (rows.labels_BL != -100).sum(1).double())

    def close(self, pace: Pace) -> tuple[dict[str, Any], float]:
        """Sum over ranks, read back, start anew. Returns the record and its seconds."""
        nats, labels = self.engine.ranks.sum(self.sums_2S).tolist()
        seconds = time.perf_counter() - self.started
        rate = self.tokens / max(seconds, 1e-9)
        record: dict[str, Any] = {"loss": sum(nats) / max(sum(labels), 1)}
        for name, source_nats, source_labels in zip(self.source_names, nats, labels, strict=True):
            if source_labels:
                record[f"loss/{name}"] = source_nats / source_labels
                record[f"tokens/{name}"] = int(source_labels)
        record["grad_norm"] = self.engine.gradient_norm()
        record["tokens_per_second"] = rate
        record["mfu"] = rate * pace.flops_per_token / pace.peak_flops if pace.peak_flops else None
        record["memory_bytes"] = memory_bytes()
        record["step_seconds"] = seconds / max(self.steps, 1)
        self._clear()
        self.restart_clock()
        return record, seconds
