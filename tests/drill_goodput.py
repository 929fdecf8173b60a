"""A run that is left to its launcher while something breaks every so many seconds: how much of the time goes into steps that count."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drill_compare import checkpoint_differences, timeless_metrics
from drill_job import KINDS, Fault, Job
from small_text import run_overrides, write_text

from slayer.reporting.numbers import percent

RANKS, KEEP_EVERY = 2, 200
SETTINGS = (
    f"launcher.processes={RANKS}", "launcher.restarts=3", "watchdog.seconds=5", "engine.micro_batch_rows=2", "train.save_every=20",
    "train.keep_checkpoints=3", f"train.keep_every={KEEP_EVERY}", "train.schedule=constant", "train.learning_rate=1e-4",
)  # fmt: skip
MOST_STEPS_PER_SECOND = 100
"""The run is planned so long that it does not end before its time."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """What came of it. `share`: of the wall time, spent in steps that count; `untouched_share`: of the run that nothing happened to.
    `restarts`: by the launcher; `starts`: of the command, by whoever plays the scheduler. `differences`: from the untouched run.
    `timeline`: (seconds, step) of lines of metrics.jsonl when they were first seen."""

    ranks: int
    wall_seconds: float
    share: float
    untouched_share: float
    steps: int
    steps_done_again: int
    restarts: int
    starts: int
    faults: list[Fault]
    differences: list[str]
    timeline: list[tuple[float, int]]

    @property
    def median_recovery_seconds(self) -> float:
        """From a fault to the first step after it, over all faults."""
        return statistics.median([fault.recovered for fault in self.faults if fault.recovered is not None] or [0.0])

    @property
    def shares(self) -> str:
        """Both shares in words."""
        with_faults, without = (percent(100 * share, signed=False) for share in (self.share, self.untouched_share))
        return f"{with_faults} of the time in steps that count ({without} without faults)"

    @property
    def by_kind(self) -> dict[str, list[Fault]]:
        """The faults of each kind that was drawn."""
        found = {kind: [fault for fault in self.faults if fault.kind == kind] for kind in KINDS}
        return {kind: faults for kind, faults in found.items() if faults}

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        medians = {kind: statistics.median(fault.recovered or 0.0 for fault in faults) for kind, faults in self.by_kind.items()}
        return {"median_recovery_seconds": self.median_recovery_seconds, "median_recovery_seconds_by_kind": medians, **asdict(self)}


def run_goodput(folder: Path, *, seconds: int, fault_every: float, seed: int, on_progress: OnProgress) -> Goodput:
    """Run for so long with a fault each `fault_every` seconds; then as many steps without any. RuntimeError when the run is lost."""
    settings, text = [*SETTINGS, f"train.max_steps={seconds * MOST_STEPS_PER_SECOND}"], write_text(folder / "text")
    hit, untouched = (Job(folder / name, [*run_overrides(text, folder / name), *settings]) for name in ("hit", "untouched"))
    try:
        wall_seconds = _break_things(hit, seconds, fault_every, random.Random(seed), on_progress)
        steps = hit.last_step
        untouched.start()
        while untouched.last_step < steps:
            untouched.look()
            on_progress("steps of a run without faults", min(untouched.last_step, steps), steps)
        untouched_seconds = untouched.stop()
    finally:
        hit.kill()
        untouched.kill()
    return Goodput(
        ranks=RANKS, wall_seconds=wall_seconds, share=hit.step_seconds() / wall_seconds,
        untouched_share=untouched.step_seconds() / untouched_seconds, steps=steps, steps_done_again=hit.steps_done_again, restarts=hit.restarts,
        starts=hit.starts, faults=hit.faults, differences=_differences(hit, untouched), timeline=hit.timeline,
    )  # fmt: skip


def _break_things(job: Job, seconds: int, fault_every: float, chance: random.Random, on_progress: OnProgress) -> float:
    """Every kind once, in an order drawn anew, and again. A fault waits for the end of the one before. Returns the wall time."""
    kinds: list[str] = []
    due = fault_every
    job.start()
    while job.seconds() < seconds or job.is_recovering:
        job.look()
        on_progress("seconds of a run with faults", min(int(job.seconds()), seconds), seconds)
        if due <= job.seconds() < seconds and not job.is_recovering and len(job.checkpoints()) > 1:
            kinds = kinds or chance.sample(KINDS, len(KINDS))
            job.break_something(kinds.pop(), chance)
            due += fault_every
    return job.stop()


def _differences(hit: Job, untouched: Job) -> list[str]:
    """The loss log up to the last step of the run with faults, and the newest checkpoint that both have kept."""
    logs = [[line for line in timeless_metrics(job.path) if line["step"] <= hit.last_step] for job in (hit, untouched)]
    found = [] if logs[0] == logs[1] else ["the loss log (metrics.jsonl) differs"]
    kept = [{path.name for path in job.checkpoints()} for job in (hit, untouched)]
    common = max(kept[0] & kept[1], default=None)
    if common is None:
        return [*found, "no checkpoint of the same step"]
    return found + checkpoint_differences(*(job.path / "checkpoints" / common for job in (hit, untouched)))
