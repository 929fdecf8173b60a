"""Figures: drawn from real plans and records, small on disk, and safe to put into a page."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_run import sample_plan, sample_records, sample_results

from slayer.reporting.figures import (
    FrontierPoint,
    change_figure,
    frontier_figure,
    heldout_figure,
    inline_svg,
    loss_figure,
    pareto,
    plan_figure,
    save_figure,
    smooth,
)
from slayer.reporting.run_folder import is_heldout
from slayer.reporting.scores import source_scores

RECORDS = sample_records(40)
TRAINING = tuple(record for record in RECORDS if not is_heldout(record))
HELDOUT = tuple(record for record in RECORDS if is_heldout(record))
SCORES = source_scores(sample_results())
POINTS = [
    FrontierPoint(label="a", replay_percent=-0.4, domain_percent=-21.0, best=True),
    FrontierPoint(label="b", replay_percent=1, domain_percent=-19),
]

FIGURES = {
    "plan": lambda: plan_figure(sample_plan()),
    "long_plan": lambda: plan_figure(sample_plan(n_base=80, prune_by="last", prune_scores=None)),
    "loss": lambda: loss_figure(TRAINING, {"wikipedia_fr": "domain", "wikipedia_en": "replay"}),
    "loss_unsplit": lambda: loss_figure(tuple({"step": step, "loss": math.nan if step == 2 else 2.0} for step in range(4)), {}),
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
def test_an_inline_figure_is_valid_takes_the_page_colours_and_owns_its_ids(name):
    svg = inline_svg(FIGURES[name](), name, "a <description>")
    root = ElementTree.fromstring(svg)
    identifiers = [element.get("id") for element in root.iter() if element.get("id")]
    assert identifiers and all(identifier.startswith(f"{name}-") for identifier in identifiers)
    assert "var(--ink)" in svg and "#1f2937" not in svg and "<metadata>" not in svg
    assert root.get("aria-label") == "a <description>"


def test_the_learnt_picture_draws_the_numbers_it_was_given():
    axes = change_figure(SCORES).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([-21.3, -0.4])
    assert [text.get_text() for text in axes.texts] == ["−21.3 %  learnt", "−0.4 %  no change detected"]


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
