from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path

from slayer.errors import ConfigError, Problem
from slayer.launching.commandline import CONF
from slayer.launching.local import Launched
from slayer.launching.sweep import Point, announce, objective_for_sweeper, record_point, refuse, typed_points


def recorded(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((sweep / "points").glob("*.json"))]


def test_a_sweeper_gets_the_score_or_the_worst_there_is() -> None:
    assert objective_for_sweeper(Launched(exit_code=0, objective=1.25)) == 1.25
    assert objective_for_sweeper(Launched(exit_code=0, objective=0.0)) == 0.0
    assert objective_for_sweeper(Launched(exit_code=2, objective=None, error="no")) == math.inf


def test_a_refused_point_is_on_the_page_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError([Problem(key="prune", value=9, why="the model has 4 layers and at least one must stay", fix="prune=2")])
    launched = refuse(error, Point(sweep_dir=tmp_path / "sweep", number=3, overrides=["prune=9", "expansion=even"]))
    assert launched.exit_code == 2 and launched.objective is None
    point = json.loads((tmp_path / "sweep" / "points" / "0003.json").read_text(encoding="utf-8"))
    assert (point["number"], point["run"], point["status"], point["overrides"]) == (3, "even-prune_9", "failed", ["prune=9", "expansion=even"])
    for page in ("report.md", "report.html"):
        assert "the model has 4 layers" in (tmp_path / "sweep" / page).read_text(encoding="utf-8")
    assert "prune = 9: the model has 4 layers" in capsys.readouterr().err


def test_a_refused_run_that_is_no_point_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(ConfigError([Problem(key="prune", value=9, why="is too many", fix="prune=2")]), None)
    assert list(tmp_path.iterdir()) == []


# ── what is known of a point ─────────────────────────────────────────────────────────────────────


def test_what_was_known_stays_but_for_the_error(tmp_path: Path) -> None:
    point = Point(sweep_dir=tmp_path, number=0, overrides=["prune=1"])
    record_point(point, run="prune_1", run_dir="runs/prune_1", status="pending")
    record_point(point, job="4711")
    record_point(point, status="failed", error="a node was lost", seconds=3.0)
    record_point(point, status="requeued")
    (values,) = recorded(tmp_path)
    assert (values["run"], values["run_dir"], values["job"], values["seconds"]) == ("prune_1", "runs/prune_1", "4711", 3.0)
    assert (values["status"], values["error"]) == ("requeued", None)
    assert "requeued" in (tmp_path / "report.md").read_text(encoding="utf-8") and "4711" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_nothing_is_taken_from_a_point_of_other_overrides(tmp_path: Path) -> None:
    record_point(Point(sweep_dir=tmp_path, number=0, overrides=["prune=1"]), run="prune_1", status="finished", objective=1.0)
    record_point(Point(sweep_dir=tmp_path, number=0, overrides=["prune=2"]), status="running")
    (values,) = recorded(tmp_path)
    assert (values["run"], values["objective"], values["overrides"]) == ("", None, ["prune=2"])


def record_together(sweep: Path, number: int, started: Any) -> None:
    started.wait()
    record_point(Point(sweep_dir=sweep, number=number, overrides=[f"seed={number}"]), run=f"seed_{number}", status="finished", objective=1.0 + number)


def test_points_that_end_at_the_same_moment_are_all_on_the_page(tmp_path: Path) -> None:
    """Whoever writes the page last has read what all the others wrote."""
    fork = multiprocessing.get_context("fork")
    started = fork.Barrier(4)
    processes = [fork.Process(target=record_together, args=(tmp_path, number, started)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "4 of 4 runs finished." in page and all(f"{1.0 + number:.4f}" in page for number in range(4))
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")
    assert not [path.name for path in tmp_path.iterdir() if path.name not in ("points", "report.md", "report.html", ".lock")]


# ── all points before the first one ──────────────────────────────────────────────────────────────


def test_a_sweep_is_on_its_page_before_it_begins(tmp_path: Path) -> None:
    record_point(Point(sweep_dir=tmp_path, number=1, overrides=["prune=1"]), run="prune_1", status="finished", objective=1.0, seconds=9.0)
    record_point(Point(sweep_dir=tmp_path, number=2, overrides=["prune=2"]), run="prune_2", status="failed", error="the disk is full")
    announce(Point(sweep_dir=tmp_path, number=0, overrides=["prune=0"]), [["prune=0"], ["prune=1"], ["prune=2"]])
    assert [(one["run"], one["status"], one["error"]) for one in recorded(tmp_path)] == [
        ("prune_0", "pending", None), ("prune_1", "finished", None), ("prune_2", "pending", None),
    ]  # fmt: skip
    assert "1 of 3 runs finished, 2 waiting." in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("points", [[[]], [["prune=0"]], [["prune=0"], ["prune=1"], ["prune=3"]]])
def test_a_point_in_a_process_of_its_own_announces_nothing(tmp_path: Path, points: list[list[str]]) -> None:
    announce(Point(sweep_dir=tmp_path, number=2, overrides=["prune=2"]), points)
    assert list(tmp_path.iterdir()) == []


def test_the_points_of_a_command_line() -> None:
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    words = ["-m", "hydra.sweep.dir=x", "-cd", "extra", "model=tiny", "expansion=glob(*_half)", "++expansion.after=[1,3],[2]", "++prune=range(0,3,2)"]
    assert typed_points(words, loader) == [
        ["model=tiny", f"expansion={half}_half", f"expansion.after={after}", f"prune={prune}"]
        for half in ("deep", "shallow") for after in ("[1,3]", "[2]") for prune in (0, 2)
    ]  # fmt: skip
