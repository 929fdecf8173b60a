"""Checkpoints: going on is bit-identical, and nothing but safetensors and JSON is written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import (
    BINDING,
    PRECISIONS,
    STAGES,
    names_in_layer,
    open_engine,
    run_config,
    same,
    save_now,
    small_model,
    state_of,
    train_steps,
    weights_of,
)  # fmt: skip

from slayer.errors import CheckpointError
from slayer.training.checkpoint.folder import checkpoint_folder, list_checkpoints, newest_valid
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.ranks import Ranks
from slayer.training.state import Binding, RunState


@pytest.mark.parametrize("micro_batch_rows", [4, 2], ids=["accumulation 1", "accumulation 2"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_going_on_is_bit_identical(ranks: Ranks, tmp_path: Path, stage: int, precision: str, micro_batch_rows: int) -> None:
    """Three steps, a checkpoint, a new engine and three more: the weights, moments and log lines of six steps in one go."""
    config = run_config(stage, precision, micro_batch_rows=micro_batch_rows, save_every=3)
    whole = open_engine(ranks, config)
    try:
        _, uninterrupted = train_steps(whole, config, 6)
        expected = state_of(whole), weights_of(whole)
    finally:
        whole.close()
    first = open_engine(ranks, config)
    try:
        _, before = train_steps(first, config, 3, total=6, checkpoints=tmp_path)
    finally:
        first.close()
    second = open_engine(ranks, config)
    try:
        newest = newest_valid(tmp_path, fail)
        assert newest == checkpoint_folder(tmp_path, 3)
        state = load_checkpoint(newest, second, BINDING)
        assert (state.step, state.tokens) == (3, before.records[-1]["tokens"])
        _, after = train_steps(second, config, 3, state=state)
        assert before.timeless + after.timeless == uninterrupted.timeless
        assert same(state_of(second), expected[0]) and same(weights_of(second), expected[1])
    finally:
        second.close()


def fail(folder: Path, problem: str) -> None:
    raise AssertionError(f"{folder.name}: {problem}")


def test_a_checkpoint_knows_no_stage(ranks: Ranks, tmp_path: Path) -> None:
    """Steps 0–1 at stage 2, 2–3 at stage 3, 4–5 at stage 1, 6–7 at stage 0: the losses of eight steps at stage 2."""
    config = run_config(2, save_every=2)
    engine = open_engine(ranks, config)
    try:
        expected = train_steps(engine, config, 8)[1].losses
    finally:
        engine.close()
    losses: list[float] = []
    state = RunState()
    for stage in (2, 3, 1, 0):
        config = run_config(stage, save_every=2)
        engine = open_engine(ranks, config)
        try:
            if losses:
                state = load_checkpoint(checkpoint_folder(tmp_path, len(losses)), engine, BINDING)
            losses += train_steps(engine, config, 2, state=state, total=8, checkpoints=tmp_path)[1].losses
        finally:
            engine.close()
    assert losses == pytest.approx(expected, abs=1e-5)


def test_masters_keep_what_bf16_cannot_hold(ranks: Ranks, tmp_path: Path) -> None:
    config = run_config(2, "bf16", save_every=2)
    engine = open_engine(ranks, config)
    try:
        train_steps(engine, config, 2, checkpoints=tmp_path)
    finally:
        engine.close()
    saved = load_file(checkpoint_folder(tmp_path, 2) / "model.safetensors")
    names = names_in_layer(small_model())
    assert set(saved) == {f"{kind}/{name}" for name in names for kind in ("master", "exp_avg", "exp_avg_sq")} | {
        "random/0/torch", "random/0/numpy", "random/0/python", "guard/history", "guard/accepted", "guard/in_a_row",
    }  # fmt: skip
    masters = [saved[f"master/{name}"] for name in names]
    assert all(master.dtype == torch.float32 for master in masters)
    assert any(not torch.equal(master, master.to(torch.bfloat16).float()) for master in masters)


@pytest.mark.parametrize("stage", STAGES)
def test_size_and_formats(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """At most 14 bytes for each trained weight and a megabyte; safetensors and JSON, nothing that could be a pickle."""
    config = run_config(stage, "bf16", save_every=1)
    model = small_model("bf16", hidden_size=384, intermediate_size=1024)
    trained = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names_in_layer(model))
    engine = open_engine(ranks, config, model)
    try:
        train_steps(engine, config, 1, checkpoints=tmp_path)
    finally:
        engine.close()
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert trained > 1_500_000
    assert sum(path.stat().st_size for path in files) <= 14 * trained + 1_000_000
    assert [path.name for path in files] == ["manifest.json", "model.safetensors", "state.json"]
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            load_file(path)


@pytest.fixture(scope="module")
def good(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = run_config(2, save_every=2)
    engine = open_engine(ranks, config)
    try:
        train_steps(engine, config, 4, checkpoints=folder)
    finally:
        engine.close()
    return folder


def flip_a_bit(folder: Path) -> None:
    """Deep inside the tensors, where no header tells."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def test_no_checkpoint_at_all_is_a_start(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "missing", fail) is None
    (tmp_path / "step-00000002.partial").mkdir()
    assert newest_valid(tmp_path, fail) is None


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_checkpoint_of_something_else_is_refused(good: Path, ranks: Ranks, key: str) -> None:
    config = run_config(2)
    engine = open_engine(ranks, config)
    try:
        before = weights_of(engine)
        other = Binding(**{"model": BINDING.model, "data": BINDING.data, key: "something else"})
        with pytest.raises(CheckpointError, match=f"another {key}.*run=NAME"):
            load_checkpoint(checkpoint_folder(good, 4), engine, other)
        assert same(weights_of(engine), before)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(ranks: Ranks) -> Iterator[TrainingEngine]:
    """An engine with one step behind it."""
    config = run_config(2)
    opened = open_engine(ranks, config)
    train_steps(opened, config, 1)
    yield opened
    opened.close()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(engine: TrainingEngine, tmp_path: Path, keep: int) -> None:
    for step in (1, 2, 3, 4):
        save_now(tmp_path, engine, RunState(step=step), keep_checkpoints=keep)
        kept = [checkpoint_folder(tmp_path, number) for number in range(max(step - keep, 0) + 1, step + 1)]
        assert sorted(tmp_path.iterdir()) == kept


def test_what_was_passed_over_does_not_push_out_what_is_good(engine: TrainingEngine, tmp_path: Path) -> None:
    """Step 9 was damaged, so training went on from step 5 and saves step 6: that one must stay, whatever `keep` is."""
    for step in (5, 9):
        save_now(tmp_path, engine, RunState(step=step), keep_checkpoints=2)
    flip_a_bit(checkpoint_folder(tmp_path, 9))
    save_now(tmp_path, engine, RunState(step=6), keep_checkpoints=1)
    assert list_checkpoints(tmp_path) == [checkpoint_folder(tmp_path, 6)]
    assert newest_valid(tmp_path, fail) == checkpoint_folder(tmp_path, 6)


def test_saving_a_step_again_replaces_it(engine: TrainingEngine, tmp_path: Path) -> None:
    folder = save_now(tmp_path, engine, RunState(step=3, tokens=1)).folder
    assert folder is not None
    flip_a_bit(folder)
    assert save_now(tmp_path, engine, RunState(step=3, tokens=2)).folder == folder
    assert newest_valid(tmp_path, fail) == folder
    assert load_checkpoint(folder, engine, BINDING) == RunState(step=3, tokens=2)


def test_random_state_goes_on(engine: TrainingEngine, tmp_path: Path) -> None:
    """torch's, numpy's and Python's."""

    def draw() -> list[float]:
        return [*torch.rand(3).tolist(), *np.random.rand(3), random.random()]

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    folder = save_now(tmp_path, engine, RunState(step=1)).folder
    assert folder is not None
    expected = draw()
    torch.manual_seed(6), np.random.seed(6), random.seed(6)
    load_checkpoint(folder, engine, BINDING)
    assert draw() == expected
