"""Figures: drawn from real plans and records, small on disk, and safe to put into a page."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import sample_events, sample_plan, sample_records, sample_results, staged_plan

from slayer.reporting.figures import (
    FrontierPoint,
    change_figure,
    frontier_figure,
    heldout_figure,
    loss_figure,
    pareto,
    plan_figure,
    smooth,
)
from slayer.reporting.picture import inline_svg, save_figure
from slayer.reporting.run_folder import is_heldout, stage_starts
from slayer.reporting.scores import source_scores

RECORDS = sample_records(40)
TRAINING = tuple(record for record in RECORDS if not is_heldout(record))
HELDOUT = tuple(record for record in RECORDS if is_heldout(record))
STAGED = tuple({**record, "stage": 1 + (record["step"] > 10) + (record["step"] > 22)} for record in TRAINING)
SCORES = source_scores(sample_results())
POINTS = [
    FrontierPoint(label="a", replay_percent=-0.4, domain_percent=-21.0, best=True),
    FrontierPoint(label="b", replay_percent=1, domain_percent=-19),
]

FIGURES = {
    "plan": lambda: plan_figure(sample_plan()),
    "staged_plan": lambda: plan_figure(staged_plan()),
    "long_plan": lambda: plan_figure(sample_plan(n_base=80, prune_by="last", prune_scores=None)),
    "loss": lambda: loss_figure(TRAINING, {"wikipedia_fr": "domain", "wikipedia_en": "replay"}),
    "loss_unsplit": lambda: loss_figure(tuple({"step": step, "loss": math.nan if step == 2 else 2.0} for step in range(4)), {}),
    "loss_staged": lambda: loss_figure(STAGED, {}, sample_events()),
    "heldout": lambda: heldout_figure(HELDOUT, SCORES),
    "heldout_unscored": lambda: heldout_figure(HELDOUT, []),
    "change": lambda: change_figure(SCORES),
    "frontier": lambda: frontier_figure(POINTS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_saved_small_in_both_forms(name, tmp_path):
    save_figure(FIGURES[name](), tmp_path, name)
    assert 1_000 < (tmp_path / f"{name}.svg").stat().st_size < 200_000
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["plan", "loss"])
def test_an_inline_figure_is_valid_takes_the_page_colours_and_owns_its_ids(name, tmp_path):
    svg = inline_svg(save_figure(FIGURES[name](), tmp_path, name), name, "a <description>")
    root = ElementTree.fromstring(svg)
    identifiers = [element.get("id") for element in root.iter() if element.get("id")]
    assert identifiers and all(identifier.startswith(f"{name}-") for identifier in identifiers)
    assert "var(--ink)" in svg and "#1f2937" not in svg and "<metadata>" not in svg
    assert root.get("aria-label") == "a <description>"


def test_the_learnt_picture_draws_the_numbers_it_was_given():
    axes = change_figure(SCORES).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([-21.3, -0.4])
    assert [text.get_text() for text in axes.texts] == ["−21.3 %  learnt", "−0.4 %  no change detected"]


def words_of(figure):
    """Every text that is drawn somewhere in a figure, in order."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text().strip()]


def test_the_plan_figure_names_the_stages_of_each_layer_and_of_the_schedule():
    words = words_of(plan_figure(staged_plan()))
    marks = [word.split(maxsplit=1)[1] for word in words if word.split()[0].isdigit() and ("●" in word or "◐" in word)]
    assert marks.count("● 1–3") == 7 and marks.count("◐ 2–3") == 26 and marks[-2:] == ["◐ 2 ● 3", "● 2–3"] and len(marks) == 35
    (legend,) = [word for word in words if word.startswith("stage 1")]
    assert "stage 1, until 20,480 tokens: new" in legend and "stage 3, to the end: new, tail × 0.5" in legend
    assert not [word for word in words_of(plan_figure(sample_plan())) if "stage" in word or "◐" in word]


def drawn_at(axes, label):
    """Steps at which a figure draws the signs of a label."""
    return [step for line in axes.lines if line.get_label() == label for step in line.get_xdata()]


def test_the_loss_figure_marks_stages_skipped_steps_and_returns():
    upper, lower = loss_figure(STAGED, {}, sample_events()).axes
    for axes in (upper, lower):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2] == [10.5, 22.5]
    assert [text.get_text() for text in upper.texts] == ["stage 2", "stage 3"]
    assert drawn_at(upper, "skipped step") == [14, 15, 16, 18] and drawn_at(upper, "went back to") == [30]
    plain = loss_figure(TRAINING, {}).axes[0]
    assert not plain.texts and not drawn_at(plain, "skipped step") and len(plain.lines) == len(upper.lines) - 4
    assert plain.get_ylim() == upper.get_ylim() and plain.get_xlim() == upper.get_xlim(), "marks move nothing"


def test_a_stage_begins_behind_the_last_record_of_the_one_before():
    records = tuple({"step": step, "stage": stage} for step, stage in ((4, 1), (6, 1), (10, 2), (14, 2), (15, 3)))
    assert stage_starts(records) == [(7, 2), (15, 3)]
    assert stage_starts(TRAINING) == stage_starts(()) == stage_starts(records[:1]) == []


def test_smoothing_keeps_straight_lines_and_passes_over_nan():
    line = [3 - 0.1 * step for step in range(50)]
    assert smooth(line) == pytest.approx(line), "a falling loss is not drawn above itself"
    assert all(map(math.isfinite, smooth([1.0] * 20 + [math.nan] + [1.0] * 20)))


coordinates = st.integers(-5, 5)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=12))
def test_the_frontier_holds_exactly_the_unbeaten_points(pairs):
    points = [FrontierPoint(label="", replay_percent=replay, domain_percent=domain) for replay, domain in pairs]
    unbeaten = {
        (replay, domain)
        for replay, domain in pairs
        if not any(other[0] <= replay and other[1] <= domain and other != (replay, domain) for other in pairs)
    }
    assert {(point.replay_percent, point.domain_percent) for point in pareto(points)} == unbeaten


def test_labels_of_points_stay_off_the_axis_and_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    label = "learning_rate=0.0011781 prune={}"
    places = [(-5.2, -5.0), (-5.15, -5.02), (-5.18, -4.99), (-4.4, -4.3)]
    figure = frontier_figure([FrontierPoint(label=label.format(n), replay_percent=x, domain_percent=y) for n, (x, y) in enumerate(places)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == len(places) and all(box.x0 > axes.get_window_extent(renderer).x0 for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[place + 1 :])
