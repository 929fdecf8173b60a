"""The sweep page: every point beside the others, the best marked, failures shown with their error."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from sample_run import sample_results, write_sweep

from slayer.reporting.console import open_console
from slayer.reporting.sweep_page import write_sweep_page
from slayer.reporting.sweep_points import found_run, read_points, read_sweep, swept_keys
from slayer.reporting.sweep_table import print_sweep


def test_points_are_read_in_order_and_only_swept_keys_are_compared(tmp_path):
    points = read_points(write_sweep(tmp_path))
    assert [point.number for point in points] == [0, 1, 2, 3, 4]
    assert swept_keys(points) == ["expansion", "prune"]
    best = read_sweep(tmp_path / "sweep-1").best
    assert best is not None and best.number == 1
    learnt, forgotten = points[1].learnt, points[1].forgotten
    assert learnt is not None and forgotten is not None and (learnt.percent, forgotten.percent) == (-21.3, -0.4)


def test_the_page_links_reports_marks_the_best_and_shows_errors_escaped(tmp_path):
    sweep = write_sweep(tmp_path)
    page = write_sweep_page(sweep).read_text(encoding="utf-8")
    links = re.findall(r'<td><a href="([^"]+)">', page)
    assert len(links) == 4 and all((sweep / link).resolve().exists() for link in links)
    assert page.count('<tr class="strong">') == 1 and "4 of 5 runs finished, 1 failed." in page
    assert "&lt;b&gt;the model has 30 layers&lt;/b&gt;" in page and "<script" not in page
    assert (sweep / "figures" / "frontier.png").exists()
    markdown = (sweep / "report.md").read_text(encoding="utf-8")
    assert "**−21.3 %" in markdown and "figures/frontier.png" in markdown


def test_a_sweep_that_has_just_begun_has_a_page_too(tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "0.json").write_text(
        json.dumps({"number": 0, "run": "a", "overrides": ["prune=0"], "status": "running"}), encoding="utf-8"
    )
    (tmp_path / "points" / "1.json").write_text('{"torn', encoding="utf-8")
    assert "0 of 1 runs finished, 1 still running." in write_sweep_page(tmp_path).read_text(encoding="utf-8")


def test_the_terminal_shows_the_same_points(tmp_path):
    stream = io.StringIO()
    print_sweep(write_sweep(tmp_path), console=open_console(stream))
    text = stream.getvalue()
    table, _, below = text.partition("· ")
    assert table.count("shallow_half") == 2 and "best" in table and "−21.3 %" in table and "Pareto" in below
    assert max(map(len, text.partition("✔")[0].splitlines())) <= 80


@pytest.mark.parametrize("place", ["sweeps/name", "name"])
def test_runs_are_found_where_their_sweep_was_moved_to(tmp_path: Path, place: str) -> None:
    (tmp_path / "new" / place).mkdir(parents=True)
    (tmp_path / "new" / "prune_1").mkdir()
    assert found_run(Path("old/runs/prune_1"), tmp_path / "new" / place) == tmp_path / "new" / "prune_1"
    assert found_run(Path("old/runs/prune_2"), tmp_path / "new" / place) == Path("old/runs/prune_2")


# ── ranks, fronts, seeds ─────────────────────────────────────────────────────────────────────────

DOCUMENTS = [random.Random(number).randrange(300, 2000) for number in range(40)]


def write_point(
    folder: Path, number: int, overrides: list[str], status: str = "finished", bits: float = 1.2, replay: float = 0.5, **more: Any
) -> None:
    """A point whose run needed about so many bits per byte of each document, give or take 5 %: the same at every call with these numbers."""
    run = folder / f"run-{number}"
    point = {"number": number, "run": run.name, "run_dir": str(run), "overrides": overrides, "status": status, "error": None, "seconds": 4.0}
    objective = None
    if status == "finished":
        noise = random.Random(0)
        nats = [bits * size * 0.6931471805599453 * noise.uniform(0.95, 1.05) for size in DOCUMENTS]
        objective = sum(nats) / sum(DOCUMENTS) / 0.6931471805599453
        results = sample_results(run.name, -100 * (1 - objective / 1.6), replay)
        results["objective"] = {"name": "domain_bits_per_byte", "value": objective}
        (run / "items").mkdir(parents=True)
        (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
        lines = [
            json.dumps({"source": "fr", "role": "domain", "document": str(place), "bytes": size, "result": one})
            for place, (size, one) in enumerate(zip(DOCUMENTS, nats, strict=True))
        ]
        (run / "items" / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sweep = folder / "sweeps" / "s"
    (sweep / "points").mkdir(parents=True, exist_ok=True)
    (sweep / "points" / f"{number:04d}.json").write_text(json.dumps({**point, "objective": objective, **more}), encoding="utf-8")


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Two settings by three seeds, the best run being of the setting that is worse on average; a fourth strategy in all stages of a sweep."""
    for number, (strategy, seed, bits, replay) in enumerate([
        ("even", 0, 1.1990, 0.5), ("even", 1, 1.2010, 0.6), ("even", 2, 1.2000, 0.7), ("deep_half", 0, 1.1980, 0.9), ("deep_half", 1, 1.2200, -0.3),
        ("deep_half", 2, 1.2300, 1.5),
    ]):  # fmt: skip
        write_point(tmp_path, number, [f"expansion={strategy}", f"seed={seed}", "model=tiny"], bits=bits, replay=replay)
    write_point(tmp_path, 6, ["expansion=solar", "seed=0", "model=tiny"], "failed", error="the model has 4 layers")
    write_point(tmp_path, 7, ["expansion=solar", "seed=1", "model=tiny"], "running", job="11")
    write_point(tmp_path, 8, ["expansion=solar", "seed=2", "model=tiny"], "requeued", job="12")
    write_point(tmp_path, 9, ["expansion=solar", "seed=3", "model=tiny"], "pending", job="13")
    return tmp_path / "sweeps" / "s"


def test_points_are_ranked_and_what_belongs_together_is_found(seeds: Path) -> None:
    sweep = read_sweep(seeds)
    assert [point.number for point in sweep.ranked] == [3, 0, 2, 1, 4, 5]
    assert [point.status for point in sweep.others] == ["running", "requeued", "pending", "failed"]
    assert all(standing.interval is not None and standing.p is not None for standing in sweep.standings[1:])
    assert sweep.tied == (), "the same noise for all: every difference is the same on every document"
    # Number 4 forgot least, 0 learnt more than it and forgot less than the best; what each of the others is beaten by:
    assert {point.number for point in sweep.front} == {3, 0, 4}
    assert [dominator and dominator.number for dominator in sweep.dominators] == [None, None, 0, 0, None, 0]
    assert [(setting.label, [point.number for point in setting.points]) for setting in sweep.settings] == [
        ("expansion=even", [0, 2, 1]), ("expansion=deep_half", [3, 4, 5]),
    ]  # fmt: skip
    mean = sum(point.objective or 0 for point in sweep.settings[0].points) / 3
    assert sweep.settings[0].spread is not None and sweep.settings[0].spread.mean == pytest.approx(mean)


def test_the_page_says_all_of_it(seeds: Path) -> None:
    page = write_sweep_page(seeds)
    html, markdown = page.read_text(encoding="utf-8"), (seeds / "report.md").read_text(encoding="utf-8")
    assert "6 of 10 runs finished, 1 still running, 1 to go on, 1 waiting, 1 failed." in markdown
    assert "Best: expansion=deep_half seed=0, with the lowest bits per byte on held-out domain text, 1." in markdown
    assert "Over seeds expansion=even is best" in markdown and "so its seed has helped it" in markdown
    assert "beaten by 0" in markdown and "on the front" in markdown and "the model has 4 layers" in markdown
    assert all(f"| {job} |" in markdown for job in (11, 12, 13)) and "requeued" in html and "pending" in html
    best = shlex.join(["python", "train.py", "expansion=deep_half", "seed=0", "model=tiny"])
    assert best in html and f"python evaluate.py runs=[{seeds}]" in html and f"checkpoint={seeds.parents[1] / 'run-3'}" in html


def test_runs_that_differ_by_chance_are_not_told_apart(tmp_path: Path) -> None:
    write_point(tmp_path, 0, ["prune=0"], bits=1.2)
    write_point(tmp_path, 1, ["prune=1"], bits=1.2)
    write_point(tmp_path, 2, ["prune=2"], bits=1.3)
    path = tmp_path / "run-1" / "items" / "heldout.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for place, line in enumerate(lines):  # better on every second document, worse on the others
        line["result"] *= 1.01 if place % 2 else 0.99
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    sweep = read_sweep(tmp_path / "sweeps" / "s")
    assert {point.number for point in sweep.tied} | {sweep.ranked[0].number} == {0, 1} and not sweep.standings[2].is_tied
    assert "Not told apart from the best over the same documents: " in write_sweep_page(sweep.folder).with_suffix(".md").read_text(encoding="utf-8")


def test_a_search_shows_its_course(tmp_path: Path) -> None:
    for number, bits in enumerate((1.3, 1.2, 1.25)):
        write_point(tmp_path, number, [f"train.learning_rate={number}e-4"], bits=bits)
    sweep = tmp_path / "sweeps" / "s"
    (sweep / "search.json").write_text(json.dumps({"sampler": "tpe", "n_trials": 5, "space": {"train.learning_rate": {}}}), encoding="utf-8")
    markdown = write_sweep_page(sweep).with_suffix(".md").read_text(encoding="utf-8")
    assert "A search by optuna (TPE) over train.learning_rate: 3 of 5 trials made." in markdown and "figures/course.png" in markdown
    assert (sweep / "figures" / "course.png").read_bytes().startswith(b"\x89PNG")
