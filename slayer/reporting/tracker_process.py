"""The run's hold on the process that feeds its tracker (feed.py): started, looked at in passing, and ended in time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from slayer.reporting.destinations import Job
from slayer.reporting.json_lines import parse_line

FIRST_RETRY_SECONDS = 30.0
LAST_RETRY_SECONDS = 600.0
JOB_BYTES = 60_000
"""What a pipe takes at once, so that handing over the job never waits."""


class TrackerProcess:
    """Feeds one tracker. A process that fails is started again, after half a minute, a minute, … up to ten.

    Of `lines` lines of metrics.jsonl the tracker had `had` when its process began and has got `sent`. `problem` is what was last wrong, for
    a person; `arrived` is true once everything is where it should be; `where` then says how to look at it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._retry_at = 0.0
        self._final = False
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self.problem: str | None = None
        self.arrived = False
        self.where = ""
        self.had = self.sent = self.lines = 0
        self._start()

    def look(self) -> None:
        """Take in what the process reports, and start it again when it is time. Never waits, never raises."""
        if self._process is None:
            if not self._final and not self.arrived and time.monotonic() >= self._retry_at:
                self._start()
            return
        ended = self._process.poll() is not None  # before the read, so that its last words are read
        self._read()
        if ended:
            self._bury()

    def finish(self, seconds: float) -> None:
        """Let it send what is pending, so many seconds at most; then it is gone, whatever it does. Never raises."""
        until = time.monotonic() + seconds
        for _ in range(2):  # what fails at the end is tried once more while there is time
            self.look()
            if self.arrived or self._final:
                return
            if self._process is None:
                self._start()
            self.follow(until - time.monotonic())

    def follow(self, seconds: float, on_report: Callable[[], None] = lambda: None) -> None:
        """Say that no more lines come, and wait for its end."""
        until = time.monotonic() + seconds
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(b"end\n")
                self._process.stdin.flush()
        while self._process is not None and (left := until - time.monotonic()) > 0:
            assert self._process.stdout is not None
            select.select([self._process.stdout], [], [], min(left, 0.2))
            self.look()
            on_report()
        if self._process is not None:
            self.problem = self.problem or f"does not answer: it did not finish within {seconds:.0f} s"
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._bury()

    def _start(self) -> None:
        job = self._job.to_json()
        if len(job) > JOB_BYTES:
            job = replace(self._job, values={}).to_json()
        self._unread = b""
        try:
            # A session of its own: what a terminal or a scheduler sends to the run is not meant for it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "slayer.reporting.feed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            assert self._process.stdin is not None and self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
            self._process.stdin.write(job.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self.problem = f"could not be started ({error})"
            if self._process is None:
                self._wait_longer()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with suppress(OSError):  # nothing new, mostly
            while piece := os.read(self._process.stdout.fileno(), 1 << 16):
                self._unread += piece
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            facts = parse_line(line) or {}
            self.had, self.sent, self.lines = facts.get("had", self.had), facts.get("sent", self.sent), facts.get("lines", self.lines)
            if "problem" in facts:
                self.problem, self._final = facts["problem"], facts["final"]
            elif "done" in facts:
                self.problem, self.arrived, self.where = None, True, facts["where"]

    def _bury(self) -> None:
        assert self._process is not None
        if not self.arrived:
            self.problem = self.problem or f"ended with exit code {self._process.returncode}"
            self._wait_longer()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert stream is not None
                stream.close()
        self._process = None

    def _wait_longer(self) -> None:
        self._retry_at = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, LAST_RETRY_SECONDS)
