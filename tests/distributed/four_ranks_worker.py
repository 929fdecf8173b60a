"""What each of four ranks does for test_four_ranks.py, and one rank alone to compare with."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from small_training import (
    BINDING,
    PACE,
    Diary,
    RandomRows,
    names_in_layer,
    open_engine,
    run_config,
    same,
    small_model,
    train_steps,
    weights_of,
)

import slayer.training.engine as engine_module
from slayer.config import RandomModelConfig
from slayer.data.random_model import tiny_model
from slayer.errors import ConfigError, Problem, SlayerError
from slayer.forward import hollow_model, load_model
from slayer.surgery.families import HEAD
from slayer.surgery.weights import Weights
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.loop import Course, train
from slayer.training.optim import TrainedGroup, trained_groups
from slayer.training.ranks import Ranks, open_ranks
from slayer.training.signals import StopRequest
from slayer.training.state import RunState

BATCH_ROWS, STEPS = 8, 4
WORLD = 4
STAGED = (1, 2, 3)
PARTS = {"odd": "fp32", "tied": "bf16"}
"""Precision that each model is computed in."""
CASES = ["0 fp32 2", *(f"{stage} fp32 {accumulation}" for stage in (1, 2, 3) for accumulation in (1, 2)), "2 bf16 2", "3 bf16 2"]
"""ZeRO stage, precision, accumulation."""
STAGE_ENDS_AFTER = 2
M_MMAP_THRESHOLD = -3
"""Of malloc.h: larger blocks are mapped, and given back when they are freed."""
Record = dict[str, Any]


def all_cases(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Records of a plain training for every ZeRO stage, precision and accumulation, and of a staged one for every ZeRO stage."""
    plain = {case: _plain(ranks, case) for case in CASES}
    return {"plain": plain, "staged": {str(stage): _staged(ranks, stage, folder / f"staged-{ranks.world}-{stage}") for stage in STAGED}}


def _plain(ranks: Ranks, case: str) -> list[Record]:
    stage, precision, accumulation = case.split()
    micro_batch_rows = BATCH_ROWS // (WORLD * int(accumulation))  # the same rows side by side, however many ranks there are
    settings = {"micro_batch_rows": micro_batch_rows, "batch_rows": BATCH_ROWS, "learning_rate": 5e-3}
    engine, diary = open_engine(ranks, run_config(int(stage), precision, **settings)), Diary()
    try:
        course, config = Course(total_steps=STEPS), run_config(int(stage), precision, **settings).train
        train(engine, RandomRows(BATCH_ROWS), RunState(), course, config, diary.callbacks(engine), PACE, StopRequest())
    finally:
        engine.close()
    return diary.timeless


def _staged(ranks: Ranks, stage: int, folder: Path) -> list[Record]:
    """The middle layer, then with it the last one and the norms of the first: two engines, and a checkpoint between them."""
    model = small_model()
    middle, last = (dict.fromkeys(names_in_layer(model, layer), 1.0) for layer in (1, 2))
    norms = {name: 0.5 for name in names_in_layer(model, 0) if name.endswith("norm.weight")}
    factors = [middle, {**norms, **middle, **last}]
    loader = RandomRows(BATCH_ROWS)
    ends = sum(loader.valid_tokens(step) for step in range(STAGE_ENDS_AFTER))
    config = run_config(stage, "fp32", micro_batch_rows=1, batch_rows=BATCH_ROWS, learning_rate=5e-3, save_every=100)
    state, records = RunState(), list[Record]()
    while state.step < STEPS:
        engine, diary = TrainingEngine(small_model(), trained_groups(factors, state.stage_steps), config, ranks), Diary()
        try:
            if state.step:
                load_checkpoint(checkpoint_folder(folder, state.step), engine, BINDING)
            course = Course(total_steps=STEPS, stage_ends_at_tokens=(ends,)[state.stage :], stage_warmup_steps=1)
            callbacks = diary.callbacks(engine, folder)
            state, _ = train(engine, loader, state, course, config.train, callbacks, PACE, StopRequest())
        finally:
            engine.close()
        records += diary.timeless
    return records


def agreements(ranks: Ranks) -> dict[str, str]:
    """What each rank is told when some rank cannot do its part."""

    def fails_on(*failing: int) -> str:
        def act() -> int:
            if ranks.rank in failing:
                raise ConfigError([Problem(key="prune", value=ranks.rank, why="is too many", fix="prune=2")])
            return ranks.rank

        try:
            return str(ranks.together(act))
        except SlayerError as error:
            return f"{type(error).__name__}: {error}"

    return {"nobody": fails_on(), "third": fails_on(2), "all": fails_on(*range(ranks.world)), "nobody again": fails_on()}


def model_of_its_own(cache: Path) -> list[str]:
    """The files of a random model that a rank makes in a cache that is not shared."""
    os.environ["SLAYER_CACHE"] = str(cache)
    return sorted(path.name for path in tiny_model(RandomModelConfig(layers=1)).iterdir())


# ── ZeRO-3: parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_from_files(ranks: Ranks, folder: Path, precision: str) -> TrainingEngine:
    """As a run opens it: each rank reads its part."""
    weights = Weights(folder)
    model = hollow_model(folder, precision, own_head=HEAD in weights)
    return TrainingEngine(model, [TrainedGroup(names=tuple(names_in_layer(model)))], _config(ranks, precision), ranks, weights)


def open_whole(ranks: Ranks, folder: Path, precision: str) -> TrainingEngine:
    """As DeepSpeed would have it: each rank loads everything, of which parts are kept."""
    model = load_model(folder, precision)
    return TrainingEngine(model, [TrainedGroup(names=tuple(names_in_layer(model)))], _config(ranks, precision), ranks)


def _config(ranks: Ranks, precision: str) -> Any:
    return run_config(3, precision, micro_batch_rows=4 // ranks.world, batch_rows=4, learning_rate=5e-3)


def parts_case(ranks: Ranks, folder: Path, precision: str) -> dict[str, Any]:
    """Whether what was read is what the files hold, and the training behind it that of a model loaded whole."""
    weights, dtype = Weights(folder), {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    found: dict[str, Any] = {}
    for name, open_on in (("parts", open_from_files), ("whole", open_whole)):
        engine = open_on(ranks, folder, precision)
        try:
            if name == "parts":
                found["is_the_files_own"] = same(weights_of(engine), {one: weights[one].to(dtype) for one in weights.infos})
                held = [engine.resident(one).numel() for one in engine.names]
                found["held"] = [sum(held), sum(weights[one].numel() for one in engine.names)]
            diary = Diary()
            course = Course(total_steps=3)
            train(engine, RandomRows(4), RunState(), course, _config(ranks, precision).train, diary.callbacks(engine), PACE, StopRequest())
            found[name] = diary.timeless
        finally:
            engine.close()
    return found


@contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """A list that says, afterwards, how far this process's own memory (no mapped files) has risen, and from where, in bytes."""
    began = own_memory_bytes()
    over, peak = threading.Event(), [0, began]

    def look() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], own_memory_bytes() - began)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak[0] = max(peak[0], own_memory_bytes() - began)


def own_memory_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def memory_of_ranks(folder: Path, model: Path, way: str, live_weights: int) -> None:
    """A process of its own for each way: how far its memory rises while the model is opened and makes two steps, and their losses.

    DeepSpeed keeps up to 1e9 gathered weights at hand, which is all of a small model; here it may keep `live_weights`.
    """
    original = engine_module.deepspeed_settings

    def settings(*arguments: Any) -> dict[str, Any]:
        found = original(*arguments)
        found["zero_optimization"] |= {"stage3_max_live_parameters": live_weights, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        return found

    engine_module.deepspeed_settings = settings
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 17)  # what a tensor leaves goes back to the system, and is seen to
    with open_ranks() as ranks:
        losses, loader = [], RandomRows(4)
        small = open_engine(ranks, _config(ranks, "fp32"))  # imports, and what the libraries keep
        train_steps(small, _config(ranks, "fp32"), 1)
        small.close()
        libc.malloc_trim(0)
        ranks.wait()
        with peak_of_own_memory() as opening:
            engine = (open_from_files if way == "parts" else open_whole)(ranks, model, "fp32")
        before = own_memory_bytes()
        with peak_of_own_memory() as steps:
            for step in range(2):
                for rows in loader.micro_batches(step, rank=ranks.rank, world=ranks.world, micro_batch_rows=4 // ranks.world):
                    losses.append(float(engine.forward_backward(rows, loader.valid_tokens(step)).sum()))
                engine.update(step, 1e-3, 0.1)
        told = ranks.gather({"opening": opening[0], "steps": before - opening[1] + steps[0], "losses": losses})
        engine.close()
        if ranks.is_first:
            (folder / f"memory-{way}-{ranks.world}.json").write_text(json.dumps(told), encoding="utf-8")


def main(folder: Path, models: dict[str, Path]) -> None:
    """All of it, into a file of this rank's own."""
    with open_ranks() as ranks:
        found = all_cases(ranks, folder)
        found["parts"] = {name: parts_case(ranks, models[name], precision) for name, precision in PARTS.items()}
        found["model"] = model_of_its_own(folder / f"cache-{ranks.rank}")
        found["agreements"] = agreements(ranks)
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")
