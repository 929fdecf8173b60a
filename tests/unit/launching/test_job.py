"""What becomes of a job when its ranks have ended, and what the points of sweeps learn of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slayer.config import RunConfig, save_config
from slayer.launching.compose import compose
from slayer.launching.job import begin, end
from slayer.launching.job_record import JobRecord, leave_code
from slayer.launching.restarts import FAILURE_NAME
from slayer.launching.slurm import run_on_slurm, submit
from slayer.launching.sweep import Point, known_of, record_point
from slayer.reporting.events import read_events


@pytest.fixture
def config(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A frozen run of a cluster that allows two restarts without a step."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    config = compose([*small, f"runs_dir={tmp_path / 'runs'}", "run=x", "launcher=slurm", "launcher.restarts=2"])
    save_config(config, config.folder / "config.yaml")
    return config


def step(config: RunConfig, number: int) -> None:
    with (config.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": number, "loss": 1.0}) + "\n")


def finish(config: RunConfig) -> None:
    (config.folder / "results.json").write_text(json.dumps({"format": 1, "objective": {"value": 1.5}}), encoding="utf-8")


@pytest.fixture
def point(config: RunConfig, tmp_path: Path) -> Path:
    """The file of the point that the run is."""
    sweep = Point(sweep_dir=tmp_path / "runs" / "sweeps" / "s", number=3, overrides=["prune=0"])
    record_point(sweep, run="x", run_dir=str(config.folder), status="pending", job="7")
    path = sweep.sweep_dir / "points" / "0003.json"
    JobRecord(config.folder).write("point", point=str(path))
    return path


def read(point: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(point.read_text(encoding="utf-8"))
    return values


def test_a_finished_run_ends_its_job_with_0(config: RunConfig, point: Path) -> None:
    begin(config.folder, "7", 0)
    assert read(point)["status"] == "running"
    finish(config)
    assert end(config.folder, "7", 0, by_slurm=False) == 0
    values = read(point)
    assert (values["status"], values["objective"], values["job"], values["overrides"]) == ("finished", 1.5, "7", ["prune=0"])
    assert values["seconds"] >= 0 and values["run_dir"] == str(config.folder)


def test_a_stop_is_queued_again_and_so_is_a_loss(config: RunConfig, point: Path) -> None:
    for number, code in enumerate((75, 137, 139, 1), 1):  # each after a step of progress
        begin(config.folder, "7", number - 1)
        step(config, number)
        assert end(config.folder, "7", code, by_slurm=False) == 75
        assert read(point)["status"] == "requeued" and read(point)["error"] is None
    assert [event["step"] for event in read_events(config.folder / "events.jsonl") if event["event"] == "restarted"] == [1, 2, 3, 4]


def test_without_progress_it_is_tried_so_often(config: RunConfig, point: Path) -> None:
    step(config, 5)
    assert [end(config.folder, "7", 75, by_slurm=False) for _ in range(3)] == [75, 75, 2]
    assert read(point)["status"] == "failed" and "queued again 2 times without a step behind step 5" in read(point)["error"]
    assert end(config.folder, "8", 75, by_slurm=False) == 75, "another job has its tries before it"


def test_steps_that_are_made_again_are_no_progress(config: RunConfig) -> None:
    step(config, 9)
    assert end(config.folder, "7", 75, by_slurm=False) == 75
    for again in (7, 9):
        (config.folder / "metrics.jsonl").unlink()
        step(config, again)
        assert JobRecord(config.folder).tries_since(again, "7") > 0
        code = end(config.folder, "7", 75, by_slurm=False)
    assert code == 2


def test_what_a_person_must_mend_is_not_tried_again(config: RunConfig, point: Path) -> None:
    """One rank has refused, another has lost it: srun tells the larger code."""
    begin(config.folder, "7", 0)
    leave_code(config.folder, 2)
    (config.folder / FAILURE_NAME).write_text("the text is gone", encoding="utf-8")
    assert end(config.folder, "7", 75, by_slurm=False) == 2
    assert (read(point)["status"], read(point)["error"]) == ("failed", "the text is gone")
    begin(config.folder, "7", 1)
    assert end(config.folder, "7", 75, by_slurm=False) == 75, "the next start forgets it"


def test_a_job_that_slurm_ends_is_left_to_slurm(config: RunConfig, point: Path) -> None:
    begin(config.folder, "7", 0)
    step(config, 1)
    assert end(config.folder, "7", 75, by_slurm=True) == 143
    assert read(point)["status"] == "failed" and "ended by SLURM" in read(point)["error"]
    begin(config.folder, "7", 1)
    assert read(point)["status"] == "running" and read(point)["error"] is None


def test_without_requeue_it_waits_for_its_owner(small: list[str], tmp_path: Path) -> None:
    config = compose([*small, f"runs_dir={tmp_path}", "run=y", "launcher=slurm", "launcher.requeue=false"])
    save_config(config, config.folder / "config.yaml")
    assert end(config.folder, "7", 75, by_slurm=False) == 75
    assert JobRecord(config.folder).lines[-1]["state"] == "stopped"


def test_a_code_is_left_inside_jobs_only(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    record = JobRecord(config.folder)
    leave_code(config.folder, 2)
    assert not record.folder.exists(), "a run without a job has no such folder"
    begin(config.folder, "7", 0)
    for code in (0, 75):
        leave_code(config.folder, code)
    assert not record.code_file.exists()
    monkeypatch.delenv("SLURM_JOB_ID")
    leave_code(config.folder, 2)
    assert not record.code_file.exists()


def test_a_machine_without_slurm_says_so(config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    launched = submit(config, "python train.py")
    assert (launched.exit_code, launched.objective, launched.job) == (2, None, None)
    assert "there is no sbatch on this machine" in capsys.readouterr().err and JobRecord(config.folder).job is None


def test_a_sweeper_that_learns_must_wait(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = Point(sweep_dir=tmp_path / "sweep", number=0, overrides=["prune=1"])
    with pytest.raises(SystemExit) as ended:
        run_on_slurm(config, "python train.py", point, sweeper_learns=True)
    assert ended.value.code == 2 and not (config.folder / "slurm").exists()
    assert "launcher.wait = false" in capsys.readouterr().err and "--wait" in str(known_of(point)["error"])


def test_a_finished_run_is_not_submitted_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    finish(config)
    launched = submit(config, "python train.py")
    assert (launched.exit_code, launched.objective, launched.job) == (0, 1.5, None)
    assert "x is finished; nothing is submitted" in capsys.readouterr().out


def test_a_script_by_hand_has_three_tries(small: list[str], tmp_path: Path) -> None:
    """train.py in such a script says nothing of SLURM: launcher=local, whose launcher.restarts is about processes of its own."""
    config = compose([*small, f"runs_dir={tmp_path}", "run=z"])
    save_config(config, config.folder / "config.yaml")
    assert [end(config.folder, "7", 75, by_slurm=False) for _ in range(4)] == [75, 75, 75, 2]
