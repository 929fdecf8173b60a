"""A run of the tiny model whose ranks keep a ledger, and what can be seen of it from outside."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from drill_compare import newest_checkpoint
from drill_ledger import FOLDER_VARIABLE
from drill_server import RankServers, Started, tail
from small_text import run_overrides, write_text

LOOK_SECONDS, ASK_SECONDS = 0.001, 0.1
"""Between two looks at the run folder, and between two questions whether the ranks have ended."""

RUN_SECONDS = 180.0
"""No start of a tiny run takes longer, on however busy a machine."""


class DrillRun:
    """One run folder, started once or many times. Folders: FOLDER/tiny is the run; its text is shared with all runs beside FOLDER."""

    def __init__(self, servers: RankServers, folder: Path, words: Sequence[str], chance: random.Random) -> None:
        self.servers, self.folder, self.chance = servers, folder, chance
        self.path, self.ledger, self.log = folder / "tiny", folder / "ledger", folder / "log.txt"
        self.ledger.mkdir(parents=True)
        self._left_unfinished: set[str] = set()
        self.words = [*run_overrides(write_text(folder.parent / "text"), folder), *words, "run=tiny"]

    def start(self, *words: str, ranks: int = 1, **environment: str) -> Started:
        """Type the same command again, in so many ranks; `words` are added to it."""
        self._left_unfinished = set()
        self._left_unfinished = self.saves_under_way()
        own = {FOLDER_VARIABLE: str(self.ledger), "SLAYER_CACHE": str(self.folder / "cache"), **environment}
        return self.servers.start([*self.words, *words], ranks=ranks, log=self.log, chance=self.chance, **own)

    def finish(self, started: Started, *codes: int) -> None:
        """Wait for the end. RuntimeError unless every rank ends with one of these exit codes (none: 0)."""
        if not started.wait(RUN_SECONDS):
            started.signal(signal.SIGKILL)
            started.wait(RUN_SECONDS)
        if not set(started.codes) <= set(codes or (0,)):
            raise RuntimeError(f"{self.folder} ended with exit codes {started.codes}:\n{tail(self.log)}")

    def wait_for(self, condition: Callable[[], bool], started: Started) -> bool:
        """Return when `condition` holds, or when all ranks have ended; whether it holds."""
        ask_at = 0.0
        while not condition():
            if time.monotonic() > ask_at:  # asking takes longer than looking, and a save is over in a moment
                if started.poll():
                    return condition()
                ask_at = time.monotonic() + ASK_SECONDS
            time.sleep(LOOK_SECONDS)
        return True

    def ledger_bytes(self) -> int:
        """Length of the whole lines in the first rank's ledger: a place in it."""
        path = self.ledger / "rank-0.jsonl"
        return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0

    def taken(self, since: int = 0) -> list[int]:
        """The steps (0-based) that the first rank has taken behind a place in its ledger."""
        path = self.ledger / "rank-0.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(since)
            whole, _, _ = stream.read().rpartition(b"\n")  # the rest is being written
        return [int(json.loads(line)["step"]) for line in whole.splitlines()]

    def saved_step(self) -> int:
        """The step of the newest complete checkpoint, 0 before the first."""
        newest = newest_checkpoint(self.path)
        return int(newest.name.removeprefix("step-")) if newest is not None else 0

    def saves_under_way(self) -> set[str]:
        """Checkpoints that are being written now; not what an earlier start left unfinished and this one has yet to clear away."""
        now = {path.name for path in (self.path / "checkpoints").glob("step-*.partial")}
        self._left_unfinished &= now
        return now - self._left_unfinished

    def resumptions(self) -> int:
        """How often the run has said that it goes on."""
        path = self.path / "events.jsonl"
        return path.read_bytes().count(b'"resumed"') if path.exists() else 0
