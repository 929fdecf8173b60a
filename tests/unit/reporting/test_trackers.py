"""metrics.jsonl is always whole, tensorboard and trackio work for real, and nothing that happens to them can stop or slow a run."""

from __future__ import annotations

import json
import logging
import sqlite3
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from sample_run import sample_config, sample_records
from tracker_runs import feeders, log_steps, opened, start_program, steps, tensorboard_steps, trackio_steps
from wandb_server import wait_until

from slayer.reporting import tracker_process
from slayer.reporting import trackers as module
from slayer.reporting.run_folder import read_metrics
from slayer.reporting.trackers import JsonlTracker, Trackers, sync_command, track_once

STEPS_OF = {"tensorboard": tensorboard_steps, "trackio": trackio_steps}
LOCAL = pytest.mark.parametrize("name", STEPS_OF)


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    trackers = opened(tmp_path)
    for number, record in enumerate(sample_records(3), 1):
        trackers.log(record)
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == number
    trackers.finish()
    assert read_metrics(tmp_path / "metrics.jsonl") == sample_records(3) and not trackers.unsent


def test_a_resumed_run_repeats_no_step_and_mends_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 9)) + '{"step": 9, "lo', encoding="utf-8")
    trackers = opened(tmp_path)
    trackers.truncate_after(5)
    for step in (6, 7):
        trackers.log({"step": step})
    trackers.finish()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_numbers_json_does_not_know_become_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"step": 1, "loss": float("nan"), "lr": np.float32(0.5), "mfu": None})
    tracker.finish()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8")) == {"step": 1, "loss": None, "lr": 0.5, "mfu": None}


def test_a_full_disk_is_told_once_and_the_run_goes_on(caplog):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    trackers = Trackers(JsonlTracker(Path("/dev/full")))
    for step in range(5):
        trackers.log({"step": step})
    trackers.finish()
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_place_that_cannot_be_cut_is_told_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    trackers = opened(tmp_path)
    trackers.truncate_after(3)
    log_steps(trackers, range(4, 6))
    (tmp_path / "metrics.jsonl").rmdir()
    log_steps(trackers, range(6, 8))
    trackers.finish()
    assert len(caplog.records) == 1 and steps(tmp_path) == [4, 5, 6, 7]


@LOCAL
def test_a_run_a_rewind_and_a_resume_leave_each_step_once(tmp_path, name):
    trackers = opened(tmp_path, name)
    for record in sample_records(10):
        trackers.log(record)
    trackers.truncate_after(6)
    log_steps(trackers, range(7, 13))
    trackers.finish()
    assert not trackers.unsent and not feeders()
    held = [step for step in STEPS_OF[name](tmp_path) if step]
    assert held == list(range(1, 13))
    trackers = opened(tmp_path, name)
    trackers.truncate_after(11)
    log_steps(trackers, range(12, 15))
    trackers.finish()
    assert [step for step in STEPS_OF[name](tmp_path) if step] == list(range(1, 15)) == [step for step in steps(tmp_path) if step]


def test_what_tensorboard_and_trackio_hold_is_what_was_logged(tmp_path):
    for name in STEPS_OF:
        trackers = opened(tmp_path / name, name)
        for record in sample_records(10):
            trackers.log(record)
        trackers.finish()
    assert tensorboard_steps(tmp_path / "tensorboard", "heldout/wikipedia_fr") == [0, 10]
    (database,) = (tmp_path / "trackio" / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT timestamp, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len(rows) == len(sample_records(10)) and json.loads(rows[1][2])["loss"] == sample_records(1)[1]["loss"]
    assert rows[1][0].startswith("1970-01-01T00:00:02"), "the time of the record, not of its sending"


@LOCAL
def test_a_folder_that_is_cleared_in_the_middle_is_written_anew(tmp_path, name):
    import shutil

    trackers = opened(tmp_path, name)
    log_steps(trackers, range(1, 4))
    assert wait_until(lambda: _holds(name, tmp_path, 3))
    shutil.rmtree(tmp_path / name)
    log_steps(trackers, range(4, 8))
    trackers.finish()
    assert not trackers.unsent and STEPS_OF[name](tmp_path) == list(range(1, 8))


def _holds(name: str, folder: Path, n_steps: int) -> bool:
    if not any((folder / name).glob("*")):  # the process that feeds it has only begun
        return False
    try:
        return len(STEPS_OF[name](folder)) == n_steps
    except (KeyError, ValueError, sqlite3.Error):
        return False


def test_a_locked_database_and_a_file_in_the_way_of_a_folder_cost_the_run_nothing(tmp_path, caplog, monkeypatch):
    locked, blocked = tmp_path / "locked", tmp_path / "blocked"
    before = opened(locked, "trackio")
    log_steps(before, range(1, 3))
    before.finish()
    monkeypatch.setattr(module, "FINISH_SECONDS", 1.0)
    (database,) = (locked / "trackio").glob("*.db")
    blocked.mkdir()
    (blocked / "tensorboard").write_text("in the way")
    with sqlite3.connect(database) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        both = opened(locked, "trackio"), opened(blocked, "tensorboard")
        took = [seconds for trackers in both for seconds in log_steps(trackers, range(3, 60), seconds=0.01)]
        started = time.monotonic()
        for trackers in both:
            trackers.finish()
        assert time.monotonic() - started < 2 * 1.0 + 1 and statistics.median(took) < 1e-3
        connection.rollback()
    assert all(trackers.unsent for trackers in both) and not feeders()
    assert sync_command(locked) in caplog.text and sync_command(blocked) in caplog.text and len(caplog.records) == 2
    assert steps(locked) == list(range(1, 60)) and steps(blocked) == list(range(3, 60))


def test_a_process_that_was_killed_is_started_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker_process, "FIRST_RETRY_SECONDS", 0.1)
    trackers = opened(tmp_path, "tensorboard")
    log_steps(trackers, range(1, 4))
    feeders()[0].kill()
    assert wait_until(lambda: trackers.log({"step": 4, "loss": 1.0}) or caplog.records)
    trackers.truncate_after(3)
    log_steps(trackers, range(4, 30), seconds=0.02)
    trackers.finish()
    assert not trackers.unsent and tensorboard_steps(tmp_path) == list(range(1, 30))
    assert "ended with exit code -9" in caplog.text and len(caplog.records) == 1


def test_a_missing_package_names_the_command(tmp_path, caplog, monkeypatch):
    (tmp_path / "trackio.py").write_text("raise ImportError('no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trackers = opened(tmp_path / "run", "trackio")
    log_steps(trackers, [1])
    trackers.finish()
    assert trackers.unsent and "pip install 'slayer[trackers]'" in caplog.text and len(caplog.records) == 1


def test_a_run_that_is_killed_or_crashes_still_gets_its_last_lines_sent(tmp_path):
    program = """
        for record in sample_records(30):
            trackers.log(record)
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL) if sys.argv[3] == "killed" else 1 / 0
    """
    for how in ("killed", "crashes"):
        process = start_program(program, "tensorboard", tmp_path / how, how)
        process.communicate(timeout=30)
        assert process.returncode != 0
    for how in ("killed", "crashes"):
        assert wait_until(lambda folder=tmp_path / how: _holds("tensorboard", folder, 30))


@LOCAL
def test_an_evaluation_stands_beside_the_run_once(tmp_path, caplog, name):
    trackers = opened(tmp_path, name)
    log_steps(trackers, range(1, 4))
    trackers.finish()
    for score in (0.4, 0.5):
        track_once(sample_config(name).tracker, tmp_path, name="again", values={"limit": 8}, record={"eval/piqa/acc": score})
    assert not caplog.records
    if name == "tensorboard":
        assert tensorboard_steps(tmp_path) == [1, 2, 3]
        assert len(list((tmp_path / "tensorboard" / "evaluation").iterdir())) == 1
    else:
        (database,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(database) as connection:
            rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        assert [run for run, _ in rows] == 3 * [sample_config().run] + ["again-evaluation"]
        assert json.loads(rows[-1][1]) == {"eval/piqa/acc": 0.5}


def test_jsonl_needs_no_process_of_its_own(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trackers = opened(tmp_path)
        log_steps(trackers, range(3))
        assert not feeders()
        trackers.finish()
    assert not caplog.records
