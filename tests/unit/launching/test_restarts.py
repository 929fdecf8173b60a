"""A run that is lost is started again while it gets further; the run is a small program, its deaths are real."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from slayer.config import RunConfig
from slayer.launching.compose import compose
from slayer.launching.processes import Ended
from slayer.launching.restarts import FAILURE_NAME, death, newest_step, run_restarted
from slayer.reporting.events import read_events


@pytest.fixture
def config(small: list[str], tmp_path: Path) -> RunConfig:
    return compose([*small, f"runs_dir={tmp_path}", "run=x", "launcher.restarts=2"])


def program(folder: Path, *lives: str) -> list[str]:
    """Each life of the run in Python; the last one is lived again and again."""
    code = f"""
import os, json, pathlib, signal, sys, time
folder = pathlib.Path({str(folder)!r})
folder.mkdir(parents=True, exist_ok=True)
def step(number): (folder / "metrics.jsonl").open("a").write(json.dumps({{"step": number, "loss": 1.0}}) + "\\n")
def killed(): os.kill(os.getpid(), signal.SIGKILL)
life = len(list(folder.glob("life-*")))
(folder / f"life-{{life}}").touch()
lives = {list(lives)!r}
exec(lives[min(life, len(lives) - 1)])
"""
    return [sys.executable, "-c", code]


def lives(folder: Path) -> int:
    return len(list(folder.glob("life-*")))


def test_a_run_without_progress_ends_after_so_many_tries(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    ended = run_restarted(program(config.folder, "step(3); killed()", "killed()"), config)
    assert ended.code == -signal.SIGKILL and lives(config.folder) == 1 + 2
    out = capsys.readouterr().out
    assert out.count("killed by SIGKILL") == 2 and "started again (2 of 2 since step 3)" in out
    told = [(event["event"], event["step"]) for event in read_events(config.folder / "events.jsonl")]
    assert told == [("killed", 3), ("restarted", 3), ("killed", 3), ("restarted", 3), ("killed", 3)]


def test_progress_gives_it_all_its_tries_again(config: RunConfig) -> None:
    more = [f"step({number}); sys.exit(75)" for number in range(1, 6)]
    ended = run_restarted(program(config.folder, *more, "sys.exit(0)"), config)
    assert ended.code == 0 and lives(config.folder) == 6
    assert [event["step"] for event in read_events(config.folder / "events.jsonl")] == [1, 2, 3, 4, 5]


def test_the_same_steps_again_are_no_progress(config: RunConfig) -> None:
    ended = run_restarted(program(config.folder, "step(1); step(2); sys.exit(75)"), config)
    assert ended.code == 75 and lives(config.folder) == 3


@pytest.mark.parametrize(("life", "code"), [("sys.exit(2)", 2), ("sys.exit(1)", 1), ("sys.exit(0)", 0), ("sys.exit(130)", 130)])
def test_what_ends_otherwise_is_not_started_again(config: RunConfig, life: str, code: int) -> None:
    assert run_restarted(program(config.folder, life), config).code == code and lives(config.folder) == 1


def test_a_stop_by_its_owner_is_not_answered_with_a_restart(config: RunConfig) -> None:
    life = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); time.sleep(30)"

    def stop() -> None:
        while lives(config.folder) == 0:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    ended = run_restarted(program(config.folder, life), config)
    assert (ended.code, ended.signals, lives(config.folder)) == (75, (signal.SIGTERM,), 1)


def test_without_restarts_a_loss_is_the_end(small: list[str], tmp_path: Path) -> None:
    config = compose([*small, f"runs_dir={tmp_path}", "run=x"])
    assert run_restarted(program(config.folder, "killed()"), config).code == -9 and lives(config.folder) == 1
    (event,) = read_events(config.folder / "events.jsonl")
    assert (event["event"], event["rank"], event["signal"]) == ("killed", 0, "SIGKILL")


def test_the_reason_of_an_earlier_start_is_not_taken_for_that_of_the_last(config: RunConfig) -> None:
    run_restarted(program(config.folder, f"(folder / {FAILURE_NAME!r}).write_text('lost'); sys.exit(75)", "killed()"), config)
    assert lives(config.folder) == 3 and not (config.folder / FAILURE_NAME).exists()


def test_the_newest_step_is_that_of_either_record(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    (tmp_path / "checkpoints" / "step-00000040").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000050.partial").mkdir()
    assert newest_step(tmp_path) == 40
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 43}) + '\n{"step": 4')
    assert newest_step(tmp_path) == 43


def test_a_death_is_told_in_words() -> None:
    assert "the run was killed by SIGKILL, which is what a system does that runs out of memory" in death(Ended(code=-9), 1)
    assert "rank 3 was killed by SIGABRT; start it again" in death(Ended(code=-6, rank=3), 4)
    assert "hung" in death(Ended(code=75), 2) and "exit code 1" in death(Ended(code=1), 1)
