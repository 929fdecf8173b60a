"""Zero poisoned updates: after a bad step weights, masters, moments and AdamW's counts are bit for bit as before, and training goes on as if
the step had never been asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_steps import FAULTS, STEPS, VERDICTS, UnlikelyRows, everything, fault, guarded_config, train_by_hand
from small_training import BINDING, PACE, PRECISIONS, STAGES, Diary, open_engine, same, train_steps

from slayer.data.order.loader import Batch
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.guard import ACCEPTED
from slayer.training.loop import Course, Ending, train
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest
from slayer.training.state import RunState


@pytest.mark.parametrize("micro_batch_rows", (4, 2), ids=("accumulation 1", "accumulation 2"))
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_no_bad_step_reaches_anything(ranks: Ranks, stage: int, precision: str, micro_batch_rows: int) -> None:
    config = guarded_config(stage, precision, micro_batch_rows)
    found, verdicts = train_by_hand(ranks, config, never_asks=False)
    expected, untroubled = train_by_hand(ranks, config, never_asks=True)
    assert untroubled == [ACCEPTED] * (STEPS - len(FAULTS))
    assert verdicts == VERDICTS
    assert same(found, expected)
    assert {int(value) for name, value in found.items() if name.startswith("updates/")} == {STEPS - len(FAULTS)}


def test_the_unlikely_batch_lies_beyond_ten_deviations(ranks: Ranks) -> None:
    """What the fault promises, from the losses alone."""
    config = guarded_config(2, "fp32")
    engine, loader, losses = open_engine(ranks, config), UnlikelyRows(4), []
    try:
        for step in (0, 1, 2, 3, 4, 7, 10, 11):
            losses.append(float(engine.forward_backward(loader.batch(step), 1).sum()) / loader.valid_tokens(step))
            engine.update(step, 1e-3, 0.0)
    finally:
        engine.close()
    before = torch.tensor(losses[:-1])
    assert losses[-1] > before.mean() + 10 * before.std()


# ── through the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────


class FaultyRows(UnlikelyRows):
    """Rows that spoil every pass of the steps in FAULTS of the engine that trains on them."""

    kind: str | None = None

    def strike(self, engine: TrainingEngine) -> TrainingEngine:
        def around(forward_backward: Any) -> Any:
            def spoilt(*arguments: Any) -> torch.Tensor:
                with fault(engine, self.kind):
                    nats_BL: torch.Tensor = forward_backward(*arguments)
                return nats_BL

            return spoilt

        engine.forward_backward = around(engine.forward_backward)  # type: ignore[method-assign]
        return engine

    def micro_batches(self, step: int, *, rank: int, world: int, micro_batch_rows: int) -> list[Batch]:
        self.kind = FAULTS.get(step)
        return super().micro_batches(step, rank=rank, world=world, micro_batch_rows=micro_batch_rows)


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "bf16")])
def test_going_on_amid_bad_steps_is_bit_exact(ranks: Ranks, tmp_path: Path, stage: int, precision: str) -> None:
    """Once in one go, and once cut between the two bad steps 5 and 6, where the count of steps in a row and the window must go on as well."""
    config, found = guarded_config(stage, precision), []
    for cuts in ([STEPS], [6, STEPS - 6]):
        state, records, skipped = RunState(), list[dict[str, Any]](), list[tuple[int, str]]()
        for steps in cuts:
            loader = FaultyRows(4)
            engine = loader.strike(open_engine(ranks, config))
            try:
                if state.step:
                    state = load_checkpoint(checkpoint_folder(tmp_path, state.step), engine, BINDING)
                    assert engine.guard.in_a_row == 1
                state, diary = train_steps(engine, config, steps, state=state, total=STEPS, loader=loader, checkpoints=tmp_path)
                records, skipped, last = records + diary.timeless, skipped + diary.skipped, everything(engine)
            finally:
                engine.close()
        found.append((records, skipped, last))
    (whole, cut) = found
    assert [step for step, _ in whole[1]] == list(FAULTS) and whole[1] == cut[1]
    assert [record["step"] for record in whole[0] if record.get("skipped_steps") == 1] == [step + 1 for step in FAULTS]
    for record in whole[0]:
        assert math.isfinite(record["grad_norm"]) == (FAULTS.get(record["step"] - 1) not in ("nan loss", "nan gradient", "inf gradient"))
    assert repr(whole[0]) == repr(cut[0])  # nan is not equal to itself
    assert same(whole[2], cut[2])


@pytest.mark.parametrize(("log_every", "expected"), [(1, ("rewind", 7)), (2, ("rewind", 10)), (7, ("rewind", 7)), (20, ("finished", 14))])
def test_enough_bad_steps_in_a_row_end_in_a_rewind(ranks: Ranks, log_every: int, expected: tuple[Ending, int]) -> None:
    """Steps 5 and 6, 8 and 9 are bad. Two in a row are seen where a log step falls behind them; the run may have got past them before."""
    assert ending_of(ranks, log_every=log_every) == expected


def test_a_stop_amid_bad_steps_decides_nothing(ranks: Ranks) -> None:
    """Uninterrupted, this run looks at its end only; stopped behind two bad steps it must not go back either."""
    assert ending_of(ranks, log_every=20, stop_at=7) == ("stopped", 7)


def ending_of(ranks: Ranks, *, log_every: int, stop_at: int | None = None) -> tuple[Ending, int]:
    config = guarded_config(2, "fp32", log_every=log_every)
    config = config.model_copy(update={"guard": config.guard.model_copy(update={"patience": 2})})
    loader, stop, diary = FaultyRows(4), StopRequest(), Diary()
    engine = loader.strike(open_engine(ranks, config))

    def beat(_: str, step: int) -> None:
        stop.requested = step + 1 == stop_at

    try:
        callbacks = replace(diary.callbacks(engine), beat=beat)
        state, ended = train(engine, loader, RunState(), Course(total_steps=STEPS), config.train, callbacks, PACE, stop)
    finally:
        engine.close()
    return ended, state.step


def test_bad_steps_push_no_checkpoint_out(ranks: Ranks) -> None:
    """Saves that fall between bad steps are left out, but for one that a stop asks for: the last good one must stay among the newest."""
    config = guarded_config(2, "fp32", save_every=1)
    loader = FaultyRows(4)
    engine = loader.strike(open_engine(ranks, config))
    try:
        _, diary = train_steps(engine, config, STEPS, loader=loader)
    finally:
        engine.close()
    saved = [step for kind, step in diary.events if kind == "save"]
    assert saved == [step for step in range(1, STEPS + 1) if step - 1 not in FAULTS]


class ShiftedRows(UnlikelyRows):
    """Rows that are unlikely from step 7 on: another level of loss, and for good."""

    def batch(self, step: int) -> Batch:
        return super().batch(11 if step >= 7 else step)


@pytest.mark.parametrize("announced", ["nothing", "a mixture", "a freeze stage"])
def test_a_shift_that_is_meant_is_no_spike(ranks: Ranks, announced: str) -> None:
    """At the first step of another mixture, or of another freeze stage, the guard judges anew; a shift that comes from nowhere is skipped."""
    config, loader, diary = guarded_config(2, "fp32", save_every=7), ShiftedRows(4), Diary()
    course = Course(total_steps=STEPS, mixture_steps=frozenset({7} if announced == "a mixture" else ()))
    engine = open_engine(ranks, config)
    try:
        if announced == "a freeze stage":
            first = replace(course, stage_ends_at_tokens=(sum(loader.valid_tokens(step) for step in range(7)),))
            state, ended = train(engine, loader, RunState(), first, config.train, diary.callbacks(engine), PACE, StopRequest())
            assert (state.step, ended, state.stage_steps) == (7, "stage", (0, 7))
        else:
            state = RunState()
        train(engine, loader, state, course, config.train, diary.callbacks(engine), PACE, StopRequest())
    finally:
        engine.close()
    assert [step for step, _ in diary.skipped] == (list(range(7, STEPS)) if announced == "nothing" else [])
