"""Runs whose disk is full, read-only or refuses large files for a while: the last good checkpoint is untouched, training goes on, and when the
disk takes files again the run ends as if nothing had been."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_runs import start, wait_for
from run_folders import RunFolder
from small_disk import SmallDisk, files_up_to, small_disk

from slayer.errors import CheckpointError, EngineError
from slayer.launching.compose import compose
from slayer.phases.session import Session
from slayer.pipeline import run_pipeline
from slayer.training.checkpoint.folder import find_problem, list_checkpoints
from slayer.training.checkpoint.saver import Saved

pytestmark = pytest.mark.slow

STEPS = 10
SMALL_FILES = 60_000
"""Bytes: room for logs and events, none for a checkpoint of the tiny model."""
COMMON = ["train.save_every=1", f"train.max_steps={STEPS}", "train.keep_checkpoints=2", "prune=1"]


class Saves:
    """What the run tells of its saves, in order; `then` is asked after each of them, in the thread that writes."""

    def __init__(self) -> None:
        self.told: list[Saved] = []
        self.then: Callable[[Saved], None] = lambda saved: None

    @property
    def failed(self) -> list[int]:
        """Steps whose checkpoint was refused."""
        return [saved.step for saved in self.told if saved.problem is not None]


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> Saves:
    heard, tell = Saves(), Session.tell_saved

    def told(self: Session, saved: Saved) -> None:
        tell(self, saved)
        heard.told.append(saved)
        heard.then(saved)

    monkeypatch.setattr(Session, "tell_saved", told)
    return heard


@pytest.fixture
def refusing() -> Iterator[Callable[[bool], None]]:
    """refusing(True): from now on this process can write no file of more than SMALL_FILES bytes."""
    limits: list[Any] = []

    def refuse(yes: bool) -> None:
        while limits:
            limits.pop().__exit__(None, None, None)
        if yes:
            limits.append(files_up_to(SMALL_FILES))
            limits[-1].__enter__()

    yield refuse
    refuse(False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "48m") as opened:
        yield opened


@pytest.fixture(scope="module")
def undisturbed(run_here: Callable[..., RunFolder]) -> RunFolder:
    return run_here("undisturbed", *COMMON)


def checkpoints_of(run: RunFolder) -> list[Path]:
    return list_checkpoints(run.path / "checkpoints")


def events(run: RunFolder, *names: str) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["event"], line["step"]) for line in lines if line["event"] in names]


def exported(run: RunFolder) -> bytes:
    return (run.path / "model" / "model.safetensors").read_bytes()


def assert_as_undisturbed(run: RunFolder, undisturbed: RunFolder) -> None:
    assert run.timeless == undisturbed.timeless
    assert exported(run) == exported(undisturbed) and run.results["heldout"] == undisturbed.results["heldout"]
    assert [find_problem(path) for path in checkpoints_of(run)] == [None, None]


def test_saving_resumes_by_itself(
    undisturbed: RunFolder, run_here: Callable[..., RunFolder], saves: Saves, refusing: Callable[[bool], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at steps 3 to 6. Warned of each, told when it works again, written into events.jsonl; all else is as ever."""
    good: list[dict[Path, bytes]] = []

    def then(saved: Saved) -> None:
        if saved.step == 2:
            refusing(True)
        if 2 <= saved.step <= 6:
            found = sorted(saved_files(run_folder(undisturbed, "resumes")))
            good.append({path: path.read_bytes() for path in found})
        if saved.step == 6:
            refusing(False)

    saves.then = then
    run = run_here("resumes", *COMMON)
    assert len(good) == 5 and all(files == good[0] for files in good)
    assert_refused_from_3_to_6(run, saves)
    printed = " ".join(capsys.readouterr().out.split())
    assert "checkpoint 3 was not saved: the disk refuses: File too large" in printed and "checkpoint 7 is saved: saving works again" in printed
    assert_as_undisturbed(run, undisturbed)


def run_folder(other: RunFolder, name: str) -> Path:
    return other.path.parent / name


def saved_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]


def test_a_full_disk(undisturbed: RunFolder, overrides: list[str], saves: Saves, disk: SmallDisk, own_cache: None) -> None:
    """No byte can be written from step 3 to step 6: not of a checkpoint, and not of metrics or events either, which are made up for."""
    run = RunFolder(path=disk.path / "run")
    saves.then = lambda saved: disk.fill() if saved.step == 2 else disk.clear() if saved.step == 6 else None
    run_pipeline(compose([*overrides, *COMMON, "run=run", f"runs_dir={disk.path}"]), "python train.py")
    assert_refused_from_3_to_6(run, saves)
    assert_as_undisturbed(run, undisturbed)


def test_checkpoints_on_a_disk_that_is_read_only_for_a_while(undisturbed: RunFolder, run_here: Callable[..., RunFolder], saves: Saves) -> None:
    folder = run_folder(undisturbed, "read_only")
    folder.mkdir()
    with small_disk(folder / "checkpoints", "16m") as disk:
        saves.then = lambda saved: disk.read_only(2 <= saved.step < 6)
        run = run_here("read_only", *COMMON)
        assert_refused_from_3_to_6(run, saves)
        assert_as_undisturbed(run, undisturbed)


def assert_refused_from_3_to_6(run: RunFolder, saves: Saves) -> None:
    assert saves.failed == [3, 4, 5, 6]
    assert events(run, "failed_save", "saved_again") == [*(("failed_save", step) for step in (3, 4, 5, 6)), ("saved_again", 7)]


def test_full_when_the_result_is_written(undisturbed: RunFolder, overrides: list[str], saves: Saves, disk: SmallDisk, own_cache: None) -> None:
    """Full from the save before the last: the run says so and ends without half a model; started again it goes on to the same end."""
    run = RunFolder(path=disk.path / "run")
    config = compose([*overrides, *COMMON, "run=run", f"runs_dir={disk.path}"])
    saves.then = lambda saved: disk.fill() if saved.step == STEPS - 1 else None
    with pytest.raises((EngineError, OSError)) as refused:
        run_pipeline(config, "python train.py")
    assert "space" in str(refused.value) and not (run.path / "model").exists()
    assert [find_problem(path) for path in checkpoints_of(run)] == [None, None]
    disk.clear()
    saves.then = lambda saved: None
    run_pipeline(config, "python train.py")
    assert_as_undisturbed(run, undisturbed)


STAGED = ["freeze=staged", "freeze.stages=[{until_tokens:900,parts:{new:1}},{parts:{new:1,norms:0.5}}]"]


@pytest.fixture(scope="module")
def staged(run_here: Callable[..., RunFolder]) -> tuple[RunFolder, int]:
    """A run in two freeze stages on a disk that never refuses, and the step between them."""
    run = run_here("staged", *COMMON, *STAGED)
    (boundary,) = {json.loads((path / "state.json").read_text(encoding="utf-8"))["run"]["stage_steps"][-1] for path in checkpoints_of(run)}
    assert 2 < boundary < STEPS - 2
    return run, boundary


def test_the_end_of_a_freeze_stage_waits_for_the_disk(
    staged: tuple[RunFolder, int], run_here: Callable[..., RunFolder], saves: Saves, refusing: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next stage begins from a checkpoint: it is tried again until the disk takes it, and the result is that of a disk that never refused."""
    monkeypatch.setattr("slayer.phases.fit.RETRY_SECONDS", 0.01)
    expected, boundary = staged

    def then(saved: Saved) -> None:
        if saved.step == boundary - 1:
            refusing(True)
        if saves.failed == [boundary] * 3:
            refusing(False)

    saves.then = then
    run = run_here("staged_refused", *COMMON, *STAGED)
    assert saves.failed == [boundary] * 3
    assert events(run, "failed_save", "saved_again") == [("failed_save", boundary)] * 3 + [("saved_again", boundary)]
    assert_as_undisturbed(run, expected)


def test_a_stop_while_the_end_of_a_stage_waits(
    staged: tuple[RunFolder, int], run_here: Callable[..., RunFolder], saves: Saves, refusing: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in that wait is heard; the newest checkpoint is the one before, and the same command goes on to the same end."""
    monkeypatch.setattr("slayer.phases.fit.RETRY_SECONDS", 0.01)
    expected, boundary = staged

    def then(saved: Saved) -> None:
        if saved.step == boundary - 1:
            refusing(True)
        if saves.failed == [boundary] * 2:
            os.kill(os.getpid(), signal.SIGTERM)

    saves.then = then
    run = run_here("staged_stopped", *COMMON, *STAGED)
    assert set(saves.failed) == {boundary} and not (run.path / "model").exists()
    assert [path.name for path in checkpoints_of(run)] == [f"step-{boundary - number:08d}" for number in (2, 1)]
    refusing(False)
    saves.then = lambda saved: None
    assert_as_undisturbed(run_here("staged_stopped", *COMMON, *STAGED), expected)


def test_too_many_in_a_row(undisturbed: RunFolder, run_here: Callable[..., RunFolder], saves: Saves, refusing: Callable[[bool], None]) -> None:
    """One clear message; then, with the disk mended, the same command goes on to the same end."""
    settings = [*COMMON, "train.max_failed_saves=3"]
    saves.then = lambda saved: refusing(True) if saved.step == 2 else None
    with pytest.raises(CheckpointError, match=r"3 saves failed one after the other, .*disk refuses.*untouched. Start the same command again"):
        run_here("too_many", *settings)
    run = RunFolder(path=run_folder(undisturbed, "too_many"))
    assert [path.name for path in checkpoints_of(run)] == ["step-00000001", "step-00000002"]
    assert [find_problem(path) for path in checkpoints_of(run)] == [None, None] and not (run.path / "model").exists()
    refusing(False)
    saves.then = lambda saved: None
    assert_as_undisturbed(run_here("too_many", *settings), undisturbed)


def test_too_many_as_a_person_sees_it(overrides: list[str], workspace: Path, own_cache: None) -> None:
    """Through train.py: exit code 2, and a message without a traceback."""
    run = RunFolder(path=workspace / "runs" / "refused")
    process = start(*overrides, "run=refused", "train.save_every=1", "train.max_steps=2000", "train.max_failed_saves=2")
    wait_for(lambda: bool(checkpoints_of(run)), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL_FILES, resource.RLIM_INFINITY))
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 2, printed
    assert "Traceback" not in printed and printed.count("✖") == 1
    assert "2 saves failed one after the other" in printed and "train.max_failed_saves=N" in " ".join(printed.split())
    found = checkpoints_of(run)
    assert found and [find_problem(path) for path in found] == [None] * len(found)
