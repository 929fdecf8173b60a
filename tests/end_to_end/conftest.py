"""Whole runs of the tiny model on a small text, in this process where that will do: a run takes about two seconds, an import five."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks, open_ranks

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder and what is in it."""

    path: Path

    @property
    def results(self) -> dict[str, Any]:
        """results.json."""
        values: dict[str, Any] = json.loads((self.path / "results.json").read_text(encoding="utf-8"))
        return values

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """The lines without what a clock or the machine decides."""
        clocked = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")
        return [{key: value for key, value in line.items() if key not in clocked} for line in self.metrics]

    @property
    def losses(self) -> list[float]:
        """The training loss of every line that has one."""
        return [line["loss"] for line in self.metrics if "loss" in line]


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """One process group for all runs: DeepSpeed remembers the first one of a process."""
    with open_ranks() as opened:
        yield opened


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text/, runs/ and a cache of its own."""
    folder = tmp_path_factory.mktemp("workspace")
    write_text(folder / "text")
    return folder


@pytest.fixture(scope="module")
def own_cache(workspace: Path) -> Iterator[None]:
    """The cache of the workspace, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLAYER_CACHE", str(workspace / "cache"))
        yield


@pytest.fixture(scope="session")
def overrides(workspace: Path) -> list[str]:
    """What makes a run small."""
    return run_overrides(workspace / "text", workspace / "runs")


@pytest.fixture(scope="module")
def run_here(workspace: Path, overrides: list[str], ranks: Ranks, own_cache: None) -> Callable[..., RunFolder]:
    """run_here("name", "engine=zero0", …): that run, made in this process."""

    def run(name: str, *more: str) -> RunFolder:
        from slayer.launching.compose import compose
        from slayer.pipeline import run_pipeline

        run_pipeline(compose([*overrides, *more, f"run={name}"]), "python train.py")
        return RunFolder(path=workspace / "runs" / name)

    return run


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """start(["train.py", …]): a command of the repository in a process of its own."""

    def open_process(words: Sequence[str], cwd: Path = ROOT) -> subprocess.Popen[str]:
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )

    return open_process
