"""The report of a text: complete in both forms, safe, and written from whatever facts there are."""

from __future__ import annotations

import copy
import json
import re

import pytest
from page_checker import checked
from sample_run import sample_facts

from slayer.reporting.data_figures import lengths_figure, mixture_figure, source_looks
from slayer.reporting.data_report import write_data_report
from slayer.reporting.picture import save_figure


def both_forms(folder, facts):
    page = checked(write_data_report(folder, facts).read_text(encoding="utf-8")).text
    markdown = (folder / "data_report.md").read_text(encoding="utf-8")
    return [" ".join(text.replace("\\", "").split()) for text in (page, markdown)]


def test_everything_that_is_known_stands_in_both_forms(tmp_path):
    for text in both_forms(tmp_path, sample_facts()):
        for piece in (
            "best_of_it is read 5.4 times", "1.43 M", "103 k", "9,370 documents of 2 sources", "1 more source is streamed",
            "tokens in 204 steps of 2 rows of 256", "99.96 %", "no needless cuts",
            "hub OWNER/web @ 1234567", "streamed", "9,258", "70,000", "20.0 %", "80.00 %", "5.40",
            "removed 103 of 10,075 documents (1.02 %): 100 near-duplicates, 3 contaminated (arc_easy)",
            "They share 80 % or more of their word 5-grams", "at least 50 % of the word 8-grams", "91 % like wikipedia_fr: Loire (fleuve)",
            "Which gas do plants take in?", "arc_easy, piqa. 37 of their questions", "data.cleaning.near_duplicates=0.8",
            "part-1.jsonl", "20,480", "is not JSON", '{"text": "half a li', "0.826 %", "No global shuffle",
            "wikipedia_fr, row 12: 3 documents, 250 tokens, 6 places of padding", "goes on in another row",
            "the end of a document begun in another row", "se jette dans la Méditerranée. ■", "5f2a" * 16,
        ):  # fmt: skip
            assert piece in text, piece


def test_the_page_fetches_and_runs_nothing(tmp_path):
    page = write_data_report(tmp_path, sample_facts()).read_text(encoding="utf-8")
    checker = checked(page)
    assert not checker.tags & {"script", "link", "iframe", "object", "img"}
    assert all(reference.startswith("#") for reference in checker.references) and len(page) < 300_000
    pictures = re.findall(r"\]\((figures/[^)]+)\)", (tmp_path / "data_report.md").read_text(encoding="utf-8"))
    assert pictures == ["figures/data_mixture.png", "figures/data_lengths.png"] and all((tmp_path / picture).exists() for picture in pictures)


def test_a_row_shows_where_documents_begin_end_and_are_cut(tmp_path):
    page = write_data_report(tmp_path, sample_facts()).read_text(encoding="utf-8")
    widths = re.findall(r'<i class="(\w+)" style="flex-grow:(\d+)">', page)
    assert widths == [("odd", "120"), ("even", "90"), ("odd", "40"), ("padding", "6")], "places of the row, in order"
    assert re.findall(r'<li class="((?:odd|even)[^"]*)">', page) == ["odd", "even cut-after", "odd cut-before"]
    fenced = (tmp_path / "data_report.md").read_text(encoding="utf-8").split("```text\n── ")[1].split("```")[0]
    assert fenced.count("▏") == 2 and fenced.count("■") == 2 and "fleuve …\n" in fenced and "… se jette" in fenced


def leaves(value, path=()):
    """Paths of every key and list item in nested facts."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in [(*path, key), *leaves(inner, (*path, key))]]
    if isinstance(value, list):
        return [found for place, inner in enumerate(value) for found in leaves(inner, (*path, place))]
    return []


def without(facts, path):
    """The facts without one key."""
    result = copy.deepcopy(facts)
    inner = result
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    return result


def test_any_fact_may_be_missing(tmp_path, monkeypatch):
    # The figures take most of the time and have a test of their own below.
    monkeypatch.setattr("slayer.reporting.picture.save_figure", lambda figure, folder, name: "<svg></svg>")
    facts = sample_facts()
    required = {"name", "edges_tokens", "documents"}  # a source has a name; a histogram both its halves
    paths = [path for path in leaves(facts) if path[:1] != ("sources",) or path[-1] not in required]
    assert len(paths) > 100
    for path in paths:
        checked(write_data_report(tmp_path, without(facts, path)).read_text(encoding="utf-8"))
    checked(write_data_report(tmp_path, {}).read_text(encoding="utf-8"))
    checked(write_data_report(tmp_path, {**facts, "sources": [], "steps": 0, "tokens": 0}).read_text(encoding="utf-8"))


def test_facts_as_json_gives_them_back_make_the_same_page(tmp_path):
    first = write_data_report(tmp_path / "a", sample_facts()).read_bytes()
    assert write_data_report(tmp_path / "b", json.loads(json.dumps(sample_facts()))).read_bytes() == first


def test_a_page_of_these_facts_is_not_drawn_again_and_one_of_others_is(tmp_path):
    page = write_data_report(tmp_path, sample_facts())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    write_data_report(tmp_path, sample_facts())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    whole = page.read_bytes()
    page.write_bytes(whole[: len(whole) // 2])  # a kill in the middle of writing
    assert write_data_report(tmp_path, sample_facts()).read_bytes() == whole
    write_data_report(tmp_path, {**sample_facts(), "steps": 7})
    assert page.read_bytes() != whole


def test_what_stands_in_a_text_cannot_become_markup(tmp_path):
    evil = '</li></ol><script>alert(1)</script>```\n# "x" & <b>|'
    facts = sample_facts()
    facts["name"], facts["warnings"] = evil, [evil]
    facts["samples"][0]["pieces"][0] = {"text": evil, "document": evil, "starts": True, "ends": True, "tokens": 256}
    facts["removed"][0]["examples"] = [{"id": evil, "excerpt": evil, "because": evil}]
    facts["quarantine"][1]["examples"][0] = dict.fromkeys(("file", "reason", "head"), evil) | {"record": 1, "offset_bytes": 2}
    for source in facts["sources"]:
        source["origin"] = evil
    checker = checked(write_data_report(tmp_path, facts).read_text(encoding="utf-8"))
    assert not checker.tags & {"script", "b" + "ig"} and checker.text.count("<script>alert(1)</script>") >= 9
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", (tmp_path / "data_report.md").read_text(encoding="utf-8"))
    assert "<script>" not in outside and not re.search(r"(?m)^# .x", outside)


def test_a_clean_text_is_called_clean(tmp_path):
    facts = {**sample_facts(), "removed": [], "warnings": [], "benchmarks": []}
    facts["quarantine"] = [{"source": "wikipedia_fr", "records": 9_955, "bad": 0, "limit": 0.01, "examples": []}]
    for text in both_forms(tmp_path, facts):
        assert "Cleaning removed none of 10,075 documents." in text and "Nothing: all 9,955 records could be read." in text
        assert "Nothing was compared with benchmark questions (data.cleaning.decontaminate)." in text and "⚠" not in text


@pytest.mark.parametrize("sources", [1, 3, 9])
@pytest.mark.parametrize("draw", [mixture_figure, lengths_figure])
def test_figures_are_drawn_for_few_and_many_sources(sources, draw, tmp_path):
    facts = sample_facts()
    model = facts["sources"][0]
    facts["sources"] = [{**model, "name": f"source_{number}", "role": ("domain", "replay")[number % 2]} for number in range(sources)]
    facts["stages"] = [{"from_tokens": 0, "from_step": 0, "shares": {f"source_{number}": 1 / sources for number in range(sources)}}]
    save_figure(draw(facts), tmp_path, "figure")
    assert 1_000 < (tmp_path / "figure.svg").stat().st_size < 300_000
    looks = source_looks(facts["sources"])
    assert len(set(looks.values())) == sources, "no two sources look alike"


def test_the_mixture_is_drawn_to_scale():
    facts = sample_facts()
    axes = mixture_figure(facts).axes[0]
    assert axes.get_xlim() == (0, 103_000) and axes.get_ylim() == (0, 100)
    for tokens, shares in ((10_000, (75, 0, 25)), (90_000, (70, 20, 10))):
        assert [band_height(band.get_paths(), tokens) for band in axes.collections] == pytest.approx(shares)


def band_height(paths, tokens):
    """Height of a band at a place of the axis, in percent: how many of a thousand points above it lie in the band."""
    return sum(any(path.contains_point((tokens, step / 10 + 0.05)) for path in paths) for step in range(1000)) / 10


def test_a_stage_after_the_end_is_not_drawn_and_called_so(tmp_path):
    facts = sample_facts()
    facts["stages"].append({"from_tokens": 200_000, "from_step": 400, "shares": {"web": 1.0}})
    assert all(band_height(band.get_paths(), 102_999) < 75 for band in mixture_figure(facts).axes[0].collections)
    for text in both_forms(tmp_path, facts):
        assert text.count("not reached by this run") == 1


def test_lengths_mark_the_row():
    figure = lengths_figure(sample_facts())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["wikipedia_fr", "best_of_it"], "of a streamed source nothing is known"
    assert all(256 in {line.get_xdata()[0] for line in axes.lines} for axes in figure.axes)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["a row: 256"]
