"""The training loop. It reads on one screen; what happens once in a while is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from slayer.config import TrainConfig
from slayer.forward import PackedRows
from slayer.training.checkpoint import RunState
from slayer.training.engine import TrainingEngine
from slayer.training.metrics import memory_bytes
from slayer.training.optim import learning_rate, weight_decay
from slayer.training.signals import StopRequest

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What the pipeline wants to happen once in a while. All are called on every rank."""

    on_log: Callable[[dict[str, Any]], None]
    on_evaluate: Callable[[RunState], None]
    on_save: Callable[[RunState], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What turns seconds into rates: FLOP per token of this model, and the peak of all devices together if known."""

    flops_per_token: float
    peak_flops: float | None


def train(
    engine: TrainingEngine, loader: Loader, state: RunState, total_steps: int, train: TrainConfig, callbacks: Callbacks, pace: Pace, stop: StopRequest
) -> RunState:
    """Train from `state` to `total_steps`, or to the step at which every rank knows of a stop request, which is saved."""
    window = _Window(engine, loader.source_names)
    while state.step < total_steps:
        lr = learning_rate(state.step, total_steps, train)
        valid_tokens = loader.valid_tokens(state.step)
        micro_batch_rows = train.batch_rows // (engine.accumulation * engine.ranks.world)
        for rows in loader.micro_batches(state.step, rank=engine.ranks.rank, world=engine.ranks.world, micro_batch_rows=micro_batch_rows):
            rows = to_device(rows, engine.device)
            window.add(rows, engine.forward_backward(rows, valid_tokens))
        engine.update(lr, weight_decay(state.step, train))
        window.tokens, window.steps = window.tokens + valid_tokens, window.steps + 1
        state = replace(state, step=state.step + 1, tokens=state.tokens + valid_tokens)

        last = state.step == total_steps
        evaluating = train.evaluate_every is not None and state.step % train.evaluate_every == 0 and not last
        saving, stopping = state.step % train.save_every == 0 or last, False
        # What saves or evaluates logs as well: no window reaches over a checkpoint, so a run that goes on logs the same numbers.
        if state.step % train.log_every == 0 or evaluating or saving:
            record, seconds, stopping = window.close(stop.requested, pace)
            state = replace(state, seconds=state.seconds + seconds)
            callbacks.on_log({"step": state.step, "steps": total_steps, "tokens": state.tokens, **record, "lr": lr})
        if evaluating:
            callbacks.on_evaluate(state)
            window.restart_clock()
        if saving or stopping:
            callbacks.on_save(replace(state, position=loader.position(state.step)))
            window.restart_clock()
        if stopping:
            break
    return state


def to_device(rows: Any, device: Any) -> Any:
    """The same rows on `device`."""
    if device.type == "cpu":
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

    def close(self, stop_requested: bool, pace: Pace) -> tuple[dict[str, Any], float, bool]:
        """Sum over ranks, read back, start anew. Returns the record, its seconds, and whether any rank wants to stop."""
        import torch

        flags = torch.tensor([float(stop_requested)], dtype=torch.float64, device=self.engine.device)
        sums = self.engine.ranks.sum(torch.cat([self.sums_2S.flatten(), flags])).tolist()
        n_sources = len(self.source_names)
        nats, labels = sums[:n_sources], sums[n_sources : 2 * n_sources]
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
        return record, seconds, sums[-1] > 0
