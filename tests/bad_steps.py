"""Bad steps for tests: faults of a real forward and backward pass, and trainings that meet them or are never asked for them.

The faults: logits that are not finite or so large that the loss is not, one gradient of one tensor that is not finite behind a finite forward
pass, and a batch that the model finds as unlikely as can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from small_training import RandomRows, open_engine, run_config, same, small_model, state_of, weights_of

from slayer.config import GuardConfig, RunConfig
from slayer.data.order.loader import Batch
from slayer.forward import logits_of
from slayer.training.engine import TrainingEngine
from slayer.training.guard import ACCEPTED, NON_FINITE, SPIKE
from slayer.training.optim import learning_rate, weight_decay
from slayer.training.ranks import Ranks

NAN, INF = float("nan"), float("inf")
STRUCK = "model.layers.1.mlp.up_proj.weight"
STEPS, HALF_A_WINDOW = 14, 4
FAULTS = {5: "nan loss", 6: "inf loss", 8: "nan gradient", 9: "inf gradient", 11: "ten sigma"}
"""Two and two in a row, and one alone, after the window is known."""


VERDICTS = [{None: ACCEPTED, "ten sigma": SPIKE}.get(FAULTS.get(step), NON_FINITE) for step in range(STEPS)]


def guarded_config(stage: int, precision: str, micro_batch_rows: int = 4, **settings: Any) -> RunConfig:
    """A run of four rows a step, whose guard knows its window after four steps and never gives up."""
    config = run_config(stage, precision, micro_batch_rows=micro_batch_rows, learning_rate=1e-3, clip_norm=0.5, **settings)
    return config.model_copy(update={"guard": GuardConfig(window_steps=2 * HALF_A_WINDOW, patience=9)})


class UnlikelyRows(RandomRows):
    """Rows whose labels at step 11 are what the model, as it starts, finds least likely: a loss far beyond ten deviations of the others."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        if FAULTS.get(step) != "ten sigma":
            return batch
        with torch.no_grad():
            least_likely_BL = logits_of(small_model(zeroed=(1,)), batch).argmin(-1)
        labels_BL = torch.where(batch.labels_BL != -100, least_likely_BL, -100)
        return Batch(**{**{name: getattr(batch, name) for name in Batch.__dataclass_fields__}, "labels_BL": labels_BL})


@contextmanager
def fault(engine: TrainingEngine, kind: str | None) -> Iterator[None]:
    """The fault of one forward and backward pass."""

    def spoil_logits(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        spoilt = logits.clone()
        # Two labels of 3e38 nats each are more than fp32 can add up, while every gradient stays finite.
        spoilt[..., 0] = NAN if kind == "nan loss" else 3e38
        return spoilt

    def spoil_gradient(gradient: torch.Tensor) -> torch.Tensor:
        spoilt = gradient.clone()
        spoilt[3, 5] = NAN if kind == "nan gradient" else INF
        return spoilt

    if kind in ("nan loss", "inf loss"):
        handle = engine.module.get_output_embeddings().register_forward_hook(spoil_logits)
    elif kind in ("nan gradient", "inf gradient"):
        handle = engine.module.get_parameter(STRUCK).register_hook(spoil_gradient)
    else:
        yield
        return
    try:
        yield
    finally:
        handle.remove()


def step_by_hand(engine: TrainingEngine, config: RunConfig, step: int, kind: str | None = None) -> None:
    """What the loop does in a step. The fault is in the last micro-batch of the last rank, but for the batch that is bad as a whole."""
    loader, ranks = UnlikelyRows(4), engine.ranks
    batches = loader.micro_batches(step, rank=ranks.rank, world=ranks.world, micro_batch_rows=config.engine.micro_batch_rows)
    for number, batch in enumerate(batches, 1):
        with fault(engine, kind if number == len(batches) and ranks.rank == ranks.world - 1 else None):
            engine.forward_backward(batch, loader.valid_tokens(step))
    engine.update(step, learning_rate(step, STEPS, config.train), weight_decay(step, config.train))


def everything(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """Weights, masters, moments, counts, and what the guard goes by."""
    updates = {f"updates/{name}": torch.tensor(count) for name, count in engine.updates.items()}
    guard = {f"guard/{name}": value.clone() for name, value in engine.guard.state().items() if name != "in_a_row"}
    return {**state_of(engine), **weights_of(engine), **updates, **guard}


def train_by_hand(ranks: Ranks, config: RunConfig, *, never_asks: bool) -> tuple[dict[str, torch.Tensor], list[int]]:
    """All steps, or all but the bad ones: what is held at the end, and the verdicts. Fails where a bad step changes anything."""
    engine = open_engine(ranks, config)
    try:
        for step in range(STEPS):
            if step in FAULTS and never_asks:
                continue
            before = everything(engine) if step in FAULTS else None
            step_by_hand(engine, config, step, FAULTS.get(step))
            if before is not None:
                after = everything(engine)
                assert same(before, after), (FAULTS[step], [name for name in before if not torch.equal(before[name], after[name])])
        return everything(engine), engine.guard.read()
    finally:
        engine.close()
