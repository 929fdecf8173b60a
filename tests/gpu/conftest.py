"""One process group on the GPU, and small runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks, open_ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with open_ranks() as opened:
        yield opened


@pytest.fixture(scope="module")
def run_here(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """run_here("name", "engine=zero0", …): the folder of that run, made in this process."""
    from slayer.launching.compose import compose
    from slayer.pipeline import run_pipeline

    folder = tmp_path_factory.mktemp("gpu")
    overrides = run_overrides(write_text(folder / "text"), folder / "runs")

    def run(name: str, *more: str) -> Path:
        run_pipeline(compose([*overrides, *more, f"run={name}"]), "python train.py")
        return folder / "runs" / name

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLAYER_CACHE", str(folder / "cache"))
        yield run
