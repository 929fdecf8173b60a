"""Ranks of train.py that a SIGKILL takes at an exact moment: when they are about to call a function for the n-th time.

The servers of drill_server fork them. A moment is a word like `slayer.phases.session:list_checkpoints:1`, in the variable DIE_AT of a start.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from drill_server import ROOT, RankServers, become_rank, import_everything, serve, tail

KILLED = -signal.SIGKILL


class DyingRanks(RankServers):
    """The same, of a server whose ranks know when to die."""

    def __init__(self) -> None:
        ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
        environment = {name: value for name, value in os.environ.items() if name not in ours} | settings
        words = [sys.executable, str(Path(__file__))]
        self._servers = [subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment)]


@functools.cache
def dying_ranks() -> DyingRanks:
    """One server for all tests of this process."""
    servers = DyingRanks()
    atexit.register(servers.__exit__)
    return servers


def train(words: Sequence[str], log: Path, *, ranks: int = 1, expect: int = 0, **environment: str) -> None:
    """A start to its end; fails when a rank ends with another exit code. A rank that is killed takes rank 0's code with it."""
    codes = dying_ranks().run(words, ranks=ranks, log=log, **environment)
    if codes[0] != expect:
        pytest.fail(f"exit codes {codes}, expected {expect}:\n{tail(log)}")


def die_at(moment: str) -> None:
    """Let this process be killed when the function of `moment` is called for the n-th time, before it does anything."""
    module, path, number = moment.split(":")
    *outer, name = path.split(".")
    owner: Any = functools.reduce(getattr, outer, importlib.import_module(module))
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, call)


def draw_nothing() -> None:
    """Leave the pictures of reports blank: drawing them is most of the time of so small a run, and nothing here looks at them."""
    from matplotlib.figure import Figure

    def blank(_: Figure, target: Any, **settings: Any) -> None:
        target.write(b"" if isinstance(target, io.BytesIO) else "<svg></svg>")

    Figure.savefig = blank  # type: ignore[method-assign, assignment]
    Figure.draw_without_rendering = lambda _: None  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import_everything()
    draw_nothing()
    gc.freeze()
    asked = serve(sys.stdin, sys.stdout)
    if asked is not None:
        if "DIE_AT" in asked["environment"] and asked["environment"].get("RANK", "0") == "0":
            die_at(asked["environment"]["DIE_AT"])
        become_rank(asked)
