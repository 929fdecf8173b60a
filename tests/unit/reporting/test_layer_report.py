"""Layer scores on a page: every part that was measured, nothing of what was not."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from page_checker import checked
from sample_layers import CHOICE, FAILED, TEXTS, sample_expanded_table, sample_table

from slayer.importance.agreement import agreement
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerTable, Measurement, layer_names, load_table
from slayer.reporting.document import Bullets, Picture
from slayer.reporting.layer_report import choice_blocks, depth_tests_text, kendall_text, layer_blocks, values_text
from slayer.reporting.layer_scores import ranks
from slayer.reporting.layer_words import layer_sentences
from slayer.reporting.report import write_report

NEXT = [["python train.py expansion=least_important prune=2", "a plan that follows the scores"]]
SCORES = ("removal", "block_influence", "shapley", "angular_distance")
PARTS = ["Over depth", "How scores agree", "Shallow, middle, deep", "Numbers", "What the scores mean", "How it was measured", "Next"]


def tiny(*measurements: Measurement) -> LayerTable:
    return LayerTable(model="tiny", layers=layer_names(len(measurements[0].by_layer), None), measurements=measurements, facts={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "layers"
    table = sample_table()
    chosen = tuple(one for one in table.measurements if one.score in SCORES and one.source == TEXTS[0])
    replace(table, measurements=chosen, agreement=agreement(chosen, table.layers), facts={**table.facts, "next": NEXT}).save(folder)
    write_report(folder)
    return folder


def test_the_page_says_what_was_found_and_shows_every_part(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    page, table = checked(html), load_table(folder)
    assert "<script" not in html and "no scores of a result" not in page.text
    headings = re.findall(r"<h3>([^<]+)</h3>", html)
    assert [heading for heading in headings if heading in PARTS] == PARTS and html.index("Heat map") < html.index("Over depth")
    assert all(sentence in page.text for sentence in layer_sentences(table))
    assert all(score.source in page.text and score.high_means in page.text for score in map(CATALOGUE.__getitem__, SCORES))
    assert "precision fp32, seed 0" in page.text.lower() and "block-forwards instead of" in page.text and NEXT[0][0] in page.text


def test_markdown_has_the_same_sentences_and_its_figures_exist(folder):
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(pictures) == len(set(pictures)) == 7 and all((folder / one).stat().st_size > 5_000 for one in pictures)
    assert "By removal on wikipedia\\_fr" in markdown or "By removal on wikipedia_fr" in markdown


def test_numbers_can_be_read_back_from_the_folded_tables():
    table = sample_table()
    lines = [line.split() for line in values_text(table, [table.find("removal", source) for source in TEXTS]).splitlines()]
    assert lines[1] == ["layer", *["value", "±", "rank"] * 2]
    for layer, line in enumerate(lines[2:]):
        assert line[0] == str(layer)
        for source, cells in zip(TEXTS, (line[1:4], line[4:7]), strict=True):
            one = table.find("removal", source)
            read = [math.nan if cell == "–" else float(cell.replace("−", "-")) for cell in cells]
            assert read == pytest.approx([one.values[layer], one.margins[layer], ranks(one)[layer]], rel=1e-4, nan_ok=True)
    halves = values_text(table, [table.find("shapley", TEXTS[0])]).splitlines()
    assert halves[1].split() == ["layer", "attention", "MLP", "value", "±", "at", "most", "rank"]


def test_an_expanded_model_shows_its_new_blocks(tmp_path):
    sample_expanded_table().save(tmp_path)
    page = checked(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "3 of them new blocks; +7 is the one behind base layer 7" in page and "new block behind base layer" in page
    assert "How scores agree" not in page and "Shallow, middle, deep" not in page and "Next" not in page


def test_failed_layers_are_told_on_top(tmp_path):
    values = (2.0, math.nan, 1.0, 0.5)
    blocks = layer_blocks(tiny(Measurement(score="removal", source="fr", values=values, failed={1: FAILED})), tmp_path)
    assert Bullets(items=(f"removal · fr has no number for layer 1: {FAILED}.",), warn=True) in blocks[:2]


def test_scores_without_their_details_are_shown_without_them(tmp_path):
    names = ("angular_distance", "outlier_distribution", "taylor", "shapley", "probe")
    table = tiny(*(Measurement(score=name, source="a/b <c>", values=(1.0, 2.0, 4.0)) for name in names))
    pictures = [block.png for block in layer_blocks(table, tmp_path) if isinstance(block, Picture)]
    assert pictures == [f"figures/layers_{name}.png" for name in ("heat", "curves_0", "curves_1", "shapley_0", "probe")]
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_a_score_that_failed_everywhere_is_told_and_not_drawn(tmp_path):
    nothing = Measurement(score="removal", source="fr", values=(math.nan,) * 3, failed=dict.fromkeys(range(3), FAILED))
    blocks = layer_blocks(tiny(nothing, replace(nothing, score="probe")), tmp_path)
    assert not any(isinstance(block, Picture) for block in blocks)
    assert any(isinstance(block, Bullets) and block.warn for block in blocks)


def test_nothing_is_shown_without_measurements_or_of_a_broken_file(tmp_path):
    assert layer_blocks(LayerTable(model="tiny", layers=layer_names(3, None), measurements=(), facts={}), tmp_path) == []
    (tmp_path / "layers.json").write_text("{", encoding="utf-8")
    assert "Which layers matter" not in checked(write_report(tmp_path).read_text(encoding="utf-8")).text


def test_names_of_texts_are_escaped(tmp_path):
    tiny(Measurement(score="removal", source="<script>x|y", values=(1.0, 2.0, 4.0))).save(tmp_path)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script" in html and "\\|y" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_choice_of_a_plan_is_told_beside_it():
    heading, bullets = choice_blocks(json.loads(json.dumps(CHOICE)))
    assert len(bullets.items) == 2 and heading.text == "What the scores would choose"
    assert choice_blocks({}) == []


def test_every_pair_of_scores_and_of_groups_is_told() -> None:
    table = sample_table()
    names, tau = table.agreement["columns"], table.agreement["kendall"]
    lines = kendall_text(table).splitlines()
    assert len(lines) == len(names) + 1 and lines[-1].split()[-1].replace("−", "-") == f"{tau[-1][-2]:.2f}"
    tests = depth_tests_text(table)
    for name, effect in table.agreement["effects"].items():
        assert f"{name}: " in tests
        if "anova" in effect:
            assert f"p = {effect['anova']['p_holm']:.3f}, eta²" in tests
    assert tests.count("deep − shallow") == sum("anova" in effect for effect in table.agreement["effects"].values())
