"""The report: complete, self-contained, safe, and written from whatever a run folder holds."""

from __future__ import annotations

import json
import re

import pytest
from page_checker import checked
from sample_run import sample_facts, sample_plan, sample_results, staged_plan, write_run, write_staged_run

from slayer.reporting.data_report import write_data_report
from slayer.reporting.report import measured_shares, shares_off_plan, write_report
from slayer.reporting.run_folder import read_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "shallow_half-prune_2")


def test_the_report_is_one_file_that_fetches_and_runs_nothing(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    checker = checked(page)
    assert not checker.tags & {"script", "link", "iframe", "object", "img"}
    assert all(reference.startswith("#") for reference in checker.references)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert len(page) < 300_000


def test_the_report_tells_the_whole_story_in_both_forms(run_dir):
    page = checked(write_report(run_dir).read_text(encoding="utf-8")).text
    markdown = (run_dir / "report.md").read_text(encoding="utf-8")
    for text in (page, markdown):
        plain = " ".join(text.split())
        for piece in (
            "it needs 21.3 % fewer bits per byte (95 % interval 20.5 to 22.2 %)", "No change detected on unseen wikipedia_en text",
            "30 base layers − 2 pruned + 7 new blocks", "Max logit difference to the base after insertion: 0 exactly",
            "24.8 M of 152 M", "La Loire est un fleuve", "prend sa source en Ardèche", "610,000", "learning_rate: 0.001",
            "python train.py expansion=shallow_half prune=2 run=shallow_half-prune_2",
        ):  # fmt: skip
            assert piece in plain, piece
    pictures = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(pictures) == 4 and all((run_dir / picture).exists() for picture in pictures)


def test_the_page_draws_each_layer_once(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert page.count('<span class="layer kept"') == 28
    assert page.count('<span class="layer new"') == page.count('<li class="trains">') == 7
    assert page.count('<span class="layer pruned"') == 2


def test_a_staged_run_says_when_what_trained_and_what_happened(tmp_path):
    page = write_report(write_staged_run(tmp_path / "staged")).read_text(encoding="utf-8")
    assert page.count("● 1–3</span>") == 7 and page.count("◐ 2–3</span>") == 26 and page.count('<li class="trains">') == 9
    markdown = (tmp_path / "staged" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    for text in (checked(page).text, markdown):
        plain = "".join(text.replace("|", " ").split())  # the cells of a table touch
        for piece in (
            "What trains changes on the way, in 3 stages",
            "2 until 45,056 tokens new, tail × 0.5, norms × 0.5 8 of 35 layers and the norms of 27 28.4 M 11",
            "3 to the end new, tail × 0.5, norms × 0.5, originals[-4:] × 0.1 9 of 35 layers and the norms of 26 31.9 M 23",
            "Outside the layers: final norm ● 2–3; the rest ❄ frozen", "What happened on the way",
            "Steps 14, 15 and 16 were skipped: the loss is not finite.", "Went back from step 33 to the checkpoint of step 30",
        ):  # fmt: skip
            assert piece.replace(" ", "") in plain, piece
    assert "<b>nowhere" not in page


def test_a_run_of_one_schedule_without_trouble_speaks_of_neither(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert not [words for words in ("What trains when", "What happened on the way", "◐", "stage 1", "stages numbered") if words in page]


def test_a_staged_run_that_was_only_planned_shows_its_stages(tmp_path):
    staged_plan().save(tmp_path / "plan.json")
    page = checked(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "until 20,480 tokens" in page and "What trains when" in page


def test_what_a_model_wrote_cannot_become_markup(tmp_path):
    results = sample_results()
    evil = '</div><script>alert(1)</script>```\n# "x" & <b>'
    results["samples"] = [{"source": evil, "prompt": evil, "truth": evil, "base": evil, "start": evil, "result": evil}]
    results["heldout"][evil] = results["heldout"]["wikipedia_fr"]
    results["command"] = evil
    run_dir = write_run(tmp_path / "run", results=results)
    checker = checked(write_report(run_dir).read_text(encoding="utf-8"))
    assert not checker.tags & {"script", "b" + "ig"} and "<script>alert(1)</script>" in checker.text
    markdown = (run_dir / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", markdown)
    assert "<script>" not in outside and not re.search(r"(?m)^# .x", outside)


def test_any_part_of_the_results_may_be_missing(tmp_path):
    for missing in sample_results():
        results = {key: value for key, value in sample_results().items() if key != missing}
        (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
        checked(write_report(tmp_path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("broken", ["config.yaml", "plan.json", "metrics.jsonl", "results.json"])
def test_any_file_may_be_broken(run_dir, broken):
    (run_dir / broken).write_text('{"broken', encoding="utf-8")
    checked(write_report(run_dir).read_text(encoding="utf-8"))


def test_an_empty_folder_gets_a_report_that_says_so(tmp_path):
    assert "no scores of a result yet" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_dry_run_shows_its_plan(tmp_path):
    sample_plan().save(tmp_path / "plan.json")
    assert "7 layers train" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_base_that_was_scored_without_a_result_is_shown(tmp_path):
    results = {"heldout": {"wikipedia_fr": {"role": "domain", "base": 1.6, "start": 1.75}}, "training": {"steps": 0}}
    page = checked(write_report(write_run(tmp_path / "run", results=results)).read_text(encoding="utf-8")).text
    assert "1.600" in page and "1.750" in page


def shares_run(folder, french_planned, steps=40):
    """A run whose lines count three French tokens for each English one."""
    results = sample_results()
    for row, planned in zip(results["data"], (french_planned, 1 - french_planned), strict=True):
        row["planned_share"] = planned
    run_dir = write_run(folder, results=results)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= steps]
    (run_dir / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    return run_dir


def test_shares_stand_beside_each_other_asked_planned_measured(run_dir):
    page = checked(write_report(run_dir).read_text(encoding="utf-8")).text
    assert page.count("75.00 %") == page.count("25.00 %") == 3, "asked, planned and measured"
    assert "is not the planned one" not in page


# 40 steps of 2,048 tokens are 81,920; a row of 512 is 0.625 % of them, so 0.725 % is what may be off.
@pytest.mark.parametrize(("planned", "flagged"), [(0.7573, True), (0.7571, False), (0.7427, True), (0.7429, False)])
def test_a_share_that_is_off_by_more_than_a_row_is_flagged_when_the_run_is_finished(planned, flagged, tmp_path):
    finished = shares_run(tmp_path / "finished", planned)
    assert shares_off_plan(read_run(finished)) == (["wikipedia_fr", "wikipedia_en"] if flagged else [])
    assert shares_off_plan(read_run(shares_run(tmp_path / "begun", planned, steps=30))) == [], "a part of the run says nothing about the whole"


def test_a_share_that_is_off_is_told(tmp_path):
    page = write_report(shares_run(tmp_path / "run", 0.8)).read_text(encoding="utf-8")
    assert "The measured share of wikipedia_fr and of wikipedia_en is not the planned one" in page


def test_measured_shares_are_of_all_lines_together():
    lines = [{"step": 1, "tokens/a": 30, "tokens/b": 10}, {"step": 2, "tokens/b": 60}, {"step": 3, "loss": 1.0}]
    assert measured_shares(lines, ["a", "b", "c"]) == pytest.approx({"a": 0.3, "b": 0.7, "c": 0.0})
    assert measured_shares([{"step": 1}], ["a"]) == {} == measured_shares([], [])


def test_the_report_of_the_text_is_linked_where_there_is_one(run_dir):
    assert "data_report.html" not in write_report(run_dir).read_text(encoding="utf-8")
    write_data_report(run_dir, sample_facts())
    assert '<a href="data_report.html">' in write_report(run_dir).read_text(encoding="utf-8")
    assert "[data_report.html](<data_report.html>)" in (run_dir / "report.md").read_text(encoding="utf-8")


def test_the_last_line_of_a_step_wins_and_a_torn_line_is_left_out(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.9},
        {"step": 2, "heldout/a": 1.2},
        {"step": 2, "loss": 2.5},
        {"step": 0, "heldout/a": 1.5},
    ]
    torn = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "loss": 2.'
    (tmp_path / "metrics.jsonl").write_text(torn, encoding="utf-8")
    run = read_run(tmp_path)
    assert [(line["step"], line["loss"]) for line in run.training] == [(1, 3.0), (2, 2.5)]
    assert [(line["step"], line["heldout/a"]) for line in run.heldout] == [(0, 1.5), (2, 1.2)]
