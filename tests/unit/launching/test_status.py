"""How runs stand, by their folders and the processes of this machine; what SLURM says of jobs is tested on a real one (tests/slurm)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slayer.config import save_config
from slayer.errors import ConfigError
from slayer.launching.__main__ import main
from slayer.launching.compose import compose
from slayer.launching.job_record import JobRecord
from slayer.launching.restarts import FAILURE_NAME
from slayer.launching.scheduler import Queued
from slayer.launching.status import LIVELY_SECONDS, Standing, _of_job, _standing, find_runs, standings

Make = Callable[..., Path]


@pytest.fixture
def make(small: list[str], tmp_path: Path) -> Make:
    """make("name", steps=[1, 2]): a run folder with such a log, last written long ago."""
    values = compose([*small, f"runs_dir={tmp_path / 'runs'}", "run=x"])

    def run(name: str, steps: range = range(0), age_seconds: float = 7200) -> Path:
        folder = tmp_path / "runs" / name
        save_config(values.model_copy(update={"run": name}), folder / "config.yaml")
        if steps:
            (folder / "checkpoints").mkdir()
            lines = [{"step": step, "steps": 100, "loss": 3.0 - step / 100, "step_seconds": 0.5} for step in steps]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        aged(folder, age_seconds)
        return folder

    return run


def aged(folder: Path, seconds: float) -> None:
    """Let everything in a folder be this old."""
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def one(folder: Path) -> Standing:
    (standing,) = standings([folder])
    return standing


def test_a_run_that_nobody_works_at(make: Make) -> None:
    folder = make("old", range(1, 31))
    standing = one(folder)
    assert (standing.state, standing.where, standing.step, standing.steps, standing.loss) == ("unknown", "–", 30, 100, 2.7)
    assert standing.eta_seconds is None and standing.changed_seconds == pytest.approx(7200, abs=60) and "another machine" in standing.why


def test_a_run_that_has_just_written_is_running(make: Make) -> None:
    standing = one(make("fresh", range(1, 31), age_seconds=LIVELY_SECONDS / 2))
    assert standing.state == "running" and standing.eta_seconds == pytest.approx(70 * 0.5)


def test_a_slow_run_of_this_machine_is_running(make: Make) -> None:
    """Nothing was written for hours, but a process holds its log."""
    folder = make("slow", range(1, 3))
    code = f"open({str(folder / 'metrics.jsonl')!r}, 'a'); f = open({str(folder / 'metrics.jsonl')!r}, 'a'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "\n"
        assert (one(folder).state, one(folder).where) == ("running", "here")
        holder.communicate("\n")
    assert one(folder).state == "unknown"


def test_how_a_run_has_ended(make: Make) -> None:
    stopped = make("stopped", range(1, 3))
    (stopped / "events.jsonl").write_text(json.dumps({"event": "stopped", "step": 2}) + "\n", encoding="utf-8")
    failed = make("failed", range(1, 3))
    (failed / FAILURE_NAME).write_text("no space left", encoding="utf-8")
    done = make("done", range(1, 101))
    (done / "results.json").write_text(json.dumps({"format": 1, "objective": {"value": 1.0}}), encoding="utf-8")
    found = {standing.run: standing for standing in standings([stopped, failed, done, make("planned")])}
    assert {name: standing.state for name, standing in found.items()} == {
        "stopped": "stopped",
        "failed": "failed",
        "done": "done",
        "planned": "planned",
    }
    assert found["failed"].why == "no space left"


@pytest.mark.parametrize(
    ("queued", "state"),
    [
        (("PENDING", "Priority", 0), "pending"), (("PENDING", "BeginTime", 1), "requeued"), (("RUNNING", "", 2), "running"),
        (("COMPLETING", "", 0), "running"), (("SUSPENDED", "", 0), "pending"), (("TIMEOUT", "TimeLimit", 0), "failed"),
        (("NODE_FAIL", "", 0), "failed"), (("OUT_OF_MEMORY", "OutOfMemory", 0), "failed"), (("CANCELLED", "", 0), "stopped"),
    ],
)  # fmt: skip
def test_states_of_slurm_in_our_words(queued: tuple[str, str, int], state: str, tmp_path: Path) -> None:
    job = Queued(job="7", state=queued[0], reason=queued[1], restarts=queued[2])
    assert _of_job(job, JobRecord(tmp_path))[0] == state


def test_a_job_that_slurm_has_forgotten(make: Make) -> None:
    """Then the folder is all there is, and it may not know."""
    folder = make("job", range(1, 3))
    record = JobRecord(folder)
    told = lambda queue: _standing(folder, "7", queue, False, time.time())  # noqa: E731
    record.write("submitted", job="7")
    assert told({}).state == "unknown" and "had not started" in told({}).why and told({}).where == "job 7"
    record.write("started", job="7", start=0)
    assert told(None).state == "unknown" and "does not answer" in told(None).why
    record.write("ended", job="7", state="failed", code=2, step=2, why="the text is gone")
    assert (told({}).state, told({}).why) == ("failed", "the text is gone")
    record.write("started", job="7", start=1)
    assert told({}).state == "unknown" and told({}).restarts == 1
    record.write("ended", job="7", state="requeued", code=75, step=2, why="")
    assert told({}).state == "requeued"


def test_what_may_be_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make("a"), make("b")]
    sweep = tmp_path / "runs" / "sweeps" / "s"
    (sweep / "points").mkdir(parents=True)
    for number, run in enumerate([*runs, tmp_path / "runs" / "refused"]):
        (sweep / "points" / f"{number:04d}.json").write_text(json.dumps({"run": run.name, "run_dir": str(run), "status": "failed"}), encoding="utf-8")
    assert find_runs([str(runs[0])]) == [runs[0]] and find_runs([str(tmp_path / "runs")]) == runs
    assert find_runs([str(sweep), str(runs[1])]) == [*runs, tmp_path / "runs" / "refused"]
    assert [standing.state for standing in standings(find_runs([str(sweep)]))] == ["planned", "planned", "failed"]
    for wrong in (tmp_path / "nowhere", tmp_path / "runs" / "a" / "config.yaml"):
        with pytest.raises(ConfigError, match="RUNS"):
            find_runs([str(wrong)])


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("a_run_with_a_long_name", range(1, 31))
    assert main(["status", str(tmp_path / "runs")]) == 0
    table = capsys.readouterr().out
    assert "a_run_with_a_long_name" in table and "30 of 100" in table and "2.7000" in table and "2 h 00 min ago" in table
    assert main(["status", str(tmp_path / "runs"), "--json"]) == 0
    (values,) = json.loads(capsys.readouterr().out)
    assert (values["run"], values["state"], values["step"], values["steps"]) == ("a_run_with_a_long_name", "unknown", 30, 100)
    assert main(["status", str(tmp_path / "nowhere")]) == 2 and "is no folder" in capsys.readouterr().err
    assert main([]) == 2 and main(["status", "--yaml"]) == 2 and main(["--help"]) == 0
