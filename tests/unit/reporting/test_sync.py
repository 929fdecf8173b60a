"""python -m slayer.reporting.sync: what a tracker lacks arrives, once, and bad input is one message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_run import sample_config, sample_records, write_run
from tracker_runs import opened, tensorboard_steps, trackio_steps
from wandb_server import KEY, WandbServer, wait_until

from slayer.config import save_config
from slayer.reporting.sync import main

N_RECORDS = len(sample_records())


@pytest.fixture
def sync(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """sync("RUN", "tracker=NAME"): the exit code, standard output and standard error of the command."""

    def run(*words: object, **environment: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sync", *map(str, words)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a run")


def test_wandb_gets_every_record_once_however_often_it_is_asked(run_dir, sync):
    save_config(sample_config("wandb", run="a run"), run_dir / "config.yaml")
    server = WandbServer()
    try:
        environment = {**server.environment, "WANDB_MODE": "offline"}  # who types sync wants it sent
        code, out, err = sync(run_dir, **environment)
        assert code == 0, err
        assert f"wandb was sent all {N_RECORDS} records" in out and f"{server.environment['WANDB_BASE_URL']}/me/slayer/runs/" in out
        assert KEY not in out + err
        with (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 41, "loss": 1.0}\n')
        assert f"wandb was sent 1 of {N_RECORDS + 1} records" in sync(run_dir)[1]
        assert f"wandb has all {N_RECORDS + 1} records" in sync(run_dir)[1]
        (rows,) = server.rows.values()
        assert [row["step"] for row in rows] == [*(record["step"] for record in sample_records()), 41]
    finally:
        server.close()


@pytest.mark.parametrize(("name", "steps_of"), [("tensorboard", tensorboard_steps), ("trackio", trackio_steps)])
def test_tensorboard_and_trackio_are_written_anew(run_dir, sync, name, steps_of):
    for _ in range(2):
        code, out, err = sync(run_dir, f"tracker={name}")
        assert code == 0, err
        assert f"{name} was sent all {N_RECORDS} records" in out and f"{run_dir}/{name}" in out
    assert steps_of(run_dir) == [record["step"] for record in sample_records() if name == "trackio" or "loss" in record]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["one run folder is needed"]),
        (["one", "two"], ["one run folder is needed"]),
        (["{missing}"], ["there is no such folder", "runs/NAME"]),
        (["{empty}"], ["it is no run folder", "config.yaml"]),
        (["{run}"], ["the run was given no tracker", "tracker=wandb"]),
        (["{run}", "tracker=mlflow"], ["'mlflow'", "no such tracker", "tracker=tensorboard"]),
        (["{planned}", "tracker=tensorboard"], ["has no records yet"]),
        (["{run}", "tracker=wandb"], ["127.0.0.1:9 cannot be reached", "to try again"]),
    ],
)
def test_bad_input_is_one_message_that_says_what_to_type(run_dir, tmp_path, sync, words, told):
    planned = write_run(tmp_path / "planned")
    (planned / "metrics.jsonl").unlink()
    (tmp_path / "empty").mkdir()
    names = {"run": run_dir, "missing": tmp_path / "missing", "empty": tmp_path / "empty", "planned": planned}
    code, out, err = sync(*(word.format(**names) for word in words), WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert code == 2 and not out and err.startswith("✖") and all(word in err for word in told), err


def test_a_run_that_is_at_work_sends_its_records_itself(run_dir, sync):
    trackers = opened(run_dir, "tensorboard")
    trackers.log({"step": 41, "loss": 1.0})
    assert wait_until(lambda: trackers._process.look() or trackers._process.sent)
    code, _, err = sync(run_dir, "tracker=tensorboard")
    trackers.finish()
    assert code == 2 and "a run is at work" in err and not trackers.unsent


def test_as_a_command_it_explains_itself():
    done = subprocess.run([sys.executable, "-m", "slayer.reporting.sync", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "tracker=wandb|tensorboard|trackio" in done.stdout and not done.stderr
