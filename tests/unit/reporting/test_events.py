"""RUN/events.jsonl: durable, never raises, read with patience."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from slayer.reporting.events import Events, read_events


def test_an_event_is_one_line_that_later_writers_continue(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    before = time.time()
    Events(path).record("skipped", 12, loss=float("inf"), why=ValueError("spike"), folder=Path("checkpoints"), time="of the guard")
    Events(path).record("resumed", None)
    first, second = read_events(path)
    assert list(first) == ["time", "event", "step", "loss", "why", "folder"] and before <= first.pop("time") <= time.time()
    assert first == {"event": "skipped", "step": 12, "loss": None, "why": "spike", "folder": "checkpoints"}
    assert (second["event"], second["step"]) == ("resumed", None)


def test_a_torn_line_is_passed_over_and_cut(tmp_path):
    path = tmp_path / "events.jsonl"
    Events(path).record("stopped", 1)
    with path.open("ab") as file:
        file.write(b'{"event": "re')
    assert [event["event"] for event in read_events(path)] == ["stopped"]
    Events(path).record("resumed", 1)
    assert [event["event"] for event in read_events(path)] == ["stopped", "resumed"]
    assert path.read_bytes().count(b"\n") == 2
    assert read_events(tmp_path / "missing") == []


def test_a_full_disk_is_told_once_and_nothing_is_lost(tmp_path):
    program = """
        import logging, resource, sys
        from pathlib import Path
        from slayer.reporting.events import Events
        logging.basicConfig(format="%(message)s")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        events = Events(Path(sys.argv[1]))
        for step in range(6):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 if 1 <= step < 5 else hard, hard))
            events.record("failed save", step)
    """
    path = tmp_path / "events.jsonl"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert [event["step"] for event in read_events(path)] == list(range(6))
    assert len(done.stderr.splitlines()) == 1 and "File too large" in done.stderr and "The run goes on" in done.stderr


@pytest.mark.parametrize("place", ["a file where its folder should be", "a folder in its place"])
def test_a_place_that_cannot_be_written_stops_nothing(tmp_path, caplog, place):
    path = tmp_path / "run" / "events.jsonl"
    if place.startswith("a file"):
        path.parent.write_text("in the way")
    else:
        path.mkdir(parents=True)
    events = Events(path)
    for step in range(3):
        events.record("skipped", step)
    assert len(caplog.records) == 1
    path.parent.unlink() if place.startswith("a file") else path.rmdir()
    events.record("skipped", 3)
    assert [event["step"] for event in read_events(path)] == [0, 1, 2, 3]


def test_an_error_that_quotes_a_key_is_written_without_it(tmp_path):
    secret = "hf_" + "aB3" * 10
    Events(tmp_path / "events.jsonl").record("failed", 1, error=OSError(f"GET https://user:{secret}@host/x"), headers=[{"token": secret}])
    assert secret not in (tmp_path / "events.jsonl").read_text() and "(redacted)" in (tmp_path / "events.jsonl").read_text()
