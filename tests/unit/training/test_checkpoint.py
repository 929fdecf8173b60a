"""Checkpoints: going on is bit-identical, whatever is damaged is noticed, and nothing but safetensors and JSON is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import BINDING, PRECISIONS, STAGES, names_in_layer, open_engine, run_config, same, small_model, state_of, train_steps, weights_of

from slayer.errors import CheckpointError
from slayer.training.checkpoint import Binding, RunState, checkpoint_folder, list_checkpoints, load_checkpoint, newest_valid, save_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.ranks import Ranks


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
    assert set(saved) == {f"{kind}/{name}" for name in names for kind in ("master", "exp_avg", "exp_avg_sq")} | {"random/0"}
    masters = [saved[f"master/{name}"] for name in names]
    assert all(master.dtype == torch.float32 for master in masters)
    assert any(not torch.equal(master, master.to(torch.bfloat16).float()) for master in masters)


@pytest.mark.parametrize("stage", (2, 3))
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


@pytest.fixture
def checkpoints(good: Path, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return shutil.copytree(good, tmp_path / "checkpoints")


def flip_a_bit(folder: Path) -> None:
    """Deep inside the tensors, where no header tells."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def rewrite_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"step": 4', '"step": 5'), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the tensors": flip_a_bit,
    "tensors cut short": truncate,
    "tensors gone": lambda folder: (folder / "model.safetensors").unlink(),
    "state changed": rewrite_state,
    "state gone": lambda folder: (folder / "state.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest without entries": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest of another form": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest not text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "nothing in the folder": lambda folder: (shutil.rmtree(folder), folder.mkdir())[0],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(checkpoints: Path, damage: str) -> None:
    DAMAGES[damage](checkpoint_folder(checkpoints, 4))
    heard: list[tuple[str, str]] = []
    assert newest_valid(checkpoints, lambda folder, problem: heard.append((folder.name, problem))) == checkpoint_folder(checkpoints, 2)
    ((name, problem),) = heard
    assert name == "step-00000004" and len(problem) > 5


def test_an_unfinished_checkpoint_is_nothing(checkpoints: Path) -> None:
    """What a kill in the middle of a save leaves."""
    checkpoint_folder(checkpoints, 4).rename(checkpoints / "step-00000006.partial")
    assert list_checkpoints(checkpoints) == [checkpoint_folder(checkpoints, 2)]
    assert newest_valid(checkpoints, fail) == checkpoint_folder(checkpoints, 2)


def test_a_run_without_a_good_checkpoint_never_starts_over(checkpoints: Path) -> None:
    for step in (2, 4):
        flip_a_bit(checkpoint_folder(checkpoints, step))
    heard: list[Path] = []
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is intact.*run=NAME"):
        newest_valid(checkpoints, lambda folder, _: heard.append(folder))
    assert heard == [checkpoint_folder(checkpoints, 4), checkpoint_folder(checkpoints, 2)]


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
        save_checkpoint(tmp_path, engine, RunState(step=step), BINDING, keep)
        kept = [checkpoint_folder(tmp_path, number) for number in range(max(step - keep, 0) + 1, step + 1)]
        assert sorted(tmp_path.iterdir()) == kept


def test_what_was_passed_over_does_not_push_out_what_is_good(engine: TrainingEngine, tmp_path: Path) -> None:
    """Step 9 was damaged, so training went on from step 5 and saves step 6: that one must stay, whatever `keep` is."""
    for step in (5, 9):
        save_checkpoint(tmp_path, engine, RunState(step=step), BINDING, 2)
    flip_a_bit(checkpoint_folder(tmp_path, 9))
    save_checkpoint(tmp_path, engine, RunState(step=6), BINDING, 1)
    assert list_checkpoints(tmp_path) == [checkpoint_folder(tmp_path, 6)]
    assert newest_valid(tmp_path, fail) == checkpoint_folder(tmp_path, 6)


def test_saving_a_step_again_replaces_it(engine: TrainingEngine, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, engine, RunState(step=3, tokens=1), BINDING, 2)
    flip_a_bit(folder)
    assert save_checkpoint(tmp_path, engine, RunState(step=3, tokens=2), BINDING, 2) == folder
    assert newest_valid(tmp_path, fail) == folder
    assert load_checkpoint(folder, engine, BINDING) == RunState(step=3, tokens=2)


def test_random_state_goes_on(engine: TrainingEngine, tmp_path: Path) -> None:
    torch.manual_seed(5)
    folder = save_checkpoint(tmp_path, engine, RunState(step=1), BINDING, 1)
    expected = torch.rand(3)
    torch.manual_seed(6)
    load_checkpoint(folder, engine, BINDING)
    assert torch.equal(torch.rand(3), expected)
