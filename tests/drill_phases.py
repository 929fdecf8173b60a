"""A signal that a rank gets in the very phase that is asked for: sent by itself to itself, so that it can come nowhere else."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNAL_VARIABLE = "DRILL_SIGNAL"
"""RANK:PHASE:NUMBER."""

PHASES = ("text", "build", "engine", "load", "forward", "update", "evaluate", "save", "write", "export", "compare")
"""text, build, compare: only the first rank works, and any other is hit while it waits. engine: the engine is made (compilation, first
batch); load: a checkpoint is put back; write: the background thread writes a checkpoint. The others by their names."""

ALONE = ("text", "build", "compare")
AT_STEP = 4
"""0-based step whose forward pass and update are hit."""

WAITED_SECONDS = 0.3


@contextmanager
def signalling() -> Iterator[None]:
    """Send this rank what the environment asks for, once."""
    if SIGNAL_VARIABLE not in os.environ:
        yield
        return
    rank, phase, number = os.environ[SIGNAL_VARIABLE].split(":")
    if int(rank) == int(os.environ.get("RANK", "0")):
        _arm(phase, int(number), waits=int(rank) > 0 and phase in ALONE)
    yield


def _arm(phase: str, number: int, *, waits: bool) -> None:
    import slayer.phases.fit as fit
    import slayer.phases.prepare as prepare
    import slayer.pipeline as pipeline
    from slayer.evaluation.scorer import HeldoutScorer
    from slayer.phases.run import Run
    from slayer.training.checkpoint.saver import Saver
    from slayer.training.engine import TrainingEngine

    places: dict[str, tuple[Any, str]] = {
        "text": (Run, "open_data"), "build": (prepare, "build_expanded"), "engine": (TrainingEngine, "__init__"), "load": (fit, "load_checkpoint"),
        "forward": (TrainingEngine, "forward_backward"), "update": (TrainingEngine, "update"), "evaluate": (HeldoutScorer, "score_in_loop"),
        "save": (Saver, "save"), "write": (Saver, "_write_share"), "export": (fit, "_export"), "compare": (pipeline, "compare_and_report"),
    }  # fmt: skip
    owner, name = (pipeline, "_compare" if phase == "compare" else "_begin") if waits else places[phase]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def hit(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if waits:
            if calls == 1:
                threading.Timer(WAITED_SECONDS, os.kill, (os.getpid(), number)).start()
        elif calls == 1 + (AT_STEP * arguments[0].accumulation if phase == "forward" else AT_STEP if phase == "update" else 0):
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    setattr(owner, name, hit)


def signal_name(number: int) -> str:
    """SIGTERM."""
    return signal.Signals(number).name
