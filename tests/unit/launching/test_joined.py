"""train.py as one of several ranks that a launcher has started: what it reads of its surroundings, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slayer.errors import CheckpointError, ConfigError, EngineError
from slayer.launching.compose import compose
from slayer.launching.joined import _not_the_same, agreed, own_words, share_cores, speaks, sweep_problem
from slayer.phases.run import wait_until_seen

Join = Callable[..., None]


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Join:
    """join(1, 4): this process is rank 1 of 4."""

    def become(rank: int, world: int, **more: str) -> None:
        for name, value in {"RANK": str(rank), "WORLD_SIZE": str(world), **more}.items():
            monkeypatch.setenv(name, value)

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return become


def test_deepspeeds_own_word_is_taken_away_where_deepspeed_is(join: Join) -> None:
    words = ["--local_rank=1", "prune=2", "--local-rank=1"]
    assert own_words(words) == words
    join(1, 2)
    assert own_words(words) == ["prune=2"]


def test_the_first_rank_speaks(join: Join) -> None:
    assert speaks()
    join(0, 2)
    assert speaks()
    join(1, 2)
    assert not speaks()


@pytest.mark.parametrize(("typed", "expected"), [(None, "2"), ("3", "3")])
def test_cores_are_shared_among_the_ranks_of_a_host(join: Join, monkeypatch: pytest.MonkeyPatch, typed: str | None, expected: str) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if typed is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", typed)
    join(0, 8, LOCAL_SIZE="4")  # of two hosts
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == expected


def test_the_number_of_ranks_is_the_launchers(small: list[str], join: Join) -> None:
    """What divides the batch is how many there are, not what is typed."""
    join(0, 4)
    config = compose([*small, "engine.micro_batch_rows=1", "train.batch_rows=8"])
    assert config.launcher.processes == 4
    with pytest.raises(ConfigError, match=r"2 rows × 4 processes = 8 does not divide train\.batch_rows=4"):
        compose([*small, "engine.micro_batch_rows=2", "train.batch_rows=4"])


@pytest.mark.parametrize(("word", "refused"), [("launcher.processes=2", True), ("launcher.processes=4", False), ("launcher.restarts=1", True)])
def test_ranks_are_not_asked_for_twice(small: list[str], join: Join, word: str, refused: bool) -> None:
    join(0, 4)
    words = [*small, "engine.micro_batch_rows=1", word]
    if not refused:
        assert compose(words).launcher.processes == 4
        return
    with pytest.raises(ConfigError, match=r"4 ranks were already started") as caught:
        compose(words)
    assert f"leave out {word.partition('=')[0]}" in str(caught.value)


def test_a_sweep_under_a_launcher_is_refused(join: Join) -> None:
    assert sweep_problem(["-m", "prune=0,1"]) is None
    join(0, 2)
    assert sweep_problem(["prune=0"]) is None
    problem = sweep_problem(["prune=0,1", "--multirun"])
    assert problem is not None and problem.key == "--multirun" and "launcher.processes=2" in problem.fix


def test_alone_nobody_is_asked(small: list[str], join: Join) -> None:
    config = compose(small)
    assert agreed(lambda: config) is config


def test_what_ranks_composed_differently_is_named(small: list[str]) -> None:
    first, other = (compose([*small, f"run={name}", f"runs_dir={name}"]) for name in ("one", "two"))
    assert _not_the_same([("host-a", first), ("host-a", first)]) is None
    told = _not_the_same([("host-a", first), ("host-a", first), ("host-b", other)])
    assert isinstance(told, EngineError)
    for key in ("run", "runs_dir"):  # runs_dir is no part of a run, and yet would split it
        assert f"\n    {key}: rank 0 on host-a has 'one', rank 2 on host-b has 'two'" in str(told)


def test_a_folder_that_is_not_shared_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    wait_until_seen(tmp_path / "here", seconds=0.05)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/plan\.json is not there, .*runs_dir=DIR"):
        wait_until_seen(tmp_path / "plan.json", seconds=0.05)


def test_a_file_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        (tmp_path / "plan.json").touch()

    monkeypatch.setattr("time.sleep", sleep)
    wait_until_seen(tmp_path / "plan.json", seconds=5)
    assert looks == [0.2]
