"""Whatever happens to a checkpoint on its disk is noticed and named, and the run goes on from the one before it, bit for bit."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_training import BINDING, Diary, open_engine, run_config, same, save_now, state_of, train_steps, weights_of

from slayer.errors import CheckpointError
from slayer.training.checkpoint.folder import find_problem, list_checkpoints, newest_valid, remove, remove_unfinished
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.ranks import Ranks
from slayer.training.state import RunState

INDEX = "model.safetensors.index.json"
FILES = {"one rank": ["model.safetensors"], "two ranks": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]}
LAYOUTS = tuple(FILES)


@dataclass(frozen=True, kw_only=True)
class Course:
    """Six steps without a pause: where they led, and the checkpoints of steps 2 and 4 in both layouts."""

    folder: Path
    final: dict[str, torch.Tensor]
    records: list[dict[str, Any]]


@pytest.fixture(scope="module")
def engine(ranks: Ranks) -> Iterator[TrainingEngine]:
    """Every test loads a checkpoint into it; nothing of what it held before stays."""
    opened = open_engine(ranks, run_config(2, save_every=2))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def course(engine: TrainingEngine, tmp_path_factory: pytest.TempPathFactory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    _, diary = train_steps(engine, run_config(2, save_every=2), 6, checkpoints=folder / "one rank")
    shutil.rmtree(folder / "one rank" / "step-00000006")
    shutil.copytree(folder / "one rank", folder / "two ranks")
    for checkpoint in (folder / "two ranks").iterdir():
        cut_in_two(checkpoint)
    return Course(folder=folder, final={**state_of(engine), **weights_of(engine)}, records=diary.timeless)


def cut_in_two(checkpoint: Path) -> None:
    """What two ranks would have written, made by hand from the format: two shards and an index as Hugging Face names them."""
    tensors, names = load_file(checkpoint / "model.safetensors"), FILES["two ranks"]
    shards: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for number, name in enumerate(sorted(tensors)):
        shards[number % 2 if "/model." in name else 0][name] = tensors[name]
    (checkpoint / "model.safetensors").unlink()
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, checkpoint / name)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    seal(checkpoint, {path.name for path in checkpoint.iterdir()} - {"manifest.json"})


def seal(checkpoint: Path, names: set[str], **changes: Any) -> None:
    """A manifest that is right in itself: its own hash over what it says of `names`, and of `changes`."""
    files: dict[str, Any] = {}
    for name in sorted(names | set(changes)):
        content = (checkpoint / name).read_bytes() if (checkpoint / name).is_file() else b""
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), **changes.get(name, {})}
    body = {"format": 3, "files": files}
    as_written = (json.dumps(body, indent=1) + "\n").encode()
    whole = {**body, "sha256": hashlib.sha256(as_written).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(params=LAYOUTS)
def checkpoints(course: Course, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of them, to be damaged."""
    return shutil.copytree(course.folder / request.param, tmp_path / request.param)


def weights_file(checkpoint: Path) -> Path:
    return sorted(checkpoint.glob("*.safetensors"))[-1]


def named(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.iterdir()} - {"manifest.json"}


def flip(path: Path, place: float, bit: int = 2) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * place), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def add(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def replace_by(path: Path, other: Path) -> None:
    """The same file of the other checkpoint, in its place."""
    shutil.copyfile(other / path.name, path)


def edit_state(checkpoint: Path, old: str, new: str) -> None:
    text = (checkpoint / "state.json").read_text(encoding="utf-8")
    assert old in text
    (checkpoint / "state.json").write_text(text.replace(old, new), encoding="utf-8")


def is_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to(checkpoint: Path, target: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to(target)


def taken_for_newer(checkpoint: Path, older: Path) -> None:
    """What a pointer to the newest would do that was written too late."""
    shutil.rmtree(checkpoint)
    shutil.copytree(older, checkpoint)


def a_shard_forgotten(checkpoint: Path) -> None:
    """One file of tensors is gone, and a manifest was made anew of what is left."""
    weights_file(checkpoint).unlink()
    seal(checkpoint, named(checkpoint))


def as_file(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.write_text("a file")


WEIGHTS, STATE, MANIFEST = ".safetensors", "state.json", "manifest.json"
Damage = Callable[[Path, Path], object]

DAMAGES: dict[str, tuple[Damage, str]] = {
    "a bit of the tensors flipped": (lambda new, old: flip(weights_file(new), 0.9), WEIGHTS),
    "a bit of the tensors' header flipped": (lambda new, old: flip(weights_file(new), 0.01), WEIGHTS),
    "tensors cut short": (lambda new, old: cut(weights_file(new), 1000), WEIGHTS),
    "tensors cut by a byte": (lambda new, old: cut(weights_file(new), 1), WEIGHTS),
    "tensors of no length": (lambda new, old: weights_file(new).write_bytes(b""), WEIGHTS),
    "tensors gone": (lambda new, old: weights_file(new).unlink(), WEIGHTS),
    "tensors with something behind them": (lambda new, old: add(weights_file(new), b"\0"), WEIGHTS),
    "tensors of the other checkpoint": (lambda new, old: replace_by(weights_file(new), old), WEIGHTS),
    "a folder where tensors were": (lambda new, old: is_a_folder(weights_file(new)), WEIGHTS),
    "tensors forgotten by a manifest made anew": (lambda new, old: a_shard_forgotten(new), WEIGHTS),
    "tensors of other ranks beside": (lambda new, old: shutil.copyfile(weights_file(new), new / "model-00003-of-00003.safetensors"), WEIGHTS),
    "an index that no manifest names": (
        lambda new, old: (new / INDEX).write_text(json.dumps({"weight_map": {"master/x": weights_file(new).name}})), INDEX,
    ),
    "state changed": (lambda new, old: edit_state(new, '"step": 4', '"step": 5'), STATE),
    "state cut short": (lambda new, old: cut(new / STATE, 10), STATE),
    "state of no length": (lambda new, old: (new / STATE).write_bytes(b""), STATE),
    "state gone": (lambda new, old: (new / STATE).unlink(), STATE),
    "state of the other checkpoint": (lambda new, old: replace_by(new / STATE, old), STATE),
    "state with something behind it": (lambda new, old: add(new / STATE, b"\n"), STATE),
    "state that is none, in a manifest made anew": (lambda new, old: ((new / STATE).write_text("[]"), seal(new, named(new))), STATE),
    "manifest gone: renamed too early": (lambda new, old: (new / MANIFEST).unlink(), MANIFEST),
    "manifest of no length": (lambda new, old: (new / MANIFEST).write_bytes(b""), MANIFEST),
    "manifest cut short": (lambda new, old: cut(new / MANIFEST, 1), MANIFEST),
    "manifest of the other checkpoint": (lambda new, old: replace_by(new / MANIFEST, old), ""),
    "manifest with a wrong hash": (lambda new, old: seal(new, named(new), **{STATE: {"sha256": "0" * 64}}), STATE),
    "manifest with a wrong size": (lambda new, old: seal(new, named(new), **{STATE: {"bytes": 5}}), STATE),
    "manifest without the state": (lambda new, old: seal(new, named(new) - {STATE}), STATE),
    "manifest without a file of tensors": (lambda new, old: seal(new, named(new) - {weights_file(new).name}), WEIGHTS),
    "manifest with one file too many": (lambda new, old: seal(new, named(new), **{"more.safetensors": {}}), "more.safetensors"),
    "manifest with a name that is none": (lambda new, old: seal(new, named(new), **{"a\0b": {}}), "a\0b"),
    "manifest of an older format": (lambda new, old: (new / MANIFEST).write_text('{"format": 2, "files": {}}'), MANIFEST),
    "manifest of another form": (lambda new, old: (new / MANIFEST).write_text("[1]"), MANIFEST),
    "manifest without entries": (lambda new, old: (new / MANIFEST).write_text("{}"), MANIFEST),
    "manifest that is no text": (lambda new, old: (new / MANIFEST).write_bytes(b"\xff\xfe\x00"), MANIFEST),
    "manifest nested without end": (lambda new, old: (new / MANIFEST).write_text("[" * 200_000), MANIFEST),
    "a folder where the manifest was": (lambda new, old: is_a_folder(new / MANIFEST), MANIFEST),
    "nothing in the folder": (lambda new, old: (shutil.rmtree(new), new.mkdir()), MANIFEST),
    "a file in its place": (lambda new, old: as_file(new), "it is a file"),
    "the older one under its name": (taken_for_newer, STATE),
    "a link to the older one": (link_to, STATE),
    "a link to nothing": (lambda new, old: link_to(new, new / "nowhere"), "it cannot be opened"),
}  # fmt: skip


def newest_and_heard(checkpoints: Path) -> tuple[Path | None, list[tuple[str, str]]]:
    heard: list[tuple[str, str]] = []
    return newest_valid(checkpoints, lambda folder, problem: heard.append((folder.name, problem))), heard


def go_on(engine: TrainingEngine, checkpoint: Path, steps: int) -> Diary:
    state = load_checkpoint(checkpoint, engine, BINDING)
    return train_steps(engine, run_config(2), steps, state=state)[1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_named_and_the_run_goes_on_from_the_one_before(checkpoints: Path, course: Course, engine: TrainingEngine, damage: str) -> None:
    """The problem names the file; from the older checkpoint on, records, weights and moments are those of the run without a pause."""
    do, what = DAMAGES[damage]
    older, newer = list_checkpoints(checkpoints)
    do(newer, older)
    found, heard = newest_and_heard(checkpoints)
    assert found == older
    ((name, problem),) = heard
    assert name == "step-00000004" and what in problem and "\n" not in problem
    diary = go_on(engine, older, 4)
    assert diary.timeless == course.records[2:]
    assert same({**state_of(engine), **weights_of(engine)}, course.final)


def test_without_damage_it_goes_on_from_the_newest(checkpoints: Path, course: Course, engine: TrainingEngine) -> None:
    """The control: no false alarm in either layout, hidden files and notes beside included."""
    (checkpoints / "step-00000004" / ".nfs0001").write_bytes(b"left by a file system")
    (checkpoints / "step-00000004" / "notes.txt").write_text("mine")
    found, heard = newest_and_heard(checkpoints)
    assert (found, heard) == (checkpoints / "step-00000004", [])
    assert go_on(engine, checkpoints / "step-00000004", 2).timeless == course.records[4:]
    assert same({**state_of(engine), **weights_of(engine)}, course.final)


@pytest.mark.parametrize("damage", ["tensors cut short", "manifest gone: renamed too early", "nothing in the folder", "a file in its place"])
def test_when_all_are_damaged_no_run_starts_over(checkpoints: Path, damage: str) -> None:
    older, newer = list_checkpoints(checkpoints)
    for checkpoint in (older, newer):
        DAMAGES[damage][0](checkpoint, older)
    heard: list[Path] = []
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is intact.*run=NAME"):
        newest_valid(checkpoints, lambda folder, _: heard.append(folder))
    assert heard == [newer, older]


def some_file(checkpoints: Path, draw: st.DataObject) -> Path:
    files = sorted(path for path in (checkpoints / "step-00000004").iterdir() if path.is_file())
    return draw.draw(st.sampled_from(files), "file")


@pytest.mark.parametrize("layout", LAYOUTS)
@given(draw=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bit_of_any_file(course: Course, layout: str, draw: st.DataObject) -> None:
    path = some_file(course.folder / layout, draw)
    whole = path.read_bytes()
    place = draw.draw(st.integers(0, len(whole) - 1), "byte")
    content = bytearray(whole)
    content[place] ^= 1 << draw.draw(st.integers(0, 7), "bit")
    path.write_bytes(content)
    try:
        problem = find_problem(path.parent)
    finally:
        path.write_bytes(whole)
    assert problem is not None and path.name in problem
    assert find_problem(path.parent) is None


@pytest.mark.parametrize("layout", LAYOUTS)
@given(draw=st.data())
@settings(max_examples=100, deadline=None)
def test_any_file_cut_or_continued_anywhere(course: Course, layout: str, draw: st.DataObject) -> None:
    path = some_file(course.folder / layout, draw)
    whole = path.read_bytes()
    kept = whole[: draw.draw(st.integers(0, len(whole) - 1), "kept")]
    changed = draw.draw(st.sampled_from([kept, kept + b"\0" * (len(whole) - len(kept)), whole + whole[: len(kept) + 1]]), "content")
    path.write_bytes(changed)
    try:
        problem = find_problem(path.parent)
    finally:
        path.write_bytes(whole)
    # Zeroes in the place of zeroes are no damage.
    assert (problem is None) == (changed == whole) and (problem is None or path.name in problem)


@pytest.mark.parametrize(
    "name", ["step-00000006.partial", "step-00000004 (copy)", "step-4", "step-000000004", "step-00000004.bak", "latest", "step-٠٠٠٠٠٠٠٤"]
)
def test_other_names_are_no_checkpoints(checkpoints: Path, name: str) -> None:
    """A save that a kill cut short, a copy that somebody made, a number that reads like another one."""
    newest = checkpoints / "step-00000004"
    shutil.copytree(newest, checkpoints / name)
    shutil.rmtree(newest)
    assert newest_and_heard(checkpoints) == (checkpoints / "step-00000002", [])


def test_a_copy_under_another_step_is_not_taken(checkpoints: Path) -> None:
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000008")
    found, heard = newest_and_heard(checkpoints)
    assert found == checkpoints / "step-00000004"
    assert heard == [("step-00000008", "state.json is of step 4, and the folder's name says 8")]


def test_a_link_to_a_whole_one_is_as_good(checkpoints: Path) -> None:
    """Somebody moved a checkpoint to another disk and left a link."""
    newest = checkpoints / "step-00000004"
    newest.rename(checkpoints.parent / "elsewhere")
    newest.symlink_to(checkpoints.parent / "elsewhere")
    assert newest_and_heard(checkpoints) == (newest, [])


@contextmanager
def nobody() -> Iterator[None]:
    """File permissions apply to this thread, also where it is root."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read everything, and only Linux lets a thread look at files as somebody else")
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(0)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json", ""])
def test_what_may_not_be_read(course: Course, name: str) -> None:
    """The file, or the whole folder, is somebody else's."""
    with tempfile.TemporaryDirectory() as scratch:  # pytest's folders are closed to everybody else
        Path(scratch).chmod(0o755)
        checkpoints = shutil.copytree(course.folder / "one rank", Path(scratch) / "checkpoints")
        (checkpoints / "step-00000004" / name).chmod(0o000)
        with nobody():
            found, heard = newest_and_heard(checkpoints)
        (checkpoints / "step-00000004").chmod(0o755)
    assert found == checkpoints / "step-00000002"
    ((_, problem),) = heard
    assert "Permission denied" in problem and (name or "manifest.json") in problem


def test_checkpoints_that_cannot_be_listed_are_not_none(course: Course, tmp_path: Path) -> None:
    """Their folder is somebody else's, or a file: a run must not begin at step 0 for that."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        checkpoints = shutil.copytree(course.folder / "one rank", Path(scratch) / "checkpoints")
        checkpoints.chmod(0o000)
        with nobody(), pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\).*run=NAME"):
            newest_and_heard(checkpoints)
        checkpoints.chmod(0o755)
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Not a directory\)"):
        newest_and_heard(tmp_path / "checkpoints")


@pytest.mark.parametrize("damage", ["a file in its place", "a link to the older one", "tensors gone", "nothing in the folder"])
def test_training_saves_over_what_is_damaged(checkpoints: Path, engine: TrainingEngine, damage: str) -> None:
    """The same step is saved again: whatever stands there goes; of a link only the link."""
    older, newer = list_checkpoints(checkpoints)
    DAMAGES[damage][0](newer, older)
    state = load_checkpoint(older, engine, BINDING)
    saved = save_now(checkpoints, engine, RunState(step=4, tokens=state.tokens))
    assert saved.folder == newer and not newer.is_symlink() and newest_and_heard(checkpoints) == (newer, [])
    assert find_problem(older) is None and sorted(checkpoints.iterdir()) == [older, newer]


def test_removing_takes_only_what_has_the_name(checkpoints: Path) -> None:
    """A link loses the link, and a folder its name first; what a kill left of that is cleared at the next start."""
    older, newer = list_checkpoints(checkpoints)
    link = checkpoints / "step-00000009"
    link.symlink_to(older)
    (checkpoints / "step-00000011").write_text("a file")
    for path in (link, checkpoints / "step-00000011", newer, checkpoints / "step-00000077"):
        remove(path)
    assert sorted(checkpoints.iterdir()) == [older] and find_problem(older) is None
    for name in ("step-00000004.partial", "step-00000004.partial.old"):
        shutil.copytree(older, checkpoints / name)
    (checkpoints / "step-00000005.partial").write_text("a file")
    remove_unfinished(checkpoints)
    assert sorted(checkpoints.iterdir()) == [older]
