"""A sweep on a tiny model: finished, refused and killed points side by side, and the others go on."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from command_runs import Done, start, train, wait_for
from small_text import run_overrides, write_text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes a few seconds."""
    folder = tmp_path_factory.mktemp("work")
    return run_overrides(write_text(folder / "text"), folder / "runs")


def points(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((sweep / "points").glob("*.json"))]


@pytest.fixture(scope="module")
def swept(small: list[str]) -> tuple[Path, Done]:
    """A sweep of two strategies by a possible and an impossible pruning."""
    runs = Path(small[-1].removeprefix("runs_dir="))
    return runs, train("-m", *small, "expansion=shallow_half,even", "prune=0,9")


@pytest.fixture(scope="module")
def sweep(swept: tuple[Path, Done]) -> Path:
    (folder,) = (swept[0] / "sweeps").iterdir()
    return folder


def test_the_exit_code_tells_that_points_failed(swept: tuple[Path, Done]) -> None:
    assert swept[1].code == 2 and "Traceback" not in swept[1].out, swept[1].out


def test_points_that_fail_do_not_stop_the_others(sweep: Path) -> None:
    found = points(sweep)
    told = [({word.partition("=")[0]: word.partition("=")[2] for word in point["overrides"]}, point["status"]) for point in found]
    assert [(words["expansion"], words["prune"], status) for words, status in told] == [
        ("shallow_half", "0", "finished"), ("shallow_half", "9", "failed"), ("even", "0", "finished"), ("even", "9", "failed"),
    ]  # fmt: skip
    assert [point["error"] is None for point in found] == [True, False, True, False]
    assert all("the model has 4 layers and at least one must stay" in point["error"] for point in found if point["error"])


def test_the_objective_of_a_point_is_that_of_its_run(swept: tuple[Path, Done], sweep: Path) -> None:
    for point in points(sweep):
        if point["status"] == "failed":
            assert point["objective"] is None
            continue
        folder = Path(point["run_dir"])
        assert folder.parent == swept[0] and folder.name == point["run"]
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert math.isfinite(point["objective"])
        assert point["objective"] == results["objective"]["value"] == results["heldout"]["domain"]["result"]


def test_one_page_compares_all_points(sweep: Path) -> None:
    markdown, page = ((sweep / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert "2 of 4 runs finished, 2 failed" in markdown and "Best: expansion=" in markdown
    for text in (markdown, page):
        assert "shallow_half" in text and "even" in text and "the model has 4 layers" in text
        for point in points(sweep):
            if point["objective"] is not None:
                assert f"{point['objective']:.4f}" in text


def test_the_table_is_in_the_terminal_too(swept: tuple[Path, Done]) -> None:
    table = swept[1].out[swept[1].out.rindex("Sweep") :]
    assert "shallow_half" in table and "even" in table and "best" in table and table.count("problem") + table.count("failed") >= 2


def test_a_point_that_is_killed_is_shown_as_failed(small: list[str], tmp_path: Path) -> None:
    process = start("-m", *small, f"runs_dir={tmp_path}", "train.max_steps=100000", "prune=0,9")
    run_folders = lambda: [path for path in tmp_path.iterdir() if (path / "metrics.jsonl").exists()]  # noqa: E731
    wait_for(lambda: bool(run_folders()), process)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(child), signal.SIGKILL)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "Traceback" not in out, out  # started again, the killed point goes on
    (sweep,) = (tmp_path / "sweeps").iterdir()
    killed, refused = points(sweep)
    assert killed["status"] == refused["status"] == "failed" and killed["objective"] is None
    assert "SIGKILL" in killed["error"] and killed["error"] in (sweep / "report.md").read_text(encoding="utf-8")
