"""Two ranks, and what may happen to them: who is to blame is named, nobody waits for ever, and a stop reaches both. All drills run at once."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from watched_rank import DRILLS, TROUBLE_STEP, run_drill

SECONDS = 3.0
AT_ONCE = 8
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.slow


@dataclass
class Drill:
    """Two ranks under way, and how they ended."""

    folder: Path
    ranks: list[Any]
    began: float = 0.0
    """When the trouble was there."""
    ended_at: dict[int, float] = field(default_factory=dict)

    def send(self, rank: int, number: int) -> None:
        os.kill(self.ranks[rank].pid, number)

    @property
    def codes(self) -> list[int | None]:
        return [rank.exitcode for rank in self.ranks]

    def took(self, rank: int) -> float:
        return self.ended_at[rank] - self.began

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def terminal(self) -> str:
        return self.text("terminal-0") + self.text("terminal-1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_drill(name: str, folder: Path) -> Drill:
    folder.mkdir()
    port, context = free_port(), multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=run_drill, args=(name, rank, port, SECONDS, folder), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    return Drill(folder=folder, ranks=ranks)


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def provoke(name: str, drill: Drill) -> None:
    """What comes from outside, once the ranks are where they should be."""
    until(lambda: all((drill.folder / f"ready-{rank}").exists() for rank in range(2)))
    drill.began = time.monotonic()
    match name:
        case "stop of one that waits":
            drill.send(1, signal.SIGUSR1)
        case "stop of one that prepares":
            drill.send(0, signal.SIGTERM)
        case "stop of one that trains":
            drill.send(1, signal.SIGUSR2)
        case "second signal in a collective":
            time.sleep(0.5)
            drill.send(0, signal.SIGTERM)
            time.sleep(0.3)
            assert drill.ranks[0].is_alive()
            drill.send(0, signal.SIGTERM)  # the same request delivered twice
            time.sleep(0.3)
            assert drill.ranks[0].is_alive()
            drill.began = time.monotonic()
            drill.send(0, signal.SIGINT)


def is_settled(name: str, drill: Drill) -> bool:
    """All ranks that can end have ended."""
    left = {"stopped": [1], "first stopped": [0], "second signal in a collective": [1]}.get(name, [])
    for rank, process in enumerate(drill.ranks):
        if rank not in drill.ended_at and process.exitcode is not None:
            drill.ended_at[rank] = time.monotonic()
    return set(drill.ended_at) | set(left) == {0, 1}


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drill]:
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))  # the fork server has to find what it preloads
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        multiprocessing.get_context("forkserver").set_forkserver_preload(["watched_rank"])
        folder = tmp_path_factory.mktemp("drills")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            played = [pool.submit(play, name, folder / name.replace(" ", "-")) for name in DRILLS]
        return dict(zip(DRILLS, [drill.result() for drill in played], strict=True))


def play(name: str, folder: Path) -> Drill:
    drill = start_drill(name, folder)
    try:
        provoke(name, drill)
        until(lambda: is_settled(name, drill))
    finally:
        for process in drill.ranks:
            process.kill()
            process.join()
    return drill


# ── who is to blame ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "culprit", "ends", "says"),
    [
        ("asleep in its data", 1, [0, 1], f"rank 1 makes no progress for 3 s, in step {TROUBLE_STEP}, phase data"),
        ("endless loop", 0, [0, 1], f"rank 0 makes no progress for 3 s, in step {TROUBLE_STEP}, phase forward"),
        ("stopped", 1, [0], "rank 1 gives no sign of life for 3 s: killed or stopped"),
        ("first stopped", 0, [1], "rank 0, through which the ranks meet, does not answer for 3 s"),
        ("killed while the first works alone", 1, [0], "rank 1 gives no sign of life for 3 s: killed or stopped"),
    ],
)
def test_a_rank_that_hangs_is_named_in_time(drills: dict[str, Drill], name: str, culprit: int, ends: list[int], says: str) -> None:
    drill = drills[name]
    for rank in ends:
        assert drill.codes[rank] == 75, drill.terminal
        assert SECONDS / 2 < drill.took(rank) < SECONDS + 5
        assert f"rank {rank}, process {drill.text(f'process-{rank}')} on" in drill.text(f"watchdog/rank-{rank}.txt")
    report = drill.text("watchdog/report.txt")
    assert says in report and report.count("watchdog: ") == 1 and "the same command goes on" in report
    assert drill.terminal.count("watchdog: ") == 1 and says in drill.terminal and "Traceback" not in drill.terminal
    events = [json.loads(line) for line in drill.text("events.jsonl").splitlines()]
    assert [(event["event"], event["culprits"]) for event in events] == [("hung", [culprit])]


def test_the_stacks_show_where_it_hangs(drills: dict[str, Drill]) -> None:
    assert "in asleep" in drills["asleep in its data"].text("watchdog/rank-1.txt")
    assert "all_reduce" in drills["asleep in its data"].text("watchdog/rank-0.txt")
    assert "in endless" in drills["endless loop"].text("watchdog/rank-0.txt")


def test_no_rank_is_blamed_when_none_stands_out(drills: dict[str, Drill]) -> None:
    drill = drills["both asleep"]
    report = drill.text("watchdog/report.txt")
    assert drill.codes == [75, 75] and "cannot be told" in report
    for rank in range(2):
        assert f"rank {rank} (process {drill.text(f'process-{rank}')} on" in report and "in asleep" in drill.text(f"watchdog/rank-{rank}.txt")


@pytest.mark.parametrize(("name", "victim"), [("killed in a step", 1), ("first killed in a step", 0), ("first killed while others wait", 0)])
def test_a_killed_rank_ends_the_others_at_once_without_a_traceback(drills: dict[str, Drill], name: str, victim: int) -> None:
    drill = drills[name]
    assert drill.codes[victim] == -signal.SIGKILL and drill.codes[1 - victim] == 75, drill.terminal
    assert drill.took(1 - victim) < 5 and "lost: " in drill.terminal and "Traceback" not in drill.terminal


def test_slow_but_alive_is_no_alarm(drills: dict[str, Drill]) -> None:
    drill = drills["long but alive"]
    assert drill.codes == [0, 0] and drill.took(0) > 2.5 * SECONDS and not (drill.folder / "watchdog").exists(), drill.terminal


# ── stops ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "number"), [("stop of one that waits", "SIGUSR1"), ("stop of one that prepares", "SIGTERM")])
def test_a_stop_reaches_a_rank_that_waits_or_prepares(drills: dict[str, Drill], name: str, number: str) -> None:
    drill = drills[name]
    assert drill.codes == [75, 75] and max(drill.took(0), drill.took(1)) < 8
    assert [drill.text(f"terminal-{rank}") for rank in range(2)] == [f"stopped by {number}\n"] * 2


def test_a_stop_in_training_ends_both_at_the_same_step(drills: dict[str, Drill]) -> None:
    drill = drills["stop of one that trains"]
    steps = [int(drill.text(f"stopped-{rank}")) for rank in range(2)]
    assert drill.codes == [0, 0] and steps[0] == steps[1] >= TROUBLE_STEP, drill.terminal


def test_a_second_signal_ends_at_once_even_inside_a_collective(drills: dict[str, Drill]) -> None:
    drill = drills["second signal in a collective"]
    assert drill.codes[0] == 128 + signal.SIGINT and drill.took(0) < 3
    assert "SIGTERM: finishing the step in hand" in drill.text("terminal-0") and "SIGINT again: ended at once" in drill.text("terminal-0")


# ── what ranks say to each other ─────────────────────────────────────────────────────────────────────────────────────────


def test_ranks_talk_in_two_threads_without_mixing_it_up(drills: dict[str, Drill]) -> None:
    drill = drills["talks"]
    assert drill.codes == [0, 0], drill.terminal
    heard = [ast.literal_eval(drill.text(f"heard-{rank}")) for rank in range(2)]
    for found in heard:
        assert found["aside"] == [[("aside", rank, number) for rank in range(2)] for number in range(20)]
        assert found["sums"] == [2.0 * number for number in range(50)] and found["gathered"] == [0, 1]
        assert found["flags"] == [False, True, True, True]
    extra = []
    for one, two in zip(heard[0]["waits"], heard[1]["waits"], strict=True):
        last_came = max(one[0], two[0])
        assert min(one[1], two[1]) >= last_came
        extra.append(max(one[1], two[1]) - last_came)
    assert sorted(extra)[len(extra) // 2] < 0.005
