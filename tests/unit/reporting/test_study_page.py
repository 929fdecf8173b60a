"""The page of many models: who is best, what the factors explain, and pages of very few models."""

from __future__ import annotations

import io
import json
import re

import pytest
from page_checker import checked
from rich.console import Console
from sample_benchmarks import sample_sequence, sample_study

from slayer.reporting.console import open_console
from slayer.reporting.figures import FrontierPoint, frontier_figure
from slayer.reporting.study_factors import differing_pairs, factor_sentences
from slayer.reporting.study_page import print_study, write_study_page
from slayer.reporting.study_scores import level_of, study_of


def write_study(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(values), encoding="utf-8")
    return write_study_page(folder)


def multifaceted_part(study):
    names = [model["name"] for model in study["models"]]
    curve = [[1e8 * 2**place, 0.4 + 0.02 * place, 0.35 + 0.02 * place, 0.45 + 0.02 * place] for place in range(5)]
    return {
        "sizes": {"arc_easy": {"why_not": "two size classes are needed"}},
        "gam": {
            "arc_easy": {"models": 12, "sizes": 12, "edf": 1.4, "p": 0.01, "p_holm": 0.02, "deviance_explained": 0.61, "curve": curve},
            "piqa": {"why_not": "a model scores 0 or less"},
        },
        "correlation": {"scores": ["arc_easy", "piqa"], "matrix": [[1.0, None], [None, 1.0]]},
        "map": {"models": names, "scores": ["arc_easy", "piqa"], "perplexity": 3.7, "points": [[place, -place] for place in range(len(names))]},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    study = sample_study()
    study = {**study, "sequence": sample_sequence(), "multifaceted": multifaceted_part(study)}
    return write_study(tmp_path_factory.mktemp("studies") / "placements", study)


def test_the_page_stands_alone_and_holds_every_part(page):
    html = page.read_text(encoding="utf-8")
    text = checked(html).text
    titles = re.findall(r"<h2>([^<]+)</h2>", html)
    assert titles == [
        "What was learnt and what was forgotten", "Scores", "What expansion explains", "What prune explains", "Domains one after the other",
        "How scores and models go together", "How this was tested",
    ]  # fmt: skip
    assert "<script" not in html and all(reference.startswith("#") for reference in checked(html).references)
    assert "expansion explains 68 % of the variance of" in text and "No score differs detectably between the levels of prune." in text
    assert "Not tested for piqa: All models score the same on piqa." in text and "No curve for piqa: A model scores 0 or less." in text
    markdown = (page.parent / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert len(pictures) == 7 and all((page.parent / picture).is_file() for picture in pictures)


def test_the_best_of_each_column_is_bold_and_lower_is_better_for_bits():
    study = study_of(sample_study())
    facts = {score.name: score for score in study.scores}
    for name, choose in (("arc_easy", max), ("heldout/wikipedia_fr", min)):
        values = {model.name: model.scores[name].value for model in study.models}
        assert study.best(facts[name]) == {choose(values, key=lambda model: values[model])}


def test_pairs_are_told_in_the_direction_of_the_better_level():
    levels = {"even": {"n": 4, "mean": 1.02}, "deep": {"n": 4, "mean": 1.10}}
    pair = {"a": "even", "b": "deep", "difference": 0.08, "low": 0.05, "high": 0.11, "p": 0.01, "cohens_d": 2.0}
    turned = {"a": "deep", "b": "even", "difference": -0.08, "low": -0.11, "high": -0.05, "p": 0.01, "cohens_d": -2.0}
    for entry in (pair, turned):
        found = differing_pairs({"levels": levels, "tukey": [entry]}, higher_is_better=False)[0]
        assert (found.better, found.worse, found.difference, found.interval, found.cohens_d) == ("even", "deep", 0.08, (0.05, 0.11), 2.0)
        assert differing_pairs({"levels": levels, "tukey": [entry]}, higher_is_better=True)[0].better == "deep"
    assert differing_pairs({"levels": levels, "tukey": [{**pair, "p": 0.2}]}, higher_is_better=False) == []


def test_only_what_holds_after_correction_is_told():
    study = sample_study()
    assert len(factor_sentences(study_of(study), "expansion")) == 7 and factor_sentences(study_of(study), "prune") == []
    for effect in study["factors"]["expansion"].values():
        effect["anova"]["p_holm"] = 0.2
    assert factor_sentences(study_of(study), "expansion") == []


def test_levels_are_written_as_they_are_typed_and_crossed_ones_together():
    values = sample_study(models=1)
    values["models"][0]["factors"] |= {"expansion.zero_outputs": True, "tail": None}
    model = study_of(values).models[0]
    assert [level_of(model, key) for key in ("expansion.zero_outputs", "tail", "expansion × prune", "other")] == [
        "true", "null", "shallow_half, 0", None
    ]  # fmt: skip


def test_two_models_make_a_comparison(tmp_path):
    text = checked(write_study(tmp_path / "pair", sample_study(models=2)).read_text(encoding="utf-8")).text
    assert "slayer · comparison" in text and "2 models beside their common base, smollm2_135m; they differ in seed." in text
    assert "How this was tested" not in text


@pytest.mark.parametrize("part", ["base", "models", "scores", "factors", "multifaceted", "sequence"])
def test_any_part_may_be_missing(tmp_path, part):
    study = sample_study(models=3)
    checked(write_study(tmp_path, {key: value for key, value in study.items() if key != part}).read_text(encoding="utf-8"))


def test_models_without_scores_or_balances_are_shown_with_dashes(tmp_path):
    study = sample_study(models=3)
    study["models"][1] |= {"scores": {"arc_easy": {"value": None}}, "learnt": None, "forgotten": None}
    study["models"][2]["scores"]["arc_easy"] = {"value": 0.5}
    assert "–" in checked(write_study(tmp_path, study).read_text(encoding="utf-8")).text


def test_names_of_models_are_escaped(tmp_path):
    study = sample_study(models=2)
    study["models"][0]["name"] = "<script>alert(1)</script>|x"
    html = write_study(tmp_path, study).read_text(encoding="utf-8")
    assert "<script" not in html and "\\|x" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_gets_the_same_table(width):
    stream = io.StringIO()
    print_study({**sample_study(), "sequence": sample_sequence()}, console=Console(file=stream, width=width, highlight=False))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert all(part in text for part in ("deep_half-prune_2-seed_1", "wikipedia_en", "base", "best", "(BWT)"))
    print_study({}, console=Console(file=stream, width=width))


def test_the_terminal_without_utf8():
    class Plain(io.StringIO):
        encoding = "ascii"

    stream = Plain()
    print_study(sample_study(models=4), console=open_console(stream))
    assert stream.getvalue().isascii() and "?" not in stream.getvalue()


def test_labels_of_a_crowded_frontier_do_not_lie_on_one_another():
    points = [FrontierPoint(label=str(place), replay_percent=0.1 * place, domain_percent=-5.0) for place in range(3)]
    figure = frontier_figure([*points, FrontierPoint(label="far", replay_percent=9.0, domain_percent=-20.0)])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
