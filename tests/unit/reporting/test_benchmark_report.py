"""Benchmarks on a run's page: sections where the numbers are, nothing where they are not."""

from __future__ import annotations

import json

import pytest
from page_checker import checked
from sample_benchmarks import sample_benchmarks, sample_forgetting, sample_tasks
from sample_run import sample_results, write_run

from slayer.reporting.benchmark_figures import curve_names, task_change_figure
from slayer.reporting.benchmark_scores import task_rows
from slayer.reporting.benchmark_words import together_sentence
from slayer.reporting.report import write_report
from slayer.reporting.run_folder import read_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    results = {**sample_results(), "benchmarks": sample_benchmarks(), "forgetting": sample_forgetting()}
    run = write_run(tmp_path_factory.mktemp("runs") / "run", results=results)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in (0, 10, 20):
            file.write(json.dumps({"step": step, **{f"tasks/{name}": entry["base"] for name, entry in sample_tasks().items()}}) + "\n")
    write_report(run)
    return run


def test_the_page_has_the_sections_and_the_headlines_on_top(run_dir):
    text = checked((run_dir / "report.html").read_text(encoding="utf-8")).text
    places = [
        text.index(part) for part in ("Of 7 general benchmarks 1 got worse", "Learnt and forgotten", "Benchmarks", "What moved in its predictions")
    ]
    assert places[0] == min(places) and places[1] < places[3]
    assert all(
        part in text for part in ("McNemar", "92.6 % unshifted", "7 lost, 3 gained", "While training", "−0.090 to −0.032", "drawn with seed 0")
    )


def test_markdown_holds_the_same_and_figures_exist(run_dir):
    markdown = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "**−0.061** −0.090 to −0.032" in markdown
    for name in ("benchmarks", "shift", "benchmark_curves"):
        assert f"figures/{name}.png" in markdown and (run_dir / "figures" / f"{name}.png").stat().st_size > 5_000


def test_lines_of_tasks_are_no_training_lines_and_join_held_out_ones(run_dir):
    run = read_run(run_dir)
    assert all("loss" in record for record in run.training)
    assert {"heldout/wikipedia_fr", "tasks/arc_easy"} <= set(run.heldout[1])
    assert curve_names(run.heldout) == list(sample_tasks())


def test_tasks_alone_draw_no_held_out_curve(tmp_path):
    lines = [{"step": step, "tasks/arc_easy": 0.5} for step in (0, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    text = checked(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "While training" in text and "Held-out text" not in text


def test_any_part_may_be_missing(tmp_path):
    whole = {"benchmarks": sample_benchmarks(members=3), "forgetting": sample_forgetting()}
    entry = whole["benchmarks"]["tasks"]["hellaswag"]
    for key in ("base", "result", "change_interval", "metric", "p_holm"):
        bare = {name: value for name, value in entry.items() if name != key}
        (tmp_path / "results.json").write_text(json.dumps({"benchmarks": {"tasks": {"hellaswag": bare}}}), encoding="utf-8")
        checked(write_report(tmp_path).read_text(encoding="utf-8"))
    for results in ({"benchmarks": {}}, {"forgetting": {"shift": {"x": {}}}}, {"benchmarks": sample_benchmarks(compared=False)}):
        (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
        checked(write_report(tmp_path).read_text(encoding="utf-8"))


def test_a_model_beside_no_base_is_said_to_stand_alone(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"benchmarks": sample_benchmarks(compared=False)}), encoding="utf-8")
    text = checked(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "beside no base: nothing is compared" in text and "no scores" not in text and "McNemar" not in text


def test_lower_is_better_has_a_panel_of_its_own_that_is_turned_round():
    upper, lower = task_change_figure(task_rows({"benchmarks": sample_benchmarks()})).axes
    assert not upper.xaxis_inverted() and lower.xaxis_inverted()
    assert [label.get_text() for label in lower.get_yticklabels()] == ["gsm8k_bits_per_byte"]


def test_what_single_tasks_are_too_small_to_tell_is_told_of_all_together() -> None:
    clear = {"forgetting": {"fg_percent": 9.1, "fg_interval_percent": [3.6, 14.3], "fg_tasks": ["a", "b", "c"]}}
    assert together_sentence(clear) == "Together the 3 general tasks lost 9.1 % of the base's score (FG, 95 % interval +3.6 to +14.3 %)."
    for unclear in ({"fg_interval_percent": [-0.1, 9.0]}, {"fg_interval_percent": None}, {"fg_tasks": ["a"]}, {"fg_percent": None}):
        assert together_sentence({"forgetting": clear["forgetting"] | unclear}) == ""
    assert together_sentence({}) == ""
