"""A sweep on a tiny model: finished, refused and killed points side by side, typed again, stopped, and searched by optuna."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from command_runs import Done, run_here, start, train, wait_for
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks

POSITIONS = ("[0]", "[1]", "[2]", "[0,1]", "[1,2]", "[9]")
"""Behind which layers of the four there is a new block; there is no layer 9."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes a few seconds."""
    folder = tmp_path_factory.mktemp("work")
    return run_overrides(write_text(folder / "text"), folder / "runs")


def points(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((sweep / "points").glob("*.json"))]


def position(point: dict[str, Any]) -> str:
    return str(next(word.removeprefix("expansion.after=") for word in point["overrides"] if word.startswith("expansion.after=")))


@pytest.fixture(scope="module")
def words(small: list[str]) -> list[str]:
    """Six points, one of which cannot be."""
    return ["-m", *small, "expansion=explicit", f"expansion.after={','.join(POSITIONS)}"]


@pytest.fixture(scope="module")
def swept(words: list[str], small: list[str], ranks: Ranks) -> tuple[Path, Done]:
    """Four of the runs are there before, as a smaller sweep would have left them; the sweep finds them, makes one and is refused one."""
    for place in POSITIONS[1:-1]:
        run_here(*small, "expansion=explicit", f"expansion.after={place}")
    runs = Path(small[-1].removeprefix("runs_dir="))
    return runs, train(*words)


@pytest.fixture(scope="module")
def sweep(swept: tuple[Path, Done]) -> Path:
    (folder,) = (swept[0] / "sweeps").iterdir()
    return folder


def test_the_exit_code_tells_that_points_failed(swept: tuple[Path, Done]) -> None:
    assert swept[1].out.count("Layer plan") == 1, "what is finished is not made again"
    assert swept[1].code == 2 and "Traceback" not in swept[1].out, swept[1].out


def test_points_that_fail_do_not_stop_the_others(sweep: Path) -> None:
    found = points(sweep)
    assert [(position(point), point["status"]) for point in found] == [*((place, "finished") for place in POSITIONS[:-1]), ("[9]", "failed")]
    assert [point["error"] is None for point in found] == [True] * 5 + [False]
    assert "[9] out of range: the model has layers 0 to 3" in found[-1]["error"] and "type: " in found[-1]["error"]


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


def ranked(sweep: Path) -> list[dict[str, Any]]:
    return sorted((point for point in points(sweep) if point["status"] == "finished"), key=lambda point: point["objective"])


def test_one_page_ranks_all_points(sweep: Path) -> None:
    markdown, page = ((sweep / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    best = ranked(sweep)[0]
    assert "5 of 6 runs finished, 1 failed." in markdown and f"Best: after={position(best)}, with the lowest bits per byte" in markdown.replace(
        "\\", ""
    )
    for text in (markdown, page):
        places = [text.index(f"{point['objective']:.4f}", text.index("Ranking")) for point in ranked(sweep)]
        assert places == sorted(places), "from best to worst"
        assert "not told apart" in text or "worse" in text
    results = json.loads((Path(best["run_dir"]) / "results.json").read_text(encoding="utf-8"))
    low, high = results["heldout"]["domain"]["result_interval"]
    assert f"{low:.4f} to {high:.4f}" in markdown, "the interval is that of the run's own report"


def test_the_table_is_in_the_terminal_too(swept: tuple[Path, Done], sweep: Path) -> None:
    table = swept[1].out[swept[1].out.rindex("\nSweep ") :]
    rows = [line.split()[1] for line in table.partition("· ")[0].splitlines() if line.strip()[:1].isdigit()]
    assert rows == [*(position(point) for point in ranked(sweep)), "[9]"], table
    assert "best" in table and "5 of 6 runs finished, 1 failed." in table and f"runs=[{sweep}]" in table


@pytest.fixture(scope="module")
def command(sweep: Path) -> list[str]:
    """The best run's command, as a person copies it from the page."""
    return shlex.split((sweep / "report.md").read_text(encoding="utf-8").partition("# the best run again")[2].splitlines()[1])


def test_the_command_of_the_best_finds_its_run(command: list[str], sweep: Path) -> None:
    assert command[:2] == ["python", "train.py"]
    done = train(*command[2:])
    assert done.code == 0 and f"{ranked(sweep)[0]['run_dir']} is finished; nothing to do" in done.out, done.out


def test_the_command_of_the_best_makes_its_run_anew(command: list[str], sweep: Path, tmp_path: Path, ranks: Ranks) -> None:
    run_here(*(word for word in command[2:] if not word.startswith("runs_dir=")), f"runs_dir={tmp_path}")
    (folder,) = tmp_path.iterdir()
    best = ranked(sweep)[0]
    assert folder.name == best["run"]
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["objective"]["value"] == best["objective"]


def test_the_same_sweep_again_tries_what_failed_and_trains_nothing_twice(words: list[str], swept: tuple[Path, Done], sweep: Path) -> None:
    written = {path: path.stat().st_mtime_ns for path in swept[0].glob("*/metrics.jsonl")}
    before = points(sweep)
    done = train(*words)
    assert done.code == 2 and len(written) == 5 and written == {path: path.stat().st_mtime_ns for path in swept[0].glob("*/metrics.jsonl")}
    assert points(sweep) == before, "seconds too"
    assert "[9] out of range" in done.out, "tried again"


def test_a_point_that_is_killed_is_shown_as_failed(small: list[str], tmp_path: Path) -> None:
    process = start("-m", *small, f"runs_dir={tmp_path}", "train.max_steps=100000", "prune=0,9")
    run_folders = lambda: [path for path in tmp_path.iterdir() if (path / "metrics.jsonl").exists()]  # noqa: E731
    wait_for(lambda: bool(run_folders()), process)
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert [point["status"] for point in points(sweep)] == ["running", "pending"]
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(child), signal.SIGKILL)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "Traceback" not in out, out  # started again, the killed point goes on
    killed, refused = points(sweep)
    assert killed["status"] == refused["status"] == "failed" and killed["objective"] is None
    assert "SIGKILL" in killed["error"] and killed["error"] in (sweep / "report.md").read_text(encoding="utf-8")


def test_a_sweep_that_is_stopped_leaves_the_rest_waiting(small: list[str], tmp_path: Path) -> None:
    process = start("-m", *small, f"runs_dir={tmp_path}", "train.max_steps=100000", "prune=0,1")
    wait_for(lambda: any((path / "metrics.jsonl").exists() for path in tmp_path.iterdir()), process)
    os.kill(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "Traceback" not in out, out
    (sweep,) = (tmp_path / "sweeps").iterdir()
    stopped, waiting = points(sweep)
    assert stopped["status"] == waiting["status"] == "pending"
    assert stopped["error"].startswith("stopped at step ") and waiting["error"] is None
    assert "0 of 2 runs finished, 2 waiting." in out


def test_a_search_goes_further_when_it_is_asked_to(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra `sweep`: pip install 'optuna>=4'")
    space = ["train.learning_rate=tag(log,interval(1e-4,1e-2))", "data.replay=interval(0,0.5)"]
    search = ["-m", *small, f"runs_dir={tmp_path}", "hydra/sweeper=optuna", *space]
    first = train(*search, "hydra.sweeper.n_trials=1")
    assert first.code == 0, first.out
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert "1 of 1 trials made" in (sweep / "report.md").read_text(encoding="utf-8")
    before = points(sweep)
    second = train(*search, "hydra.sweeper.n_trials=2")
    assert second.code == 0 and "A search by optuna" in second.out, second.out
    found = points(sweep)
    assert [found[0]] == before and found[0]["overrides"] != found[1]["overrides"] and found[1]["status"] == "finished"
    assert "2 of 2 trials made" in (sweep / "report.md").read_text(encoding="utf-8")
    values = [dict(word.split("=", 1) for word in point["overrides"]) for point in found]
    assert all(1e-4 <= float(one["train.learning_rate"]) <= 1e-2 and 0 <= float(one["data.replay"]) <= 0.5 for one in values)
    assert "figures/course.png" in (sweep / "report.md").read_text(encoding="utf-8")
