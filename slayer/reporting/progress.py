"""Live progress: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from slayer.reporting.console import open_console
from slayer.reporting.numbers import MISSING, clock, count, duration, fixed, short
from slayer.reporting.run_folder import HELDOUT, is_heldout

RECENT_STEPS = 20


class TrainingProgress:
    """Shows training records as they come. Use as a context manager; `update` takes any line of metrics.jsonl.

    On a terminal: a bar with step, loss, tokens per second, elapsed and remaining time. Elsewhere: the first line, then one
    at most every `every_seconds`, and the last.
    """

    def __init__(self, console: Console | None = None, *, every_seconds: float = 15.0) -> None:
        self._console = console or open_console()
        self._every_seconds = every_seconds
        self._started = time.monotonic()
        self._printed_at: float | None = None
        self._unprinted: str | None = None
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> TrainingProgress:
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._bar = _training_bar(self._console)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._unprinted is not None:
            self._console.print(self._unprinted, soft_wrap=True, markup=False)

    def update(self, record: Mapping[str, Any]) -> None:
        """Show one training record, or print one line of held-out scores."""
        if is_heldout(record):
            self._console.print(heldout_line(record), soft_wrap=True, markup=False)
            return
        step, steps = int(record.get("step", 0)), int(record.get("steps", 0))
        if record.get("step_seconds") is not None:
            self._seconds.append(float(record["step_seconds"]))
        elapsed = time.monotonic() - self._started
        left = statistics.median(self._seconds) * max(steps - step, 0) if self._seconds else None
        if self._bar is not None:
            self._advance(self._bar, step, steps, record, elapsed, left)
            return
        line = training_line(record, elapsed_seconds=elapsed, left_seconds=left)
        now = time.monotonic()
        if self._printed_at is None or now - self._printed_at >= self._every_seconds:
            self._console.print(line, soft_wrap=True, markup=False)
            self._printed_at, self._unprinted = now, None
        else:
            self._unprinted = line

    def _advance(self, bar: Progress, step: int, steps: int, record: Mapping[str, Any], elapsed: float, left: float | None) -> None:
        if self._task is None:
            self._task = bar.add_task("training", total=steps or None, loss="", speed="", times="")
        speed = f"{count(record['tokens_per_second'])} tok/s" if record.get("tokens_per_second") is not None else ""
        times = f"{clock(elapsed)} · {clock(left)} left"
        bar.update(self._task, completed=step, total=steps or None, loss=f"loss {fixed(record.get('loss'))}", speed=speed, times=times)


def _training_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=None, complete_style="green", finished_style="green"), MofNCompleteColumn(),
        TextColumn("[bold]{task.fields[loss]}"), TextColumn("[cyan]{task.fields[speed]}"), TextColumn("[dim]{task.fields[times]}"),
        console=console, expand=True, refresh_per_second=4,
    )  # fmt: skip


def training_line(record: Mapping[str, Any], *, elapsed_seconds: float, left_seconds: float | None) -> str:
    """One training record as a plain line."""
    steps = int(record.get("steps", 0))
    step = f"step {record.get('step', 0):>{len(str(steps))}}/{steps}"
    parts = [step, f"loss {fixed(record.get('loss'))}", f"{short(record.get('tokens'))} tokens"]
    if record.get("tokens_per_second") is not None:
        parts.append(f"{count(record['tokens_per_second'])} tok/s")
    if record.get("mfu") is not None:
        parts.append(f"mfu {100 * record['mfu']:.0f} %")
    if record.get("lr") is not None:
        parts.append(f"lr {record['lr']:.2g}")
    parts.append(f"{clock(elapsed_seconds)} elapsed, {clock(left_seconds)} left")
    return " · ".join(parts)


def heldout_line(record: Mapping[str, Any]) -> str:
    """One record of held-out scores as a plain line."""
    scores = [f"{key.removeprefix(HELDOUT)} {fixed(value)}" for key, value in record.items() if key.startswith(HELDOUT)]
    return f"step {record.get('step', MISSING)} · held-out bits per byte: {', '.join(scores)}"


class CountProgress(Protocol):
    """Told how far a long count has come: what is counted, done so far, total (0 when unknown)."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


@contextmanager
def progress_bar(title: str, console: Console | None = None, *, every_seconds: float = 15.0) -> Iterator[CountProgress]:
    """Yield a callable (label, done, total). On a terminal each label gets a bar with elapsed and remaining time; elsewhere one
    line when it is done, and before that one at most every `every_seconds`."""
    console = console or open_console()
    counts: dict[str, _Count] = {}
    if not console.is_terminal:

        def tell(label: str, done: int, total: int) -> None:
            counted, now = counts.setdefault(label, _Count(done)), time.monotonic()
            counted.update(done, total)
            if not counted.told_end and (counted.is_done or now - counted.told_at >= every_seconds):
                counted.told_at, counted.told_end = now, counted.is_done
                console.print(counted.line(title, label), soft_wrap=True, markup=False)

        yield tell
        return
    with _count_bar(console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            counted = counts.setdefault(label, _Count(done))
            counted.update(done, total)
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total or None, title=title, counted=counted)
            bar.update(tasks[label], completed=done, total=total or None)

        yield show


class _Count:
    """How far one label has come, and how long that took. A label that starts over is counted anew."""

    def __init__(self, done: int) -> None:
        self._restart(done)

    def _restart(self, done: int) -> None:
        self.started = self.told_at = time.monotonic()
        # What was there at the start (a build that goes on) says nothing about the speed.
        self.first, self.done, self.total = done, done, 0
        self.ended: float | None = None
        self.told_end = False

    def update(self, done: int, total: int) -> None:
        if done < self.done:
            self._restart(done)
        self.done, self.total = done, total
        if self.is_done and self.ended is None:
            self.ended = time.monotonic()

    @property
    def is_done(self) -> bool:
        return self.done >= self.total > 0

    @property
    def elapsed_seconds(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def left_seconds(self) -> float | None:
        made = self.done - self.first
        return self.elapsed_seconds * (self.total - self.done) / made if made > 0 and self.total else None

    @property
    def times(self) -> str:
        left = "" if self.is_done or not self.total else f", {clock(self.left_seconds)} left"
        return f"{clock(self.elapsed_seconds)} elapsed{left}"

    @property
    def number(self) -> str:
        return f"{count(self.done)}/{count(self.total)}" if self.total else count(self.done)

    def line(self, title: str, label: str) -> str:
        if not self.is_done:
            return f"{title} · {label}: {self.number} · {self.times}"
        took = f" in {duration(self.elapsed_seconds)}" if self.elapsed_seconds >= 1 else ""
        return f"{title} · {label}: {count(self.done)}{took}"


class _CountColumn(ProgressColumn):
    """A property of the task's _Count, read anew whenever the bar is drawn."""

    def __init__(self, name: str, style: str = "") -> None:
        super().__init__()
        self._name, self._style = name, style

    def render(self, task: Task) -> Text:
        return Text(str(getattr(task.fields["counted"], self._name)), style=self._style)


def _count_bar(console: Console) -> Progress:
    names = (TextColumn("{task.fields[title]}", style="bold", markup=False), TextColumn("{task.description}", markup=False))
    bar = BarColumn(complete_style="green", finished_style="green")
    return Progress(*names, bar, _CountColumn("number"), _CountColumn("times", "dim"), console=console, refresh_per_second=4)
