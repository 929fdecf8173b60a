"""The watch of a rank over itself; two ranks are in tests/distributed/test_watch.py."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from slayer.config import WatchdogConfig
from slayer.training.ranks import Ranks
from slayer.training.signals import listen_for_stop
from slayer.training.watchdog import Watchdog, watch

ALONE = """
import sys, time
from pathlib import Path
from slayer.config import WatchdogConfig
from slayer.training.ranks import Ranks
from slayer.training.signals import listen_for_stop
from slayer.training.watchdog import watch

def hang():
    print("hangs", flush=True)
    time.sleep(60)

ranks = Ranks(rank=0, world=1, device=None)
with listen_for_stop(ranks) as stop, watch(ranks, stop, WatchdogConfig(seconds={seconds}), Path(sys.argv[1])) as watchdog:
    {body}
"""
STEP = "[watchdog.beat(phase, 4) for phase in ('data', 'forward', 'update', 'log')]"


def run_alone(folder: Path, seconds: float, body: str) -> tuple[int, str, float]:
    """Exit code, what stood in the terminal, seconds from the hang on."""
    program = subprocess.Popen(
        [sys.executable, "-c", ALONE.format(seconds=seconds, body=body), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert program.stdout is not None
    program.stdout.readline()
    began = time.monotonic()
    _, err = program.communicate(timeout=30)
    return program.returncode, err, time.monotonic() - began


def test_one_process_that_hangs_is_ended_and_tells_where(tmp_path: Path) -> None:
    code, terminal, took = run_alone(tmp_path, 1.0, f"{STEP}; hang()")
    assert code == 75 and 0.5 < took < 6
    report = (tmp_path / "watchdog" / "report.txt").read_text(encoding="utf-8")
    assert "watchdog: rank 0 makes no progress for 1 s, in step 4, phase log" in report and report.split("\n", 1)[1].strip() in terminal
    assert "in hang" in (tmp_path / "watchdog" / "rank-0.txt").read_text(encoding="utf-8")
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (event["event"], event["step"], event["culprits"]) == ("hung", 4, [0])


def test_a_report_that_cannot_be_written_still_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "watchdog").write_text("a file where the folder should be")
    code, terminal, took = run_alone(tmp_path, 1.0, f"{STEP}; hang()")
    assert code == 75 and took < 6 and "watchdog: rank 0 makes no progress" in terminal and "Traceback" not in terminal


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("watchdog.beat('update', 0); print(flush=True); time.sleep(1.2)", id="before the first step"),
        pytest.param(f"{STEP}; print(flush=True); [(watchdog.beat('forward', 5), time.sleep(0.1)) for _ in range(12)]", id="slow but alive"),
        pytest.param(f"{STEP}\n    with watchdog.paused('compare'): print(flush=True); time.sleep(1.2)", id="alone"),
    ],
)  # fmt: skip
def test_no_alarm(tmp_path: Path, body: str) -> None:
    code, terminal, _ = run_alone(tmp_path, 0.5, body)
    assert (code, terminal) == (0, "") and not list(tmp_path.iterdir())


def test_nothing_watches_where_nothing_is_asked(ranks: Ranks, tmp_path: Path) -> None:
    before = threading.active_count()
    with listen_for_stop(ranks) as stop:
        with watch(ranks, stop, WatchdogConfig(seconds=0), tmp_path):
            assert threading.active_count() == before + 1  # that of the signals
        with watch(ranks, stop, WatchdogConfig(seconds=5), tmp_path):
            assert threading.active_count() == before + 2
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_error_of_a_run_is_not_hidden(ranks: Ranks, tmp_path: Path) -> None:
    with listen_for_stop(ranks) as stop:
        for error in (ValueError("mine"), KeyboardInterrupt("mine")):
            with pytest.raises(type(error), match="mine"), watch(ranks, stop, WatchdogConfig(), tmp_path):
                raise error


def test_a_beat_costs_nothing(ranks: Ranks, tmp_path: Path) -> None:
    with listen_for_stop(ranks) as stop:
        watchdog = Watchdog(ranks, stop, 60.0, tmp_path)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        for step in range(1000):
            watchdog.beat("forward", step)
        times.append((time.perf_counter() - began) / 1000)
    assert min(times) < 2e-6
