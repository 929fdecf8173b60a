"""wandb against real servers: one that works gets every record once, and none of those that do not can stop, slow or hold up a run."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from sample_run import sample_config, sample_records
from tracker_runs import feeders, log_steps, opened, start_program, steps, wandb_services
from wandb_server import KEY, WandbServer, wait_until

from slayer.reporting import tracker_process
from slayer.reporting import trackers as module
from slayer.reporting.trackers import sync_command, track_once


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., WandbServer]]:
    """serve("hangs"): a server to which the trackers opened from now on are sent."""
    servers = []
    for name in ("WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)

    def make(mode: str = "works") -> WandbServer:
        servers.append(WandbServer(mode))
        for name, value in servers[-1].environment.items():
            monkeypatch.setenv(name, value)
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def only_run(server: WandbServer) -> str:
    (run,) = server.rows
    return run


def test_every_record_arrives_once_through_a_resume_then_an_evaluation_and_nothing_else_is_told(tmp_path, serve, caplog):
    server = serve()
    for first, last in ((1, 8), (8, 15)):
        trackers = opened(tmp_path, "wandb")
        took = log_steps(trackers, range(first, last), seconds=0.01)
        trackers.finish()
        assert not trackers.unsent and not feeders() and statistics.median(took) < 1e-3
    rows = server.rows[only_run(server)]
    assert [row["step"] for row in rows] == list(range(1, 15)) and rows[-1]["loss"] == 2.014
    track_once(sample_config("wandb").tracker, tmp_path, name="run", values={"prune": None}, record={"eval/piqa/acc": 0.5})
    assert len(server.lines(only_run(server))) == 14 and server.summaries[only_run(server)]["eval/piqa/acc"] == 0.5
    assert server.configs[only_run(server)]["prune"]["value"] == 2, "the configuration stays the run's"
    assert not caplog.records
    assert b"conftest" not in server.received and b"numpy" not in server.received, "neither code nor packages"
    left = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not left and KEY.encode() not in server.received


def test_records_written_anew_after_a_rewind_come_behind_on_the_same_axis(tmp_path, serve):
    server = serve()
    trackers = opened(tmp_path, "wandb")
    log_steps(trackers, range(1, 11), branch=0)
    assert wait_until(lambda: trackers._process.look() or trackers._process.sent == 10)
    trackers.truncate_after(6)
    log_steps(trackers, range(7, 10), branch=1)
    trackers.finish()
    again = opened(tmp_path, "wandb")  # killed later than its last checkpoint: two steps are made again
    again.truncate_after(8)
    log_steps(again, range(9, 12), branch=2)
    again.finish()
    assert not trackers.unsent and not again.unsent
    rows = server.rows[only_run(server)]
    assert [(row["step"], row["branch"]) for row in rows] == [
        *((step, 0) for step in range(1, 11)), (7, 1), (8, 1), (9, 1), (9, 2), (10, 2), (11, 2),
    ]  # fmt: skip
    assert server.lines(only_run(server)) == list(range(len(rows)))


def test_servers_that_fail_in_every_way_cost_a_run_nothing(tmp_path, serve, caplog, monkeypatch):
    monkeypatch.setattr(module, "FINISH_SECONDS", 1.5)
    runs = {}
    for mode in ("500", "hangs", "silent", "resets"):
        serve(mode)
        runs[mode] = opened(tmp_path / mode, "wandb")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    runs["nobody listens"] = opened(tmp_path / "nobody listens", "wandb")
    for mode, trackers in runs.items():
        took = log_steps(trackers, range(1, 101), seconds=0.002)
        assert statistics.median(took) < 1e-3, mode
    for mode, trackers in runs.items():
        started = time.monotonic()
        trackers.finish()
        assert time.monotonic() - started < 1.5 + 1, mode
        assert trackers.unsent and steps(tmp_path / mode) == list(range(1, 101))
    assert len(caplog.records) == len(runs) and all(sync_command(tmp_path / mode) in caplog.text for mode in runs)
    assert not feeders()


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_gets_the_rest_later_and_nothing_twice(tmp_path, serve, caplog, monkeypatch):
    server = serve()
    for mode, logged, n_arrived in (("works", range(1, 6), 5), ("500", range(6, 11), 5), ("works", range(11, 13), 12)):
        server.mode, requests = "works", server.requests
        trackers = opened(tmp_path, "wandb")
        assert wait_until(lambda before=requests: server.requests >= before + 2)  # it stands, and asks for nothing until it has rows
        server.mode = mode
        log_steps(trackers, logged)
        monkeypatch.setattr(module, "FINISH_SECONDS", 10.0 if mode == "works" else 1.5)
        trackers.finish()
        assert trackers.unsent == (mode == "500")
        assert [row["step"] for row in server.rows[only_run(server)]] == list(range(1, n_arrived + 1))
    assert len(caplog.records) == 1 and "does not answer" in caplog.text


def test_a_service_that_is_killed_comes_back_with_what_is_missing(tmp_path, serve, caplog, monkeypatch):
    monkeypatch.setattr(tracker_process, "FIRST_RETRY_SECONDS", 0.1)
    server = serve()
    trackers = opened(tmp_path, "wandb")
    log_steps(trackers, range(1, 6))
    assert wait_until(lambda: server.rows)
    for service in wandb_services():
        service.kill()
    took = log_steps(trackers, range(6, 106), seconds=0.01)
    trackers.finish()
    assert not trackers.unsent and statistics.median(took) < 1e-3
    assert [row["step"] for row in server.rows[only_run(server)]] == list(range(1, 106))
    assert len(caplog.records) <= 1


def test_a_server_that_takes_nothing_any_more_without_a_word_is_noticed(tmp_path, serve, caplog):
    server = serve()
    trackers = opened(tmp_path, "wandb")
    assert wait_until(lambda: server.rows)
    server.mode = "refuses"  # wandb's own finish succeeds then
    log_steps(trackers, range(1, 4))
    trackers.finish()
    assert trackers.unsent and "does not take the key" in caplog.text and "wandb login --relogin" in caplog.text


@pytest.mark.parametrize("how", ["killed", "ends without finish"])
def test_a_process_is_gone_at_once_while_its_tracker_hangs(tmp_path, serve, how):
    server = serve("silent" if how != "killed" else "works")
    program = """
        for record in sample_records(20):
            trackers.log(record)
        time.sleep(1.0)
        print("the end", flush=True)
        os.kill(os.getpid(), signal.SIGKILL) if sys.argv[3] == "killed" else None
    """
    process = start_program(program, "wandb", tmp_path, how)
    process.stdout.readline()
    started = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - started < 1.5
    if how == "killed":
        assert wait_until(lambda: server.rows and len(server.lines(only_run(server))) == len(sample_records(20)))


def test_without_a_key_it_is_told_what_to_type(tmp_path, serve, caplog, monkeypatch):
    serve()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    trackers = opened(tmp_path / "run", "wandb")
    log_steps(trackers, [1])
    trackers.finish()
    assert trackers.unsent and "wandb login" in caplog.text and len(caplog.records) == 1


def test_offline_by_wish_leaves_one_file_with_every_record(tmp_path, serve, caplog, monkeypatch):
    server = serve()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps_of_start in (range(1, 4), range(4, 7)):
        trackers = opened(tmp_path, "wandb")
        log_steps(trackers, steps_of_start)
        trackers.finish()
    assert not trackers.unsent and not caplog.records and not server.requests
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"2.001" in content and b"2.006" in content and b"conftest" not in content


def test_a_folder_that_cannot_be_made_is_told(tmp_path, serve, caplog):
    serve()
    (tmp_path / "wandb").write_text("in the way")
    trackers = opened(tmp_path, "wandb")
    log_steps(trackers, range(1, 4))
    trackers.finish()
    assert trackers.unsent and "FileExistsError" in caplog.text and steps(tmp_path) == [1, 2, 3]
