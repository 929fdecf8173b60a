"""train.py as a person starts it: a process of its own, what it says and how it ends."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended. `out` is all it printed, on both streams."""

    code: int
    out: str
    seconds: float


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: nothing of the terminal, or of the process group, of whoever runs the tests."""
    ours = ("COLUMNS", "FORCE_COLOR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, "PYTHONUNBUFFERED": "1", **changes}


def train(*words: str, **changes: str) -> Done:
    """Run train.py to its end; `changes` are variables of its environment."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    return Done(code=done.returncode, out=done.stdout, seconds=time.monotonic() - started)


def run_here(*words: str) -> None:
    """The same run in this process, which has paid for its imports already."""
    from slayer.launching.compose import compose
    from slayer.pipeline import run_pipeline

    run_pipeline(compose(words), "python train.py")


def start(*words: str) -> subprocess.Popen[str]:
    """Start train.py in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Return when `condition` holds; fail when the process ends or the time is over before."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"the run ended or hung before the condition held:\n{process.communicate()[0]}")
        time.sleep(0.05)


def folder_hash(folder: Path) -> str:
    """One hash of the names and bytes of everything in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
