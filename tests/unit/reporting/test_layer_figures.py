"""Figures of layer scores: they draw the numbers they were given, at any depth, and stay small on disk."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_layers import TEXTS, expanded_plan, sample_expanded_table, sample_table
from scipy.stats import rankdata

from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import NORMAL_95, LayerTable, Measurement, layer_names
from slayer.reporting.figures import DOMAIN_COLOURS, REPLAY_COLOURS, new_figure
from slayer.reporting.layer_detail_figures import matrices_figure, probe_figure, profile_figure, shapley_figure, sparsity_figure, triangle_figure
from slayer.reporting.layer_figures import NEW, agreement_figure, cluster_order, curves_figure, depth_scale, group_figure, heat_figure
from slayer.reporting.layer_scores import by_importance, layer_margins, ordering
from slayer.reporting.picture import save_figure

TABLE = sample_table()
DEEP = sample_table(80, TEXTS[:1], compared=False)
EXPANDED = sample_expanded_table(30)
FR, EN = TEXTS

FIGURES = {
    "heat": lambda: heat_figure(TABLE),
    "heat_of_80": lambda: heat_figure(DEEP),
    "heat_of_new_blocks": lambda: heat_figure(EXPANDED),
    "triangle_of_80": lambda: triangle_figure(DEEP, DEEP.find("angular_distance")),
    "shapley_of_80": lambda: shapley_figure(DEEP, DEEP.find("shapley")),
    "matrices": lambda: matrices_figure(TABLE, TABLE.find("weight_snr")),
    "probe": lambda: probe_figure(TABLE),
}


def cells_of(axes):
    """{(left, top): value} of all squares that have a number."""
    found = {}
    for squares in axes.collections:
        for path, value in zip(squares.get_paths(), squares.get_array(), strict=True):
            found[tuple(np.round(path.vertices.min(axis=0) - 0.04, 6))] = float(value)
    return found


def line_of(axes, colour):
    return next(line for line in axes.lines if line.get_color() == colour and len(line.get_ydata()) == len(TABLE.layers))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_saved_small_in_both_forms(name, tmp_path):
    save_figure(FIGURES[name](), tmp_path, name)
    assert 1_000 < (tmp_path / f"{name}.svg").stat().st_size < 200_000
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_heat_map_shades_by_the_ranks_of_each_row_and_hatches_what_failed():
    axes = heat_figure(TABLE).axes[0]
    rows = ordering(TABLE)
    tops = [tick - 0.5 for tick in axes.get_yticks()]
    cells = cells_of(axes)
    for one, top in zip(rows, tops, strict=True):
        values = np.asarray(one.by_layer) * (1 if CATALOGUE[one.score].high_is_important else -1)
        known = np.isfinite(values)
        shades = (rankdata(values[known]) - 1) / (known.sum() - 1)
        assert [cells[round(float(layer), 6), round(top, 6)] for layer in np.flatnonzero(known)] == pytest.approx(list(shades))
    missing = sum(math.isnan(value) for one in rows for value in one.by_layer)
    assert missing and sum(bool(patch.get_hatch()) for patch in axes.patches) == missing
    assert [text.get_text() for text in axes.get_yticklabels()][:2] == [f"removal · {FR}", f"removal · {EN}"]


def test_new_blocks_are_marked_under_the_heat_map():
    labels = heat_figure(EXPANDED).axes[0].get_xticklabels()
    plan = expanded_plan(30)
    assert [text.get_text() for text in labels] == [layer.label for layer in EXPANDED.layers]
    assert [index for index, text in enumerate(labels) if text.get_color() == NEW] == list(plan.new_indices)


@pytest.mark.parametrize("n_layers", [30, 38, 80])
def test_labels_of_layers_do_not_touch_at_any_depth(n_layers):
    (one,) = (one for one in DEEP.measurements if one.score == "norm")
    short = replace(one, values=one.values[:n_layers], errors=None)
    figure = heat_figure(replace(DEEP, layers=DEEP.layers[:n_layers], measurements=(short,), agreement={}))
    figure.set_dpi(160)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert len(boxes) == n_layers if n_layers <= 40 else len(boxes) == n_layers / 2


def test_curves_draw_values_and_bands_of_both_texts_and_ring_the_least_important():
    one = [TABLE.find("removal", FR), TABLE.find("removal", EN)]
    axes = curves_figure(TABLE, one, "title").axes[0]
    assert axes.get_yscale() == "log"
    for measurement, colour in zip(one, (DOMAIN_COLOURS[0], REPLAY_COLOURS[0]), strict=True):
        assert np.array_equal(line_of(axes, colour).get_ydata(), measurement.by_layer, equal_nan=True)
        rings = next(line for line in axes.lines if line.get_color() == colour and len(line.get_ydata()) == 3)
        assert list(rings.get_xdata()) == by_importance(measurement)[:3]
    low = [value - NORMAL_95 * error for value, error in zip(one[0].values, one[0].errors, strict=True)]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert all(np.isclose(band, bound).any() for bound in low)


def test_the_axis_is_logarithmic_only_where_the_range_asks_for_it():
    found = []
    for values in ([1.0, 2.0, 3.0], [0.1, 0.1, 9.0], [-0.1, 0.1, 9.0], [0.0, 0.0]):
        axes = new_figure(2, 2).subplots()
        axes.plot(values)
        depth_scale(axes, values)
        found.append(axes.get_yscale())
    assert found == ["linear", "log", "symlog", "linear"]


@given(st.integers(2, 5), st.integers(2, 5), st.randoms(use_true_random=False))
def test_scores_that_agree_stand_together(n_first, n_second, shuffler: random.Random):
    kinds = [0] * n_first + [1] * n_second
    shuffler.shuffle(kinds)
    correlations = [[1.0 if a == b else 0.9 if kinds[a] == kinds[b] else -0.2 for b in range(len(kinds))] for a in range(len(kinds))]
    order = cluster_order(correlations)
    assert sorted(order) == list(range(len(kinds)))
    assert sum(kinds[a] != kinds[b] for a, b in pairwise(order)) == 1


def test_the_matrix_of_one_text_has_its_numbers_written_in():
    axes = agreement_figure(TABLE, FR).axes[0]
    columns = [place for place, column in enumerate(TABLE.agreement["columns"]) if column["source"] in (FR, None)]
    expected = sorted(f"{TABLE.agreement['spearman'][a][b]:.2f}".replace("-", "−") for a in columns for b in columns)
    assert sorted(text.get_text() for text in axes.texts) == expected
    assert not agreement_figure(TABLE).axes[0].texts, "too many for numbers"


def test_unknown_correlations_are_hatched():
    agreement = {"columns": [{"score": name, "source": None} for name in ("removal", "norm")], "spearman": [[1.0, None], [None, 1.0]]}
    axes = agreement_figure(replace(TABLE, agreement=agreement)).axes[0]
    assert len(cells_of(axes)) == 2 and sum(bool(patch.get_hatch()) for patch in axes.patches) == 2


def test_shapley_bars_are_the_values_and_cornerstones_are_numbered_in_order():
    one = TABLE.find("shapley", FR)
    upper, lower = shapley_figure(TABLE, one).axes
    heights = [bar.get_height() for bar in upper.patches]
    assert heights == pytest.approx([*one.values[::2], *one.values[1::2]])
    marks = {text.get_text(): text.xy for text in upper.texts if hasattr(text, "xy")}
    margins = one.margins
    for place, stone in enumerate(one.details["cornerstones"], start=1):
        assert marks[str(place)][1] == pytest.approx(stone["value"] + margins[stone["player"]])
        assert round(marks[str(place)][0]) == stone["player"] // 2
    assert lower.get_ylim()[1] < max(one.values), "the small values are enlarged"


def test_shapley_values_of_whole_layers_are_drawn_too():
    stones = [{"player": 1, "label": "1", "value": 3.0}]
    one = Measurement(score="shapley", source="fr", values=(1.0, 3.0, 2.0), details={"cornerstones": stones, "share": 0.5})
    table = LayerTable(model="tiny", layers=layer_names(3, None), measurements=(one,), facts={})
    (axes,) = shapley_figure(table, one).axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 3.0, 2.0]
    assert "1: layer 1, 3.00 (50 %)" in axes.texts[-1].get_text()


@pytest.mark.parametrize(("score", "key"), [("angular_distance", "blocks"), ("window_removal", "windows")])
def test_triangles_ring_the_best_block_of_each_length(score, key):
    one = TABLE.find(score, FR)
    axes = triangle_figure(TABLE, one).axes[0]
    lines = one.details[key]
    assert cells_of(axes) == pytest.approx({(start, int(size) - 1): value for size, line in lines.items() for start, value in enumerate(line)})
    rings = {(round(patch.get_x() - 0.08), round(patch.get_y() - 0.08)) for patch in axes.patches}
    assert rings == {(int(np.argmin(line)), int(size) - 1) for size, line in lines.items()}


def test_groups_show_their_means_and_set_p_in_bold_where_it_is_small():
    groups = TABLE.agreement["groups"]
    panels = {axes.get_title(loc="left").partition(" (")[0]: axes for axes in group_figure(TABLE, FR).axes if axes.get_title(loc="left")}
    one = TABLE.find("outlier_distribution", FR)
    means = [segment[0][1] for lines in panels["outlier distribution"].collections for segment in lines.get_segments()]
    assert means == pytest.approx([np.mean([one.values[layer] for layer in members]) for members in groups.values()])
    for score, axes in ((one.score, panels["outlier distribution"]), ("learned_mask", panels["learned mask"])):
        p = TABLE.agreement["effects"][f"{score} · {FR}"]["anova"]["p_holm"]
        assert (axes.texts[0].get_fontweight() == "bold") == (p < 0.05)


def test_sparsities_end_where_they_should_and_the_check_is_shown():
    one = TABLE.find("outlier_distribution", FR)
    bars, check = sparsity_figure(TABLE, one).axes
    assert [bar.get_y() + bar.get_height() for bar in bars.patches] == pytest.approx([100 * value for value in one.details["sparsities"]])
    assert [text.get_text() for text in check.texts] == ["2.61", "5.93", "5.02"]
    unchecked = replace(one, details={**one.details, "check": None})
    assert len(sparsity_figure(TABLE, unchecked).axes) == 1


def test_profiles_show_every_text_and_the_embedding_before_the_first_layer():
    axes = profile_figure(TABLE, "dola_divergence").axes[0]
    for source, colour in ((FR, DOMAIN_COLOURS[0]), (EN, REPLAY_COLOURS[0])):
        assert list(line_of(axes, colour).get_ydata()) == list(TABLE.find("dola_divergence", source).values)
    assert [tuple(map(float, (*line.get_xdata(), *line.get_ydata()))) for line in axes.lines if list(line.get_xdata()) == [-1]] == [(-1.0, 8.7)] * 2


def test_margins_of_halves_do_not_pretend_to_be_narrow():
    one = TABLE.find("shapley", FR)
    assert layer_margins(one) == pytest.approx([NORMAL_95 * (a + b) for a, b in zip(one.errors[::2], one.errors[1::2], strict=True)])
