"""What each of two ranks does for test_two_ranks.py: trainings at every ZeRO stage, and a run of the pipeline.

python -m torch.distributed.run --standalone --nproc_per_node=2 two_ranks_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_training import (
    BINDING,
    PACE,
    STAGES,
    Diary,
    RandomRows,
    open_engine,
    recorded_batches,
    run_config,
    same,
    state_of,
    train_steps,
    weights_of,
)

from slayer.config import load_config
from slayer.pipeline import run_pipeline
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.loop import Course, train
from slayer.training.ranks import Ranks, open_ranks
from slayer.training.signals import StopRequest
from slayer.training.state import RunState


def fp32_case(ranks: Ranks, stage: int, folder: Path) -> dict[str, Any]:
    """Four steps with checkpoints; the last two again from our own checkpoint, and from the one that a single rank left."""
    config = run_config(stage, micro_batch_rows=1, save_every=2)
    engine, loader = open_engine(ranks, config), RandomRows(4)
    _, whole = train_steps(engine, config, 4, loader=loader, checkpoints=folder / f"two-ranks-{stage}")
    logits = engine.logits(RandomRows(4).batch(9))
    expected = state_of(engine)
    engine.close()
    found: dict[str, Any] = {"records": whole.timeless, "consumed": loader.consumed, "logits": logits.flatten()[:200].tolist()}
    for name, checkpoints in (("own", folder / f"two-ranks-{stage}"), ("one_rank", folder / f"one-rank-{(stage + 1) % 4}")):
        engine = open_engine(ranks, config)
        state = load_checkpoint(checkpoint_folder(checkpoints, 2), engine, BINDING)
        _, rest = train_steps(engine, config, 2, state=state)
        found[f"after_{name}"] = rest.timeless
        if name == "own":
            found["own_is_identical"] = same(state_of(engine), expected)
        engine.close()
    return found


def bf16_case(ranks: Ranks, stage: int, folder: Path) -> dict[str, Any]:
    """Four steps, and the last two again from a checkpoint."""
    config, checkpoints = run_config(stage, "bf16", micro_batch_rows=1, save_every=2), folder / f"two-ranks-bf16-{stage}"
    engine = open_engine(ranks, config)
    _, whole = train_steps(engine, config, 4, checkpoints=checkpoints)
    expected = {**state_of(engine), **weights_of(engine)}
    engine.close()
    engine = open_engine(ranks, config)
    state = load_checkpoint(checkpoint_folder(checkpoints, 2), engine, BINDING)
    _, rest = train_steps(engine, config, 2, state=state)
    identical = same({**state_of(engine), **weights_of(engine)}, expected) and rest.timeless == whole.timeless[2:]
    engine.close()
    return {"records": whole.timeless, "identical": identical}


def stop_case(ranks: Ranks) -> dict[str, Any]:
    """Only the second rank hears of a stop; both must end at the same step."""
    config = run_config(2, micro_batch_rows=1)
    engine, diary, stop = open_engine(ranks, config), Diary(), StopRequest()
    callbacks = replace(diary.callbacks(engine), beat=lambda phase, step: setattr(stop, "requested", ranks.rank == 1))
    state, _ = train(engine, RandomRows(4), RunState(), Course(total_steps=5), config.train, callbacks, PACE, stop)
    engine.close()
    return {"step": state.step, "events": diary.events}


def main(folder: Path) -> None:
    with open_ranks() as ranks:
        found: dict[str, Any] = {
            "rank": ranks.rank, "world": ranks.world, "gathered": ranks.gather(ranks.rank * 10), "sum": float(ranks.sum(torch.ones(1))),
            "fp32": [fp32_case(ranks, stage, folder) for stage in STAGES], "bf16": [bf16_case(ranks, stage, folder) for stage in STAGES],
            "stop": stop_case(ranks),
        }  # fmt: skip
        with recorded_batches() as batches:
            outcome = run_pipeline(load_config(folder / "two-ranks.yaml"), "python train.py")
        found |= {"pipeline_batches": batches, "objective": outcome.objective}
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
