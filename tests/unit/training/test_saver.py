"""Saving beside training: what is saved is the moment of the save, whatever training does meanwhile, and a disk that refuses costs one save."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_disk import PAGE_BYTES, SmallDisk, files_up_to, small_disk
from small_training import (
    BINDING,
    PRECISIONS,
    STAGES,
    names_in_layer,
    open_engine,
    open_saver,
    run_config,
    same,
    save_now,
    small_model,
    state_of,
    train_steps,
)

from slayer.config import ExpansionConfig, FreezeConfig, TrainConfig
from slayer.errors import CheckpointError, EngineError, FrozenWeightsError
from slayer.forward import load_model
from slayer.surgery.build import build_expanded, read_hashes
from slayer.surgery.plan import build_plan
from slayer.surgery.weights import Weights, require_space
from slayer.training.checkpoint.folder import checkpoint_folder, find_problem, list_checkpoints, superseded
from slayer.training.checkpoint.load import load_checkpoint, read_values
from slayer.training.checkpoint.saver import Saved, Saver
from slayer.training.checkpoint.share import Share
from slayer.training.engine import TrainingEngine
from slayer.training.frozen import FrozenAudit
from slayer.training.ranks import Ranks
from slayer.training.state import RunState

CONFIG = run_config(2)


@pytest.fixture(scope="module")
def engine(ranks: Ranks) -> Iterator[TrainingEngine]:
    """An engine with a step behind it."""
    opened = open_engine(ranks, CONFIG)
    train_steps(opened, CONFIG, 1)
    yield opened
    opened.close()


class SlowDisk:
    """This disk does not even say how much room it has before `arrived` is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.arrived, self.asked = threading.Event(), threading.Event()

        def wait(folder: Path, needed_bytes: int, purpose: str) -> None:
            self.asked.set()
            assert self.arrived.wait(60)
            require_space(folder, needed_bytes, purpose)

        patch.setattr("slayer.training.checkpoint.saver.require_space", wait)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.arrived.set()


@pytest.fixture
def slow_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies begin 0.2 s after the save: time for many steps, if none waited."""
    prompt = Share.copying

    def copying(self: Share, engine: TrainingEngine) -> Callable[[], None]:
        copy = prompt(self, engine)
        return lambda: (time.sleep(0.2), copy())[1]

    monkeypatch.setattr(Share, "copying", copying)


def moment(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """All that a checkpoint of one rank holds in tensors, copied now."""
    guard = {"history": engine.guard.history_2W, "accepted": engine.guard.n_accepted.view(1), "in_a_row": torch.tensor([engine.guard.in_a_row])}
    randoms = {"random/0/torch": torch.get_rng_state()}
    return {**state_of(engine), **{f"guard/{name}": value.clone() for name, value in guard.items()}, **randoms}


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model.safetensors")
    return {name: value for name, value in found.items() if name not in ("random/0/numpy", "random/0/python")}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_saved_is_the_moment_of_the_save(
    ranks: Ranks, tmp_path: Path, slow_copy: None, slow_disk: SlowDisk, stage: int, precision: str
) -> None:
    """Training goes on at once: four micro-batches before the next update, an evaluation, then steps while the files are written."""
    config = run_config(stage, precision, micro_batch_rows=1)
    engine = open_engine(ranks, config)
    try:
        state, _ = train_steps(engine, config, 2, total=9)
        saver, expected, updates = open_saver(tmp_path, engine), moment(engine), engine.updates
        saver.save(state)
        torch.rand(5)
        state, _ = train_steps(engine, config, 4, state=state)
        assert slow_disk.asked.wait(60) and list_checkpoints(tmp_path) == []
        assert not same(moment(engine), expected)
        slow_disk.arrived.set()
        saved = saver.wait()
        assert saved is not None and saved.problem is None and saved.folder == checkpoint_folder(tmp_path, 2)
    finally:
        engine.close()
    assert find_problem(saved.folder) is None
    assert same(saved_tensors(saved.folder), expected)
    assert read_values(saved.folder)["updates"] == updates == dict.fromkeys(names_in_layer(small_model()), 2)


def test_the_loop_waits_for_the_copy_and_says_so(engine: TrainingEngine, tmp_path: Path, slow_copy: None) -> None:
    """0.2 s, the whole of which the next update waits; the file takes no more of its time."""
    saver = open_saver(tmp_path, engine)
    saver.save(RunState(step=1))
    assert saver.blocked_seconds < 0.2
    train_steps(engine, CONFIG, 1)
    first = saver.blocked_seconds
    train_steps(engine, CONFIG, 1)
    saver.wait()
    assert first > 0.1 and saver.blocked_seconds - first < 0.1


def test_a_save_waits_for_the_one_before(engine: TrainingEngine, tmp_path: Path, slow_disk: SlowDisk) -> None:
    saver = open_saver(tmp_path, engine)
    saver.save(RunState(step=1))
    assert slow_disk.asked.wait(60) and list_checkpoints(tmp_path) == []
    threading.Timer(0.2, slow_disk.arrived.set).start()
    saver.save(RunState(step=2))
    assert list_checkpoints(tmp_path)[0] == checkpoint_folder(tmp_path, 1)
    assert saver.blocked_seconds > 0.1
    saver.wait()
    assert [find_problem(folder) for folder in list_checkpoints(tmp_path)] == [None, None]


def test_what_no_longer_trains_is_saved_as_well(ranks: Ranks, tmp_path: Path) -> None:
    """Its master alone: moments are of no use any more."""
    names = names_in_layer(small_model())
    first = open_engine(ranks, CONFIG)
    try:
        train_steps(first, CONFIG, 2)
        folder = save_now(tmp_path, first, RunState(step=2)).folder
        expected = state_of(first)
    finally:
        first.close()
    assert folder is not None
    second = open_engine(ranks, CONFIG, trainable=["model.norm.weight"])
    try:
        load_checkpoint(folder, second, BINDING)
        train_steps(second, CONFIG, 1)
        again = save_now(tmp_path, second, RunState(step=3)).folder
    finally:
        second.close()
    assert again is not None
    found = load_file(again / "model.safetensors")
    assert {name for name in found if "/model." in name} == {
        *(f"master/{name}" for name in names), *(f"{kind}/model.norm.weight" for kind in ("master", "exp_avg", "exp_avg_sq")),
    }  # fmt: skip
    assert all(torch.equal(found[f"master/{name}"], expected[f"master/{name}"]) for name in names)


def raising(error: Exception) -> Callable[..., None]:
    def act(*_: Any) -> None:
        raise error

    return act


@pytest.mark.parametrize("where", ["check_frozen", "on_saved"])
def test_an_error_of_the_thread_comes_to_whoever_waits(engine: TrainingEngine, tmp_path: Path, where: str) -> None:
    """One that nobody foresaw, that is."""
    saver = Saver(tmp_path, engine, BINDING, TrainConfig(), {}, **{where: raising(RuntimeError("unforeseen"))})  # type: ignore[arg-type]
    saver.save(RunState(step=1))
    for call in (saver.wait, saver.require_good, lambda: saver.save(RunState(step=2))):
        with pytest.raises(RuntimeError, match="unforeseen"):
            call()
    assert saver.is_fatal
    train_steps(engine, CONFIG, 1)


def test_an_error_while_copying_does_not_hold_training_up(engine: TrainingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Share, "copying", lambda self, engine: raising(RuntimeError("the device is gone")))
    saver = open_saver(tmp_path, engine)
    saver.save(RunState(step=1))
    train_steps(engine, CONFIG, 1)
    with pytest.raises(RuntimeError, match="the device is gone"):
        saver.wait()
    assert list_checkpoints(tmp_path) == []


def test_abandoning_does_not_wait_for_ever(engine: TrainingEngine, tmp_path: Path, slow_disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slayer.training.checkpoint.saver._ABANDON_SECONDS", 0.1)
    saver = open_saver(tmp_path, engine)
    saver.save(RunState(step=1))
    saver.abandon()
    assert list_checkpoints(tmp_path) == []
    slow_disk.arrived.set()
    saver.wait()


def test_before_the_first_save_all_is_well(engine: TrainingEngine, tmp_path: Path) -> None:
    saver = open_saver(tmp_path, engine)
    assert saver.wait() is None and not saver.is_fatal
    saver.require_good()
    saver.abandon()


def test_its_memory_is_gone_with_its_last_user(engine: TrainingEngine, tmp_path: Path) -> None:
    """A freeze stage builds a new engine and a new saver: the engine must not keep the one before, with all that it has copied."""
    saver = open_saver(tmp_path, engine)
    saver.save(RunState(step=1))
    saver.wait()
    there = weakref.ref(saver)
    del saver
    assert there() is None
    train_steps(engine, CONFIG, 1)


# --- what is kept


@given(steps=st.lists(st.integers(1, 60), min_size=1, max_size=25), keep=st.integers(1, 4), every=st.none() | st.integers(1, 12))
def test_which_ones_are_kept(steps: list[int], keep: int, every: int | None) -> None:
    """Any order of saves: of the steps up to the last one saved the `keep` latest and the multiples of `every`, of the later ones none."""
    there: set[int] = set()
    for step in steps:
        there |= {step}
        found = sorted((checkpoint_folder(Path("c"), one) for one in there), key=lambda path: int(path.name[5:]))
        gone = {int(path.name[5:]) for path in superseded(found, checkpoint_folder(Path("c"), step), keep=keep, keep_every=every)}
        for one in there:
            n_between = len([other for other in there if one < other <= step])
            stays = one <= step and (n_between < keep or (every is not None and one % every == 0))
            assert (one not in gone) == stays
        there -= gone
    assert step in there and len([one for one in there if every is None or one % every]) <= keep


def test_they_are_kept_on_the_disk(engine: TrainingEngine, tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        save_now(tmp_path, engine, RunState(step=step), keep_checkpoints=1, keep_every=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000008", "step-00000010"]
    save_now(tmp_path, engine, RunState(step=5), keep_checkpoints=1, keep_every=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


# --- disks that refuse


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as opened:
        yield opened


class Told:
    """A saver, and what it told of its saves."""

    def __init__(self, checkpoints: Path, engine: TrainingEngine, **settings: Any) -> None:
        self.saves: list[Saved] = []
        self.saver = Saver(checkpoints, engine, BINDING, TrainConfig(**settings), {}, on_saved=self.saves.append)

    def save(self, step: int) -> Saved:
        self.saver.save(RunState(step=step))
        saved = self.saver.wait()
        assert saved is self.saves[-1] and saved.step == step
        assert isinstance(saved.problem, EngineError) == (saved.folder is None)
        return saved


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_full_at_any_page(engine: TrainingEngine, disk: SmallDisk) -> None:
    """From no room at all to enough, page by page: a whole checkpoint or none, nothing half, and the one before as it was."""
    checkpoints = disk.path / "checkpoints"
    told = Told(checkpoints, engine, keep_checkpoints=1, max_failed_saves=10_000)
    good = told.save(1).folder
    assert good is not None
    before, needed = content(good), sum(-(-path.stat().st_size // PAGE_BYTES) for path in good.iterdir())
    outcomes = []
    for n_pages in range(needed + 3):
        disk.fill(leaving_bytes=n_pages * PAGE_BYTES)
        saved = told.save(2)
        outcomes.append(saved.problem is None)
        if saved.folder is not None:
            assert list_checkpoints(checkpoints) == [saved.folder] and find_problem(saved.folder) is None
            break
        assert sorted(checkpoints.iterdir()) == [good] and content(good) == before
        text = str(saved.problem)
        assert "not enough disk space for a checkpoint" in text or "the disk refuses: No space left on device" in text
    assert outcomes[-1] and needed - 1 <= len(outcomes) - 1 <= needed + 2
    problems = [str(saved.problem) for saved in told.saves[1:-1]]
    assert any("refuses" in problem for problem in problems)  # beyond the check of free space: in tensors, state or manifest


def test_a_read_only_disk(engine: TrainingEngine, disk: SmallDisk) -> None:
    told = Told(disk.path, engine, max_failed_saves=3)
    good = told.save(1).folder
    assert good is not None
    before = content(good)
    disk.read_only(True)
    failed = told.save(2)
    assert "Read-only file system" in str(failed.problem) and not failed.fatal
    told.saver.require_good()
    assert content(good) == before and list_checkpoints(disk.path) == [good]
    disk.read_only(False)
    assert told.save(3).problem is None
    assert [find_problem(path) for path in list_checkpoints(disk.path)] == [None, None]


def test_too_many_failed_saves_in_a_row(engine: TrainingEngine, tmp_path: Path) -> None:
    """Two are too many here; one that works in between makes the count begin anew."""
    told = Told(tmp_path, engine, max_failed_saves=2)
    good = told.save(1).folder
    with files_up_to(20_000):
        assert not told.save(2).fatal
    assert told.save(3).problem is None
    with files_up_to(20_000):
        assert not told.save(4).fatal and not told.saver.is_fatal
        told.saver.require_good()
        assert told.save(5).fatal and told.saver.is_fatal
    with pytest.raises(CheckpointError, match=r"2 saves failed .*the last at step 5: the disk refuses: File too large.*untouched.*max_failed_saves"):
        told.saver.require_good()
    assert list_checkpoints(tmp_path) == sorted(tmp_path.iterdir()) == [good, checkpoint_folder(tmp_path, 3)]
    assert [find_problem(path) for path in list_checkpoints(tmp_path)] == [None, None]


@pytest.mark.parametrize("n_bytes", [0, 1000, 20_000])
def test_a_limit_in_the_middle_of_a_file(engine: TrainingEngine, tmp_path: Path, n_bytes: int) -> None:
    """Nothing of the file that was begun stays behind; the problem says in one line what the disk says."""
    told = Told(tmp_path, engine)
    with files_up_to(n_bytes):
        problem = str(told.save(1).problem)
    assert problem.startswith("the disk refuses: File too large") and "\n" not in problem and list(tmp_path.iterdir()) == []
    assert told.save(1).problem is None


def test_a_folder_that_cannot_be_made(engine: TrainingEngine, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    problem = Told(tmp_path / "checkpoints", engine).save(1).problem
    assert "the disk refuses" in str(problem) and (tmp_path / "checkpoints").read_text() == "a file"


def test_training_goes_on_beside_a_disk_that_refuses(ranks: Ranks, tmp_path: Path) -> None:
    """The same six steps with every save refused: records, weights and moments of a run that saves."""
    results = []
    for limit in (10_000, None):
        opened = open_engine(ranks, CONFIG)
        try:
            config = run_config(2, save_every=2)
            if limit is None:
                _, diary = train_steps(opened, config, 6, checkpoints=tmp_path / "kept")
            else:
                with files_up_to(limit):
                    _, diary = train_steps(opened, config, 6, checkpoints=tmp_path / "refused")
            results.append((diary.timeless, state_of(opened)))
        finally:
            opened.close()
    assert results[0][0] == results[1][0] and same(results[0][1], results[1][1])
    assert list_checkpoints(tmp_path / "refused") == [] and len(list_checkpoints(tmp_path / "kept")) == 3


# --- frozen weights

FROZEN = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("stage", (2, 3))
def test_a_frozen_weight_that_changed_is_not_saved(tiny_folder: Callable[..., Path], ranks: Ranks, tmp_path: Path, stage: int) -> None:
    """The audit beside training: the checkpoint does not count, the last good one stays, and nothing is saved any more."""
    built, config = tmp_path / "expanded", run_config(stage, "bf16")
    plan = build_plan(4, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="originals"))
    build_expanded(tiny_folder(), plan, built, seed=0)
    names = [name for name in Weights(built).infos if name.startswith("model.layers.2.")]
    engine = open_engine(ranks, config, load_model(built, "bf16"), names)
    try:
        audit = FrozenAudit(built, read_hashes(built), torch.bfloat16, ranks)
        audit.check(engine, "at the start")
        saver = Saver(tmp_path / "c", engine, BINDING, TrainConfig(), {}, check_frozen=lambda: audit.check_resident(engine))
        state, _ = train_steps(engine, config, 1)
        saver.save(state)
        train_steps(engine, config, 1)
        saver.require_good()
        good = checkpoint_folder(tmp_path / "c", 1)
        before = content(good)
        with engine.whole(FROZEN, write=True) as parameter:
            parameter.data.view(torch.int16)[3, 5] ^= 1
        for step in (2, 3):
            saver.save(RunState(step=step))
            saved = saver.wait()
            assert saved is not None and (saved.step, saved.folder) == (2, None) and saved.fatal and saver.is_fatal
            with pytest.raises(FrozenWeightsError, match=f"{FROZEN} .*not kept"):
                saver.require_good()
        assert sorted((tmp_path / "c").iterdir()) == [good] and content(good) == before
    finally:
        engine.close()


def test_files_are_json_and_safetensors_only(engine: TrainingEngine, tmp_path: Path) -> None:
    folder = save_now(tmp_path, engine, RunState(step=1)).folder
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors", "state.json"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        name: (folder / name).stat().st_size for name in ("model.safetensors", "state.json")
    }
