"""A run that is stopped and goes on, again and again and in other shapes, is the run that nobody stopped."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable

import pytest
from drill_compare import ledger_differences, load_tensors, newest_checkpoint, run_differences, timeless_metrics
from drill_ledger import STOP_VARIABLE, global_rows, read_ledger
from drill_run import DrillRun
from drill_server import RankServers, tail

pytestmark = pytest.mark.slow

REQUEUE, REFUSED = 75, 2
Open = Callable[..., DrillRun]


@pytest.fixture(scope="module")
def open_run(servers: RankServers, tmp_path_factory: pytest.TempPathFactory) -> Open:
    """open_run("name", "engine=zero3", …): a run that is yet to be started."""
    folder = tmp_path_factory.mktemp("resumes")
    return lambda name, *words: DrillRun(servers, folder / name, words, random.Random(0))


@pytest.mark.matrix
def test_ten_resumes_in_a_row_change_no_bit(open_run: Open) -> None:
    """A SIGTERM to one of two ranks after every other step, eleven starts in all."""
    words = ("train.max_steps=22", "train.save_every=100", "train.evaluate_every=7", "engine.micro_batch_rows=2")
    untouched, stopped = open_run("ten-untouched", *words), open_run("ten-stopped", *words)
    untouched.finish(untouched.start(ranks=2))
    for number in range(1, 11):
        stopped.finish(stopped.start(ranks=2, **{STOP_VARIABLE: f"{number % 2}:{2 * number}"}), REQUEUE)
        assert stopped.saved_step() == 2 * number
    stopped.finish(stopped.start(ranks=2))
    assert run_differences(stopped.path, untouched.path) == []
    assert ledger_differences(stopped.ledger, untouched.ledger) == []
    assert len(stopped.taken()) == 22, "a step was taken twice"


# ── in other shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────

SHAPES = {
    "1, 2, 4 and 1 ranks": (
        (1, "engine.micro_batch_rows=8"), (2, "engine.micro_batch_rows=2"), (4, "engine.micro_batch_rows=1"), (1, "engine.micro_batch_rows=2"),
    ),
    "ZeRO 2, 3, 1 and 0": (
        (2, "engine=zero2 engine.micro_batch_rows=4"), (2, "engine=zero3 engine.micro_batch_rows=1"), (2, "engine=zero1 engine.micro_batch_rows=2"),
        (1, "engine=zero0 engine.micro_batch_rows=8"),
    ),
}  # fmt: skip
"""Ranks and overrides of each start; eight rows a step in all of them."""

STOPS = (4, 7, 11, 14)
COMMON = ("train.max_steps=14", "train.batch_rows=8", "train.save_every=100", "engine.precision=fp32")


@pytest.fixture(scope="module")
def one_rank(open_run: Open) -> DrillRun:
    """The run of one rank that nobody stopped."""
    run = open_run("one-rank", *COMMON)
    run.finish(run.start("engine.micro_batch_rows=4"))
    return run


def rows_by_step(run: DrillRun) -> list[tuple[str, ...]]:
    """The rows of every step in the order of the global batch."""
    lines = read_ledger(run.ledger)
    return [global_rows([line for line in lines if line.step == step]) for step in range(STOPS[-1])]


@pytest.mark.parametrize("shapes", SHAPES)
def test_another_shape_after_each_stop_trains_on_the_same(open_run: Open, one_rank: DrillRun, shapes: str) -> None:
    run = open_run(shapes.replace(" ", "-"), *COMMON)
    for (ranks, words), until in zip(SHAPES[shapes], STOPS, strict=True):
        is_last = until == STOPS[-1]
        run.finish(run.start(*words.split(), ranks=ranks, **({} if is_last else {STOP_VARIABLE: f"{ranks - 1}:{until}"})), 0 if is_last else REQUEUE)
        written = json.loads((newest_checkpoint(run.path) / "state.json").read_bytes())  # type: ignore[operator]
        assert (written["run"]["step"], written["world"]) == (until, ranks)

    assert rows_by_step(run) == rows_by_step(one_rank)
    assert len({rows for rows in rows_by_step(run)}) == STOPS[-1], "steps are alike: a wrong order would go unseen"
    for line, expected in zip(timeless_metrics(run.path), timeless_metrics(one_rank.path), strict=True):
        assert line == pytest.approx(expected, abs=1e-5, rel=1e-5)
    ours, theirs = (load_tensors(newest_checkpoint(one.path)) for one in (run, one_rank))  # type: ignore[arg-type]
    masters = [name for name in theirs if name.startswith("master/")]
    assert masters and max(float(abs(ours[name] - theirs[name]).max()) for name in masters) < 1e-5


def test_no_line_is_written_twice(open_run: Open, one_rank: DrillRun) -> None:
    """Killed before the first checkpoint: the line of step 0 is written anew. Killed behind the last line: it stands there already."""
    run, shape = open_run("killed", *COMMON), "engine.micro_batch_rows=4"
    started = run.start(shape)
    assert run.wait_for(lambda: len(run.taken()) > 1, started)
    started.signal(signal.SIGKILL)
    assert started.wait(10) and run.saved_step() == 0
    run.finish(run.start(shape))
    assert run_differences(run.path, one_rank.path) == []

    results = json.loads((run.path / "results.json").read_bytes())
    del results["objective"]  # it comes after the last line, and makes the run a finished one
    (run.path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    run.finish(run.start(shape))
    assert run_differences(run.path, one_rank.path) == []


def test_another_global_batch_is_refused(open_run: Open) -> None:
    run = open_run("refused", *COMMON)
    run.finish(run.start(**{STOP_VARIABLE: "0:3"}), REQUEUE)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    run.finish(run.start("train.batch_rows=16", ranks=2), REFUSED)
    assert "train.batch_rows: the run has 8, you asked for 16" in " ".join(tail(run.log, 60).split())
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
