"""The command line from the first plan to a finished run: dry runs, Ctrl-C, going on, two ranks, and what can be asked of it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from command_runs import Done, folder_hash, run_here, start, train, wait_for
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def training_steps(folder: Path) -> list[int]:
    return [record["step"] for record in metrics(folder) if "loss" in record]


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if "second" not in key and key not in ("mfu", "memory_bytes", "time")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes a few seconds."""
    folder = tmp_path_factory.mktemp("work")
    return run_overrides(write_text(folder / "text"), folder / "runs")


# ── what can be asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_is_a_page() -> None:
    done = train("--help", COLUMNS="80")
    assert done.code == 0 and done.seconds < 10
    assert "python train.py -m expansion=shallow_half,even,deep_half prune=0,2" in done.out and "train.learning_rate=" in done.out


def test_the_configuration_can_be_shown_without_running(small: list[str]) -> None:
    done = train("--cfg", "job", *small, "prune=3", "expansion=even")
    assert done.code == 0 and "strategy: even" in done.out and re.search(r"^prune: 3$", done.out, re.M)
    typo = train("--cfg", "job", "model=tinny")
    assert typo.code == 2 and "type: model=tiny" in typo.out and "prune:" not in typo.out


def test_a_wrong_word_stops_a_whole_sweep_before_it_starts(small: list[str], tmp_path: Path) -> None:
    done = train("-m", *small, f"runs_dir={tmp_path / 'runs'}", "expansion=even,shalow_half", "prune=0,1")
    assert done.code == 2 and "type: expansion=shallow_half" in done.out and "Traceback" not in done.out
    assert not (tmp_path / "runs").exists()


# ── a dry run, and the run that follows it ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def planned(small: list[str], ranks: Ranks) -> tuple[Path, Done]:
    """A dry run, changed and run again under the same name."""
    run_here(*small, "run=plan", "dry_run=true", "prune=1", "expansion=deep_half")
    folder = Path(small[-1].removeprefix("runs_dir=")) / "plan"
    assert json.loads((folder / "plan.json").read_text(encoding="utf-8"))["strategy"] == "deep_half"
    return folder, train(*small, "run=plan", "dry_run=true")


def test_a_dry_run_shows_and_saves_its_plan_and_trains_nothing(planned: tuple[Path, Done]) -> None:
    folder, done = planned
    assert done.code == 0 and "Traceback" not in done.out, done.out
    assert "shallow_half · 4 base layers → 5 layers" in done.out and "train this plan" in done.out
    assert {path.name for path in folder.iterdir()} - {"figures"} == {
        "config.yaml", "plan.json", "results.json", "report.html", "report.md", "data.json", "data_report.html", "data_report.md",
    }  # fmt: skip


def test_a_plan_may_be_changed_until_something_is_built(planned: tuple[Path, Done]) -> None:
    folder, _ = planned
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert plan["strategy"] == "shallow_half" and plan["pruned"] == []
    assert "deep_half" not in (folder / "config.yaml").read_text(encoding="utf-8")


# ── Ctrl-C, and the same command again ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def stopped(planned: tuple[Path, Done], small: list[str]) -> dict[str, Any]:
    """The run of that plan: stopped by Ctrl-C, started again to its end, and started once more."""
    folder, _ = planned
    words = [*small, "run=plan", "train.max_steps=120", "train.save_every=1000"]
    process = start(*words)
    wait_for(lambda: len(training_steps(folder)) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    found: dict[str, Any] = {"folder": folder, "code": process.returncode, "out": out, "steps": training_steps(folder)}
    found["checkpoints"] = sorted(path.name for path in (folder / "checkpoints").iterdir())
    found["again"] = train(*words)
    found["before"] = folder_hash(folder / "model")
    found["once_more"] = train(*words)
    return found


def test_a_planned_run_goes_on_from_its_plan(stopped: dict[str, Any]) -> None:
    assert "shallow_half · 4 base layers → 5 layers" in stopped["out"] and "holds a run made with another" not in stopped["out"]


def test_ctrl_c_saves_the_step_in_hand(stopped: dict[str, Any]) -> None:
    step = stopped["steps"][-1]
    assert stopped["code"] == 75 and 5 <= step < 120
    assert stopped["checkpoints"] == [f"step-{step:08d}"]
    assert f"stopped and saved at step {step}" in stopped["out"] and "Traceback" not in stopped["out"]


def test_the_same_command_goes_on_and_finishes(stopped: dict[str, Any]) -> None:
    again, folder = stopped["again"], stopped["folder"]
    assert again.code == 0, again.out
    assert f"going on from step {stopped['steps'][-1]} of 120" in again.out
    assert training_steps(folder) == list(range(1, 121))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["training"]["steps"] == 120 and results["objective"]["value"] == results["heldout"]["domain"]["result"]
    assert (folder / "model" / "model.safetensors").exists() and "evaluate.py checkpoint=" in again.out


def test_a_finished_run_says_so_and_stays_as_it_is(stopped: dict[str, Any]) -> None:
    once_more = stopped["once_more"]
    assert once_more.code == 0 and "is finished; nothing to do" in once_more.out and "report.html" in once_more.out
    assert once_more.seconds < stopped["again"].seconds
    assert folder_hash(stopped["folder"] / "model") == stopped["before"]
    assert training_steps(stopped["folder"]) == list(range(1, 121))


# ── two ranks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_ranks_see_the_tokens_of_one(small: list[str], ranks: Ranks, tmp_path: Path) -> None:
    words = [*small, f"runs_dir={tmp_path}", "train.batch_rows=8", "engine.precision=fp32", "heldout.samples=0"]
    run_here(*words, "run=one")
    two = train(*words, "run=two", "launcher.processes=2")
    assert two.code == 0, two.out
    assert two.out.count("Layer plan") == 1 and "Traceback" not in two.out
    alone, together = ([without_time(record) for record in metrics(tmp_path / run) if "loss" in record] for run in ("one", "two"))
    assert [record["step"] for record in alone] == [1, 2] and len(alone) == len(together)
    for single, shared in zip(alone, together, strict=True):
        assert {key: value for key, value in single.items() if "token" in key} == {key: value for key, value in shared.items() if "token" in key}
        assert shared["loss"] == pytest.approx(single["loss"], abs=1e-5)
    results = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert results["training"]["ranks"] == 2
