from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from slayer.errors import ConfigError, Problem
from slayer.launching.local import Launched
from slayer.launching.sweep import Point, objective_for_sweeper, refuse


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
