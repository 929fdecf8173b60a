"""Trackers: metrics.jsonl is always whole, the others work for real, and none of them can stop or slow a run."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from sample_run import sample_config, sample_records

from slayer.reporting import trackers as module
from slayer.reporting.run_folder import read_metrics
from slayer.reporting.trackers import BackgroundTracker, JsonlTracker, Trackers, open_trackers


def opened(tmp_path: Path, name: str = "jsonl") -> Trackers:
    config = sample_config(name) if name != "jsonl" else sample_config()
    return open_trackers(config.tracker, tmp_path, name=config.run, values=config.model_dump())


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    trackers = opened(tmp_path)
    for number, record in enumerate(sample_records(3), 1):
        trackers.log(record)
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == number
    trackers.finish()
    assert read_metrics(tmp_path / "metrics.jsonl") == sample_records(3)


def test_a_resumed_run_repeats_no_step_and_mends_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 9)) + '{"step": 9, "lo', encoding="utf-8")
    trackers = opened(tmp_path)
    trackers.truncate_after(5)
    for step in (6, 7):
        trackers.log({"step": step})
    trackers.finish()
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_without_truncation_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    tracker = JsonlTracker(path)
    tracker.log({"step": 2})
    tracker.finish()
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'


def test_numbers_json_does_not_know_become_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log({"step": 1, "loss": float("nan"), "lr": np.float32(0.5), "mfu": None})
    tracker.finish()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8")) == {"step": 1, "loss": None, "lr": 0.5, "mfu": None}


def test_a_full_disk_is_told_once_and_the_run_goes_on(caplog):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    tracker = JsonlTracker(Path("/dev/full"))
    trackers = Trackers(tracker)
    for step in range(5):
        trackers.log({"step": step})
    trackers.finish()
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_tensorboard_for_real(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = opened(tmp_path, "tensorboard")
    for record in sample_records(10):
        trackers.log(record)
    trackers.finish()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 11))
    assert [event.step for event in events.Scalars("heldout/wikipedia_fr")] == [0, 10]


def run_tracker(name: str, run_dir: Path, environment: dict[str, str]) -> tuple[float, str]:
    """Log ten steps in a process of its own; returns its seconds and what it wrote to standard error."""
    program = textwrap.dedent(f"""
        from pathlib import Path
        from sample_run import sample_config, sample_records
        from slayer.reporting.trackers import open_trackers
        config = sample_config({name!r})
        trackers = open_trackers(config.tracker, Path({str(run_dir)!r}), name=config.run, values=config.model_dump())
        for record in sample_records(10):
            trackers.log(record)
        trackers.finish()
    """)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert steps(run_dir / "metrics.jsonl")[-1] == 10
    return time.monotonic() - started, done.stderr


def test_wandb_offline_for_real(tmp_path):
    pytest.importorskip("wandb")
    _, errors = run_tracker("wandb", tmp_path, {"WANDB_MODE": "offline"})
    assert "tracker wandb" not in errors
    logs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(logs) == 1
    content = logs[0].read_bytes()
    assert b"wikipedia_fr" in content and b"conftest" not in content and b"git" not in content.replace(b"digit", b"")


def test_wandb_without_a_network_goes_offline_by_itself(tmp_path):
    pytest.importorskip("wandb")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    key = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    _, errors = run_tracker("wandb", tmp_path, key)
    assert "tracker wandb" not in errors and list((tmp_path / "wandb").glob("offline-run-*"))


def test_trackio_for_real(tmp_path):
    pytest.importorskip("trackio")
    import sqlite3

    _, errors = run_tracker("trackio", tmp_path, {})
    assert "tracker trackio" not in errors
    databases = list((tmp_path / "trackio").glob("*.db"))
    assert len(databases) == 1
    with sqlite3.connect(databases[0]) as database:
        assert {row[0] for row in database.execute("SELECT step FROM metrics")} == set(range(11))


class Raises:
    def log(self, record):
        raise RuntimeError("no such server")

    def finish(self):
        raise AssertionError("a dropped tracker is not finished")


class Hangs:
    def log(self, record):
        time.sleep(60)

    def finish(self):
        pass


def test_a_tracker_that_raises_is_told_once_and_dropped(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), [BackgroundTracker("bad", Raises)])
        for step in range(20):
            trackers.log({"step": step})
        trackers.finish()
    assert steps(tmp_path / "metrics.jsonl") == list(range(20))
    assert [record.getMessage() for record in caplog.records] == [
        "tracker bad failed (RuntimeError: no such server). The run goes on; metrics.jsonl has every number."
    ]


def test_a_tracker_that_hangs_slows_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.2)
    monkeypatch.setattr(module, "QUEUE_RECORDS", 50)
    trackers = Trackers(JsonlTracker(tmp_path / "metrics.jsonl"), [BackgroundTracker("slow", Hangs)])
    started = time.monotonic()
    for step in range(100):
        trackers.log({"step": step})
    trackers.finish()
    assert time.monotonic() - started < 2
    assert len(caplog.records) == 1 and "does not keep up" in caplog.text


def test_a_missing_package_names_the_command(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    trackers = opened(tmp_path, "trackio")
    trackers.log({"step": 1})
    trackers.finish()
    assert "pip install 'slayer[trackers]'" in caplog.text and len(caplog.records) == 1
