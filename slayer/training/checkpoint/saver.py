"""Writes checkpoints while training goes on, by a thread of each rank: a copy to host memory, which the next update waits for, then files.

Every rank writes its share of the tensors; the first one writes the rest, the manifest last, and renames. What the threads agree on
goes over a process group of their own.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.config import TrainConfig
from slayer.data.cache import fsync
from slayer.errors import CheckpointError, EngineError, FrozenWeightsError, SlayerError
from slayer.surgery.weights import INDEX_NAME, require_space
from slayer.training.checkpoint.folder import (
    PARTIAL,
    STATE_NAME,
    checkpoint_folder,
    list_checkpoints,
    remove,
    superseded,
    write_json,
    write_manifest,
)
from slayer.training.checkpoint.random_state import random_state
from slayer.training.checkpoint.share import Files, Share
from slayer.training.engine import TrainingEngine
from slayer.training.state import Binding, RunState

if TYPE_CHECKING:
    import torch

_ABANDON_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What came of a save: its folder, or why there is none (the last good checkpoint is as it was)."""

    step: int
    folder: Path | None
    problem: SlayerError | None = None
    fatal: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """What a checkpoint holds besides masters and moments, as it is when the save begins. `random`: this rank's generators."""

    step: int
    values: dict[str, Any]
    random: dict[str, torch.Tensor]
    guard: dict[str, torch.Tensor]


class _Pause:
    """How long training stands still for one save. It knows neither saver nor engine, so that both are gone with their last user."""

    def __init__(self) -> None:
        self.copied, self.seconds = threading.Event(), 0.0

    def wait(self) -> None:
        """Return when the copy is made."""
        started = time.perf_counter()
        self.copied.wait()
        self.seconds += time.perf_counter() - started


class Saver:
    """The checkpoints of one engine. All methods are called by all ranks at the same step."""

    def __init__(
        self, checkpoints: Path, engine: TrainingEngine, binding: Binding, train: TrainConfig, facts: Mapping[str, Any],
        *, check_frozen: Callable[[], None] = lambda: None, on_saved: Callable[[Saved], None] = lambda saved: None,
    ) -> None:  # fmt: skip
        """`facts`: more that state.json keeps (the plan, the base). `check_frozen` runs in the background before a checkpoint counts, and raises
        FrozenWeightsError where a frozen tensor has changed. `on_saved` hears of every save on the first rank, from its thread."""
        self.checkpoints, self.engine, self.binding, self.train, self.facts = checkpoints, engine, binding, train, facts
        self.check_frozen, self.on_saved = check_frozen, on_saved
        self.failed_in_a_row = 0
        self._last: Saved | None = None
        self._crash: Exception | None = None
        self._thread: threading.Thread | None = None
        self._share = Share(engine)
        self._pause = _Pause()

    @property
    def blocked_seconds(self) -> float:
        """Time that training stood still for the last save: in `save`, and before the update that followed."""
        return self._pause.seconds

    def save(self, state: RunState) -> None:
        """Save the engine as it is now, in the background. A save still under way is waited for first; after a fatal one there is no other.
        Collective."""
        started = time.perf_counter()
        last, engine = self.wait(), self.engine
        if last is not None and last.fatal:
            return
        values = {
            "run": state.to_dict(), "updates": engine.updates, **asdict(self.binding), **self.facts,
            "world": engine.ranks.world, "zero_stage": engine.stage,
        }  # fmt: skip
        guard = {f"guard/{name}": value for name, value in engine.guard.state().items()}
        content = _Content(step=state.step, values=values, random=random_state(engine.ranks.rank), guard=guard)
        copy, self._pause = self._share.copying(engine), _Pause()
        self._thread = threading.Thread(target=self._run, args=(content, copy), name="checkpoint", daemon=True)
        engine.before_update = self._pause.wait
        self._thread.start()
        self._pause.seconds = time.perf_counter() - started

    def wait(self) -> Saved | None:
        """Return when the last save has come to an end, with what came of it; None before the first. Collective."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._crash is not None:
            raise self._crash
        return self._last

    @property
    def is_fatal(self) -> bool:
        """True when this rank knows that training must not go on. The others learn of it at their own time: agree, then call `require_good`."""
        return self._crash is not None or (self._last is not None and self._last.fatal)

    def require_good(self) -> None:
        """Raise, on every rank alike, what makes going on senseless: a frozen weight that changed, or too many failed saves. Collective."""
        saved = self.wait()
        if saved is None or not saved.fatal:
            return
        if isinstance(saved.problem, FrozenWeightsError):
            raise saved.problem
        raise CheckpointError(
            f"{self.failed_in_a_row} saves failed one after the other, the last at step {saved.step}: {saved.problem}. What was saved before is "
            "untouched. Start the same command again when the disk is mended; train.max_failed_saves=N lets a run go on without for longer"
        )

    def abandon(self) -> None:
        """After an error: give the thread a moment. It may wait for ranks that are gone, and it ends with the process."""
        if self._thread is not None:
            self._thread.join(timeout=_ABANDON_SECONDS)

    def _run(self, content: _Content, copy: Callable[[], None]) -> None:
        try:
            try:
                copy()
            finally:
                self._pause.copied.set()
            self._last = self._write(content)
            if self.engine.ranks.is_first:
                self.on_saved(self._last)
        except Exception as error:  # raised by `wait` in the thread that can act on it
            self._crash = error

    def _write(self, content: _Content) -> Saved:
        started = time.perf_counter()
        ranks, folder = self.engine.ranks, checkpoint_folder(self.checkpoints, content.step)
        aside = folder.with_name(f"{folder.name}{PARTIAL}")
        if ranks.meeting is not None:
            self._share.exchange(ranks.meeting.aside)
        randoms = {name: value for own in ranks.gather_aside(content.random) for name, value in own.items()}
        outcomes = ranks.gather_aside(self._write_share(aside, content, randoms | content.guard))
        problem = next((why for _, why in outcomes if why is not None), None)
        if ranks.is_first:
            problem = problem or self._commit(aside, folder, {name: entry for files, _ in outcomes for name, entry in files.items()})
            if problem is not None:
                shutil.rmtree(aside, ignore_errors=True)
        problem = ranks.gather_aside(problem)[0]
        self.failed_in_a_row = self.failed_in_a_row + 1 if problem is not None else 0
        fatal = isinstance(problem, FrozenWeightsError) or self.failed_in_a_row >= self.train.max_failed_saves
        return Saved(
            step=content.step, folder=folder if problem is None else None, problem=problem, fatal=fatal, seconds=time.perf_counter() - started
        )  # fmt: skip

    def _write_share(self, aside: Path, content: _Content, small: Mapping[str, torch.Tensor]) -> tuple[Files, SlayerError | None]:
        """This rank's files, and why they could not be written."""
        is_first = self.engine.ranks.is_first
        try:
            if is_first:
                require_space(self.checkpoints, self._share.total_bytes, "a checkpoint")
            aside.mkdir(parents=True, exist_ok=True)
            files = self._share.write(aside, small if is_first else {})
            if is_first:
                files[STATE_NAME] = write_json(aside / STATE_NAME, content.values)
                if self.engine.ranks.world > 1:
                    files[INDEX_NAME] = write_json(aside / INDEX_NAME, self._share.index(small))
            self.check_frozen()
            return files, None
        except OSError as error:
            return {}, _disk_refuses(error, aside)
        except SlayerError as error:
            return {}, error

    def _commit(self, aside: Path, folder: Path, files: Files) -> SlayerError | None:
        try:
            write_manifest(aside, files)
            remove(folder)
            aside.rename(folder)
            fsync(self.checkpoints)
        except OSError as error:
            return _disk_refuses(error, aside)
        for old in superseded(list_checkpoints(self.checkpoints), folder, keep=self.train.keep_checkpoints, keep_every=self.train.keep_every):
            remove(old)
        return None


def _disk_refuses(error: OSError, folder: Path) -> EngineError:
    return EngineError(f"the disk refuses: {error.strerror or error} ({error.filename or folder})")
