"""A command as a scheduler sees it: started, started again when its exit code asks for it, broken on purpose, and watched from outside."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from drill_server import ROOT, tail

KINDS = ("rank killed", "rank frozen", "rank told to stop", "job preempted", "checkpoint damaged")
"""SIGKILL of one rank; SIGSTOP of one; SIGTERM to one; SIGTERM to the command itself, which is then started again; the newest checkpoint
damaged and all ranks killed."""

REQUEUE = 75
LOOK_SECONDS, TIMELINE_SECONDS = 0.01, 0.2
LONGEST_SILENCE_SECONDS = 180.0
"""Without a step for so long, the run is lost."""


@dataclass(kw_only=True)
class Fault:
    """One fault: seconds since the run began, the last step logged by then; then how many seconds it took until somebody started the ranks
    again (`noticed`), until they had loaded a checkpoint (`resumed`, of a step), and until they had logged a step (`recovered`)."""

    kind: str
    at: float
    step: int
    noticed: float | None = None
    resumed: float | None = None
    resumed_step: int | None = None
    recovered: float | None = None


class Job:
    """`train.py WORDS`, whose run folder is FOLDER/tiny."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.path, self.log = folder / "tiny", folder / "log.txt"
        self.command = [sys.executable, "train.py", *words, "run=tiny"]
        self.faults: list[Fault] = []
        self.timeline: list[tuple[float, int]] = []
        """(seconds, step): when a line of metrics.jsonl was first seen, thinned out."""
        self.last_step = self.steps_done_again = self.restarts = self.starts = 0
        folder.mkdir(parents=True)
        ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
        inherited = {name: value for name, value in os.environ.items() if name not in ours}
        self._environment = {**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SLAYER_CACHE": str(folder / "cache")}
        self._metrics, self._events = _Tail(self.path / "metrics.jsonl"), _Tail(self.path / "events.jsonl")
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._stepped = time.monotonic()

    def seconds(self) -> float:
        """Since the first start."""
        return time.monotonic() - self._began

    def start(self) -> None:
        """Type the command."""
        if not self.starts:
            self._began = self._stepped = time.monotonic()
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def look(self) -> None:
        """Wait a moment and take note of what has happened; start the command again when it ended so that it can go on. RuntimeError when the
        run is lost."""
        assert self._process is not None
        time.sleep(LOOK_SECONDS)
        self._read()
        code = self._process.poll()
        if code == REQUEUE:
            self.start()
            self._note("noticed")
        elif code is not None or time.monotonic() - self._stepped > LONGEST_SILENCE_SECONDS:
            raise RuntimeError(f"the run is lost (exit code {code}, last step {self.last_step}):\n{tail(self.log)}")

    def stop(self) -> float:
        """Ask the run to stop and wait until it has: seconds from its first start to now. RuntimeError when it does not save."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(LONGEST_SILENCE_SECONDS)
        wall_seconds = self.seconds()
        self._read()
        if code != REQUEUE:
            raise RuntimeError(f"the run did not stop as it should (exit code {code}):\n{tail(self.log)}")
        return wall_seconds

    def kill(self) -> None:
        """End whatever still runs."""
        if self._process is not None and self._process.poll() is None:
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()

    def step_seconds(self) -> float:
        """Time spent in the steps that metrics.jsonl tells of."""
        lines = (json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return float(sum(line.get("step_seconds", 0.0) for line in lines))

    def checkpoints(self) -> list[Path]:
        """Complete ones, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("step-*") if not path.suffix)

    # ── what is done to it ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_recovering(self) -> bool:
        """True from a fault to the first step after it."""
        return bool(self.faults) and self.faults[-1].recovered is None

    def break_something(self, kind: str, chance: random.Random) -> None:
        """One of KINDS, now."""
        assert self._process is not None
        ranks = [child for child in psutil.Process(self._process.pid).children() if "slayer.launching.worker" in child.cmdline()]
        self.faults.append(Fault(kind=kind, at=self.seconds(), step=self.last_step))
        match kind:
            case "rank killed":
                chance.choice(ranks).kill()
            case "rank frozen":
                chance.choice(ranks).suspend()
            case "rank told to stop":
                chance.choice(ranks).terminate()
            case "job preempted":
                self._process.terminate()
            case "checkpoint damaged":
                for rank in ranks:
                    rank.suspend()
                while any(rank.status() != psutil.STATUS_STOPPED for rank in ranks):
                    time.sleep(LOOK_SECONDS)
                damage(self.checkpoints()[-1], chance)
                for rank in ranks:
                    rank.kill()

    # ── what is seen of it ───────────────────────────────────────────────────────────────────────────────────────────────

    def _read(self) -> None:
        for event in self._events.new_lines():
            if event["event"] == "restarted":
                self.restarts += 1
                self._note("noticed")
            elif event["event"] == "resumed":
                self.steps_done_again += max(self.last_step - event["step"], 0)
                self._note("resumed")
                if self.faults:
                    self.faults[-1].resumed_step = event["step"]
        for line in self._metrics.new_lines():
            self._stepped = time.monotonic()
            is_next = line["step"] == self.last_step + 1
            self.last_step = line["step"]
            if not is_next or not self.timeline or self.seconds() - self.timeline[-1][0] > TIMELINE_SECONDS:
                self.timeline.append((self.seconds(), self.last_step))
            if self.faults and self.faults[-1].resumed is not None:
                self._note("recovered")

    def _note(self, what: str) -> None:
        """How long after the last fault something happened, the first time it does."""
        if self.faults and getattr(self.faults[-1], what) is None:
            setattr(self.faults[-1], what, self.seconds() - self.faults[-1].at)


class _Tail:
    """The objects that are added to a file, which may be replaced by one that lacks its last lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._read_bytes = 0, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Since the last call; none of a file that has replaced the one before, since it holds what was seen already."""
        try:
            with self._path.open("rb") as stream:
                is_other = self._file not in (0, os.fstat(stream.fileno()).st_ino)
                self._file = os.fstat(stream.fileno()).st_ino
                stream.seek(0 if is_other else self._read_bytes)
                whole = stream.read().rpartition(b"\n")[0]
                self._read_bytes = (0 if is_other else self._read_bytes) + len(whole) + bool(whole)
        except FileNotFoundError:
            return []
        return [] if is_other else [json.loads(line) for line in whole.splitlines()]


def damage(checkpoint: Path, chance: random.Random) -> None:
    """A flipped bit, half a file, or no manifest."""
    shard = chance.choice(sorted(checkpoint.glob("*.safetensors")))
    content = bytearray(shard.read_bytes())
    match chance.choice(("flipped", "cut", "gone")):
        case "flipped":
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            shard.write_bytes(content)
        case "cut":
            shard.write_bytes(content[: len(content) // 2])
        case "gone":
            (checkpoint / "manifest.json").unlink()
