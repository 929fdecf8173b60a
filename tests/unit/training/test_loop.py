"""The loop: what it logs, when it saves, how it stops, and that it never waits for the device in between."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import BINDING, PACE, Diary, RandomRows, open_engine, run_config, same, small_model, state_of
from torch.utils._python_dispatch import TorchDispatchMode

from slayer.config import RunConfig
from slayer.data.order.loader import Batch
from slayer.forward import logits_of, nll_BL
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.loop import Course, Pace, train
from slayer.training.optim import learning_rate
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest, listen_for_stop
from slayer.training.state import RunState


def run(
    engine: TrainingEngine, config: RunConfig, steps: int, *, state: RunState | None = None, checkpoints: Path | None = None, loader: Any = None,
    pace: Pace = PACE, stop: StopRequest | None = None,
) -> tuple[RunState, Diary]:  # fmt: skip
    diary = Diary()
    loader = loader or RandomRows(config.train.batch_rows)
    callbacks = diary.callbacks(engine, checkpoints)
    state, _ = train(engine, loader, state or RunState(), Course(total_steps=steps), config.train, callbacks, pace, stop or StopRequest())
    return state, diary


def test_a_record_is_what_a_plain_model_measures(ranks: Ranks) -> None:
    """At a vanishing learning rate the model stays, so nats and labels can be counted beside the loop, over windows of three steps."""
    config = run_config(2, log_every=3, learning_rate=1e-20, weight_decay=0.0)
    engine = open_engine(ranks, config)
    try:
        state, diary = run(engine, config, 5, pace=Pace(flops_per_token=100.0, peak_flops=1e9))
    finally:
        engine.close()
    model, loader = small_model(zeroed=(1,)), RandomRows(4)
    assert [record["step"] for record in diary.records] == [3, 5]
    for record, steps in zip(diary.records, (range(3), range(3, 5)), strict=True):
        nats, labels = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
        for step in steps:
            batch = loader.batch(step)
            with torch.no_grad():
                row_nats = nll_BL(logits_of(model, batch), batch.labels_BL).double().sum(1)
            for row in range(4):
                nats[row % 2] += row_nats[row]
                labels[row % 2] += int((batch.labels_BL[row] != -100).sum())
        assert record["loss"] == pytest.approx(float(nats.sum() / labels.sum()), rel=1e-6)
        assert [record["loss/law"], record["loss/general"]] == pytest.approx((nats / labels).tolist(), rel=1e-6)
        assert [record["tokens/law"], record["tokens/general"]] == labels.tolist()
        assert record["lr"] == learning_rate(record["step"] - 1, 5, config.train) and record["steps"] == 5
        assert record["tokens_per_second"] == pytest.approx(float(labels.sum()) / (record["step_seconds"] * len(steps)))
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * 100 / 1e9)
        assert record["memory_bytes"] > 1e6 and record["grad_norm"] > 0
    assert state.tokens == diary.records[-1]["tokens"] == sum(loader.valid_tokens(step) for step in range(5))
    assert diary.records[0]["tokens"] == sum(loader.valid_tokens(step) for step in range(3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"save_every": 4}, "log1 log2 log3 log4 save4 log5 log6 save6"),
        ({"log_every": 4, "save_every": 5}, "log4 log5 save5 log6 save6"),
        ({"log_every": 10, "evaluate_every": 2}, "log2 evaluate2 log4 evaluate4 log6 save6"),
        ({"log_every": 2, "save_every": 3, "evaluate_every": 3}, "log2 log3 evaluate3 save3 log4 log6 save6"),
    ],
)
def test_cadence(ranks: Ranks, settings: dict[str, int], expected: str) -> None:
    """What evaluates or saves logs too; the last step saves always and leaves evaluation to what comes after training."""
    config = run_config(0, **settings)
    engine = open_engine(ranks, config)
    try:
        _, diary = run(engine, config, 6)
    finally:
        engine.close()
    assert " ".join(f"{kind}{step}" for kind, step in diary.events) == expected


def test_a_checkpoint_between_two_log_lines_changes_no_number(ranks: Ranks, tmp_path: Path) -> None:
    config = run_config(2, log_every=4, save_every=3)
    engine = open_engine(ranks, config)
    try:
        _, whole = run(engine, config, 8, checkpoints=tmp_path)
        expected = state_of(engine)
    finally:
        engine.close()
    engine = open_engine(ranks, config)
    try:
        state = load_checkpoint(checkpoint_folder(tmp_path, 3), engine, BINDING)
        _, rest = run(engine, config, 8, state=state)
        assert [record["step"] for record in rest.records] == [4, 6, 8]
        assert rest.timeless == [record for record in whole.timeless if record["step"] > 3]
        assert same(state_of(engine), expected)
    finally:
        engine.close()


class SlowRows(RandomRows):
    """Rows that take a while, as reading them from a disk may."""

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        time.sleep(0.05)
        return super().micro_batches(step, rank=rank, world=world, micro_batch_rows=micro_batch_rows)


def test_rates_hold_every_step_and_no_callback(ranks: Ranks) -> None:
    config = run_config(0, log_every=4, save_every=3, evaluate_every=5)
    engine = open_engine(ranks, config)
    diary = Diary()
    told = diary.callbacks(engine)

    def save_slowly(_: RunState) -> bool:
        time.sleep(0.5)
        return True

    try:
        started = time.perf_counter()
        callbacks = type(told)(on_log=told.on_log, on_evaluate=save_slowly, on_save=save_slowly)
        state, _ = train(engine, SlowRows(4), RunState(), Course(total_steps=6), config.train, callbacks, PACE, StopRequest())
        wall = time.perf_counter() - started
    finally:
        engine.close()
    assert [record["step"] for record in diary.records] == [3, 4, 5, 6]
    assert 6 * 0.05 <= state.seconds <= wall - 3 * 0.5
    tokens, step = 0, 0
    for record in diary.records:
        assert record["step_seconds"] >= 0.05
        assert record["tokens_per_second"] == pytest.approx((record["tokens"] - tokens) / (record["step_seconds"] * (record["step"] - step)))
        tokens, step = record["tokens"], record["step"]


def test_every_batch_is_seen_once_and_in_order(ranks: Ranks) -> None:
    config = run_config(0, micro_batch_rows=1)
    engine, loader = open_engine(ranks, config), RandomRows(4)
    try:
        run(engine, config, 3, loader=loader)
    finally:
        engine.close()
    expected = [(step, [row]) for step in range(3) for row in loader.batch(step).input_ids_BL.tolist()]
    assert loader.consumed == expected


READING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
SYNCHRONISING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim")


class Readings(TorchDispatchMode):
    """Every time a value leaves the device for Python: in which step, and whose code asked.

    On a CPU nothing waits, so what would wait on a GPU is counted by name: the operators that have to know a value, and the methods of a
    tensor that hand it to Python.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.step, self.found = -1, []  # type: ignore[var-annotated]
        for name in READING:
            patch.setattr(torch.Tensor, name, self._watched(getattr(torch.Tensor, name)))

    def _watched(self, method: Any) -> Any:
        def read(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self._note()
            return method(tensor, *arguments, **options)

        return read

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in SYNCHRONISING:
            self._note()
        return function(*args, **(kwargs or {}))

    def _note(self) -> None:
        """The innermost frame that is not torch's is whose code it was; making batches is not the loop's."""
        frame: Any = sys._getframe(2)
        while frame is not None:
            path = frame.f_code.co_filename
            if any(f"/{library}/" in path for library in ("deepspeed", "transformers")) or path.endswith("small_training.py"):
                return
            if path.endswith(("training/loop.py", "training/engine.py", "training/guard.py", "slayer/forward.py")):
                self.found.append((self.step, f"{path}:{frame.f_lineno}"))
                return
            frame = frame.f_back


class NumberedRows(RandomRows):
    """Rows that say when their step begins."""

    readings: Readings | None = None

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        batches = super().micro_batches(step, rank=rank, world=world, micro_batch_rows=micro_batch_rows)
        if self.readings is not None:
            self.readings.step = step
        return batches


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_steps_that_do_not_log_wait_for_nothing(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, stage: int, precision: str) -> None:
    config = run_config(stage, precision, log_every=3)
    engine, loader = open_engine(ranks, config), NumberedRows(4)
    try:
        with monkeypatch.context() as patch, Readings(patch) as readings:
            loader.readings = readings
            run(engine, config, 7, loader=loader)
    finally:
        engine.close()
    assert {step for step, _ in readings.found} == {2, 5, 6}, [where for step, where in readings.found if step not in (2, 5, 6)]


class InterruptingRows(RandomRows):
    """Rows during whose fourth step somebody presses Ctrl-C."""

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().micro_batches(step, rank=rank, world=world, micro_batch_rows=micro_batch_rows)


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_stop_request_saves_at_the_end_of_the_step_and_loses_nothing(ranks: Ranks, tmp_path: Path, log_every: int) -> None:
    stopped_at = 4
    config = run_config(2, log_every=log_every)
    engine = open_engine(ranks, config)
    try:
        _, whole = run(engine, config, 9)
        expected = state_of(engine)
    finally:
        engine.close()
    engine = open_engine(ranks, config)
    try:
        with listen_for_stop(ranks) as stop, stop.deferred():
            state, first = run(engine, config, 9, loader=InterruptingRows(4), checkpoints=tmp_path, stop=stop)
        assert state.step == stopped_at and first.events[-2:] == [("log", stopped_at), ("save", stopped_at)]
    finally:
        engine.close()
    engine = open_engine(ranks, config)
    try:
        state = load_checkpoint(checkpoint_folder(tmp_path, stopped_at), engine, BINDING)
        _, rest = run(engine, config, 9, state=state)
        if log_every == 1:
            assert first.timeless + rest.timeless == whole.timeless
        assert same(state_of(engine), expected)
    finally:
        engine.close()


def test_a_stop_in_the_last_step_is_an_end(ranks: Ranks) -> None:
    config = run_config(0)
    engine = open_engine(ranks, config)
    try:
        with listen_for_stop(ranks) as stop, stop.deferred():
            state, diary = run(engine, config, 4, loader=InterruptingRows(4), stop=stop)
        assert state.step == 4 and diary.events.count(("save", 4)) == 1
    finally:
        engine.close()
