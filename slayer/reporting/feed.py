"""python -m slayer.reporting.feed: hands the lines of metrics.jsonl to a tracker, in a process of its own beside the run.

Nothing that a tracker does (block, crash, wait at exit, take the interpreter's lock) reaches the run, and a run that is killed
still gets its last lines sent. The job comes as one JSON line on standard input; a second line, its end, or the end of
the run means that no more lines of metrics.jsonl will come. Reports go to standard output, one JSON object a line:
{"had", "sent", "lines"}, {"problem", "final"}, {"done": true, "where"}.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from slayer.reporting.destinations import DESTINATIONS, Destination, Job, RefusedError, in_one_line

POLL_SECONDS = 0.5
BATCH_LINES = 500
LAST_SECONDS = 60
"""How long the last lines of a run that is gone may take."""
NICENESS = 10
"""Training comes first where cores are few."""


class Follower:
    """The whole lines of a file that grows, is cut back and replaced. `lines` is what stood there at the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self.lines: list[bytes] = []

    def look(self) -> int:
        """Read what is new. Returns how many of the first lines of before still stand: all of them unless the file was cut back."""
        try:
            on_disk = self._path.stat()
        except OSError:
            return len(self.lines)
        if self._file is None or on_disk.st_ino != os.fstat(self._file.fileno()).st_ino or on_disk.st_size < self._file.tell():
            return self._read_anew()
        before = len(self.lines)
        self._read_on()
        return before

    def _read_anew(self) -> int:
        if self._file is not None:
            self._file.close()
        before, self.lines = self.lines, []
        self._file = self._path.open("rb")
        self._read_on()
        pairs = zip(before, self.lines, strict=False)
        return next((number for number, (old, new) in enumerate(pairs) if old != new), min(len(before), len(self.lines)))

    def _read_on(self) -> None:
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        self._file.seek(whole - len(content), os.SEEK_CUR)  # half a line is read again when it is whole
        self.lines += content[:whole].splitlines()


class Report(Protocol):
    """Tells the run something."""

    def __call__(self, **facts: Any) -> None: ...


class Ending:
    """Knows when no more lines will come."""

    def __init__(self) -> None:
        self._run, self._ended = os.getppid(), False

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until the run ends; says whether it has. A worker of a killed run may hold the pipe open, so its parent counts too."""
        if self._ended:
            time.sleep(0.05)
        elif select.select([0], [], [], seconds)[0] or os.getppid() != self._run:
            self._ended = True
        return self._ended


def feed(job: Job, report: Report, ending: Ending) -> str:
    """Hand over lines until the run has ended and all have arrived. Returns how a person looks at them. Raises whatever the tracker raises."""
    job.home.mkdir(parents=True, exist_ok=True)
    lock = _wait_for_lock(job, ending)
    destination = DESTINATIONS[job.tracker](job)
    if job.evaluation is not None:
        destination.evaluate(job.evaluation)
    else:
        _follow(Path(job.folder) / "metrics.jsonl", destination, report, ending)
    destination.finish()
    os.close(lock)
    return destination.where


def _follow(path: Path, destination: Destination, report: Report, ending: Ending) -> None:
    follower = Follower(path)
    follower.look()
    destination.begin(follower.lines)
    report(had=destination.lines, lines=len(follower.lines))
    while True:
        while destination.lines < len(follower.lines):
            destination.send(follower.lines[destination.lines :][:BATCH_LINES])
            report(sent=destination.lines, lines=len(follower.lines))
        report(sent=destination.lines, lines=len(follower.lines))
        ended = ending.wait(POLL_SECONDS)  # before the look, so that the last lines are seen
        standing = follower.look()
        if standing < destination.lines:
            destination.cut(standing)
        if ended and destination.lines == len(follower.lines):
            return


def _wait_for_lock(job: Job, ending: Ending) -> int:
    """One process at a time feeds a tracker of a run: that of a run which was killed may still be at its last lines."""
    descriptor = os.open(job.home, os.O_RDONLY)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if not job.live:
                raise RefusedError(f"is fed already: a run is at work in {job.folder} and sends its records itself") from None
            ending.wait(POLL_SECONDS)
        except OSError:  # a file system without locks
            return descriptor


def _watch_parent() -> None:
    """End some time after the run is gone, whatever the tracker hangs in."""
    run = os.getppid()

    def watch() -> None:
        while os.getppid() == run:
            time.sleep(1)
        time.sleep(LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _open_report() -> Report:
    """Standard output for ourselves; what the tracker prints goes nowhere. A run that does not listen must not hold us up."""
    descriptor, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.set_blocking(descriptor, False)

    def report(**facts: Any) -> None:
        with suppress(OSError):
            os.write(descriptor, json.dumps(facts).encode() + b"\n")

    return report


def main() -> int:
    """Exit code: 0 all has arrived, 1 it has not."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # meant for the run, whose end is ours
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    report, ending = _open_report(), Ending()
    _watch_parent()
    job = Job(**json.loads(_read_line(0)))
    if job.live:
        os.nice(NICENESS)
    try:
        where = feed(job, report, ending)
    except ImportError as error:
        report(problem=f"is not installed ({error}); type: pip install 'slayer[trackers]'", final=True)
    except RefusedError as error:
        report(problem=str(error), final=True)
    except Exception as error:
        report(problem=f"failed ({type(error).__name__}: {in_one_line(error)})", final=False)
    else:
        report(done=True, where=where)
        return 0
    return 1


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(descriptor, 1)):  # no further: what follows is the sign of the end
        line += piece
    return line


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # the hooks of trackers may wait for servers that never answer
