"""Work for build_parts that leaves traces of who did what, and the program that tests kill while it builds."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.data.document import SourceError
from slayer.data.storing.parts import Workers, build_parts
from slayer.errors import Problem

LARGE = 16 << 20
"""Two parts of this size are worth other processes."""

PROBLEM = Problem(key="data.sources.law.path", value="law", why="is no text", fix="data.sources.law.path=TEXT")


def content(number: int) -> bytes:
    """What part `number` should hold."""
    return f"part {number} ".encode() * (number + 1)


@dataclass(frozen=True)
class SlowWork:
    """Writes `content` slowly, and a file `traces/NUMBER.PID` for every time it does. `trouble`: (part, what happens there)."""

    traces: Path
    seconds: float = 0.0
    trouble: tuple[int, str] = (-1, "")

    def __call__(self, number: int, target: Path) -> dict[str, Any]:
        (self.traces / f"{number}.{os.getpid()}").touch()
        target.write_bytes(content(number)[:3])
        time.sleep(self.seconds)
        if number == self.trouble[0]:
            self._fail()
        target.write_bytes(content(number))
        return {"number": number, "modules": sorted({"torch", "transformers"} & set(sys.modules)), "threads": os.environ.get("OMP_NUM_THREADS")}

    def _fail(self) -> None:
        match self.trouble[1]:
            case "source":
                raise SourceError(PROBLEM)
            case "disk":
                raise OSError(28, "No space left on device")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)


def build(folder: str, traces: str, processes: int, parts: int, seconds: float) -> None:
    """The program: build and print each report of progress."""
    with Workers(processes) as workers:
        build_parts(
            Path(folder), SlowWork(Path(traces), seconds), [LARGE] * parts, label="slow", workers=workers,
            on_progress=lambda label, done, total: print(label, done, total, flush=True), documents=[1] * parts,
        )  # fmt: skip
