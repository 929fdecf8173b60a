"""Figures of layer scores beside one another: the heat map of all, curves over depth, how scores agree, groups of depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerName, LayerTable, Measurement
from slayer.reporting.benchmark_scores import number, with_relation
from slayer.reporting.figures import FILLS, INK, MUTED, SERIES, Figure, figure_style, new_figure
from slayer.reporting.layer_scores import (
    by_importance,
    colours_of,
    group_of,
    groups_of,
    labels,
    layer_margins,
    main_first,
    ordering,
    ranks,
    score_words,
    sources_of,
    title_of,
    unit_of,
)
from slayer.reporting.study_figures import BEST, WORST
from slayer.reporting.study_scores import mapping

NEW = FILLS["new"]
SHADES = ("#f4f7fb", "#b9d5ea", "#5a9fd0", "#1b64a5", "#0b2f5e")
"""From the least important layer to the most important one."""
ON_DARK, ON_PALE = "#ffffff", "#1f2938"
"""Ink on cells, which keep their colours on a dark page."""
WIDE = 60
"""Models of more layers get fewer labels."""
FEW_COLUMNS = 14
"""Up to so many columns a matrix has its numbers written into it."""


ENTRY_INCHES = 1.7
"""What an entry of a legend takes across."""


def heat_figure(table: LayerTable) -> Figure:
    """Scores × layers in original-layer coordinates. A cell is darker the more important the layer is by that score's own ranking."""
    rows = ordering(table)
    n_layers = len(table.layers)
    places, heads = _row_places(rows)
    with figure_style():
        figure = new_figure(min(11.0, max(7.8, 2.4 + 0.23 * n_layers)), 1.35 + 0.2 * (places[-1] + 1))
        axes = figure.subplots()
        for one, place in zip(rows, places, strict=True):
            cells = _draw_ranks(axes, one, place, n_layers)
        axes.set_yticks([place + 0.5 for place in places], [title_of(one) for one in rows], color=INK, fontsize=8)
        for name, place in heads:
            axes.text(0.05, place, name, fontsize=7.5, color=MUTED, va="center", style="italic")
        axes.set(xlim=(0, n_layers), ylim=(places[-1] + 1.05, -0.1))
        layer_ticks(axes, table.layers, offset=0.5)
        _depth_brackets(axes, table)
        bare(axes)
        axes.set_title("Which layers matter, by every score", pad=26 if groups_of(table) else 12)
        bar = figure.colorbar(cells, ax=axes, location="bottom", shrink=0.32, aspect=26, pad=0.02, anchor=(0.0, 1.0))
        bar.set_ticks([0, 1], labels=["least important", "most important layer of the row"], fontsize=8, color=INK)
        bar.outline.set_visible(False)
        _heat_legend(bar.ax, table, rows)
        return figure


def _row_places(rows: Sequence[Measurement]) -> tuple[list[float], list[tuple[str, float]]]:
    # Every kind of score has its name above its rows.
    places: list[float] = []
    heads: list[tuple[str, float]] = []
    place = 0.0
    for row, one in enumerate(rows):
        if row == 0 or group_of(rows[row - 1].score) != group_of(one.score):
            heads.append((group_of(one.score), place + (0.45 if row == 0 else 0.55)))
            place += 0.9 if row == 0 else 1.0
        places.append(place)
        place += 1
    return places, heads


def _draw_ranks(axes: Any, one: Measurement, place: float, n_layers: int) -> Any:
    its_ranks = ranks(one)
    known = [rank for rank in its_ranks if math.isfinite(rank)]
    shades = [(max(known) - rank) / (max(known) - min(known) or 1) for rank in its_ranks]
    cells = draw_cells(axes, [(layer, place, shade) for layer, shade in enumerate(shades)], SHADES, 0, 1)
    for layer, rank in enumerate(its_ranks):
        if rank <= 3 and n_layers <= WIDE:
            axes.text(layer + 0.5, place + 0.53, f"{rank:.0f}", ha="center", va="center", fontsize=7, color=ON_DARK)
    return cells


def _heat_legend(axes: Any, table: LayerTable, rows: Sequence[Measurement]) -> None:
    from matplotlib.patches import Patch

    handles = []
    if any(not math.isfinite(rank) for one in rows for rank in ranks(one)):
        handles.append(Patch(facecolor="none", edgecolor=MUTED, hatch="//////", label="no number", linewidth=0))
    if any(layer.new for layer in table.layers):
        handles.append(Patch(color=NEW, label="+7: new block behind base layer 7"))
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.45, 0.3), ncols=2, fontsize=8)


def draw_cells(axes: Any, cells: Sequence[tuple[float, float, float]], shades: Sequence[str], low: float, high: float) -> Any:
    """Squares (left, top, value) in the shades from `low` to `high`, hatched where there is no number; returns what a colour bar is made of."""
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Rectangle

    # Gaps show the page, light or dark, and a square without an edge takes little room in the file.
    near, far = 0.04, 0.96
    known = [(x, y, value) for x, y, value in cells if math.isfinite(value)]
    corners = [[(x + near, y + near), (x + far, y + near), (x + far, y + far), (x + near, y + far)] for x, y, _ in known]
    squares = PolyCollection(corners, array=[value for *_, value in known], cmap=colour_map(shades), linewidths=0, clip_on=False)
    squares.set_clim(low, high)
    axes.add_collection(squares)
    for x, y, value in cells:
        if not math.isfinite(value):
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor="none", edgecolor=MUTED, hatch="//////", linewidth=0))
    return squares


def colour_map(shades: Sequence[str]) -> Any:
    """A colour map through these shades."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", list(shades))


def bare(axes: Any) -> None:
    """Neither grid nor frame: for heat maps."""
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def layer_ticks(axes: Any, layers: Sequence[LayerName], *, offset: float = 0.0, most: int = WIDE, label: str = "layer of the base") -> None:
    """Layers in original-layer coordinates along the x axis, new blocks in green; every second, fifth or tenth where `most` would not do."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if len(layers) / step <= most or step == 50)
    shown = [layer for layer in layers if (layer.new and step <= 2) or (not layer.new and layer.base_index % step == 0)]
    crowded = len(shown) > 0.63 * most
    axes.set_xticks([layer.index + offset for layer in shown], [layer.label for layer in shown], fontsize=6.2 if crowded else 7.5)
    for text, layer in zip(axes.get_xticklabels(), shown, strict=True):
        text.set_color(NEW if layer.new else INK)
        text.set_fontweight("bold" if layer.new else "normal")
    axes.set_xlabel(f"{label}; +: new block" if any(layer.new for layer in layers) else label, fontsize=8.5)


def _depth_brackets(axes: Any, table: LayerTable) -> None:
    across = axes.get_xaxis_transform()
    for name, members in groups_of(table).items():
        first, last = min(members), max(members) + 1
        axes.plot([first + 0.15, last - 0.15], [1.012, 1.012], color=MUTED, linewidth=1.2, transform=across, clip_on=False)
        axes.text((first + last) / 2, 1.022, name, transform=across, ha="center", va="bottom", fontsize=7.5, color=MUTED)


def curves_figure(table: LayerTable, measurements: Sequence[Measurement], title: str) -> Figure:
    """Scores over depth with 95 % bands, a panel per score and a colour per text; the three least important layers are ringed and named."""
    scores = list(dict.fromkeys(one.score for one in measurements))
    columns = min(3 if len(table.layers) <= WIDE else 2, len(scores))
    lines = -(-len(scores) // columns)
    with figure_style():
        figure = new_figure(max(5.0, 3.25 * columns) if columns < 3 else 9.8, 0.75 + 2.15 * lines)
        grid = figure.subplots(lines, columns, squeeze=False)
        colours = colours_of(table)
        for place, axes in enumerate(grid.flat):
            if place >= len(scores):
                axes.set_axis_off()
                continue
            _draw_score(axes, table, [one for one in measurements if one.score == scores[place]], colours)
        figure.suptitle(title, fontweight="bold", fontsize=11, x=0.01, ha="left")
        _curve_legend(figure, table, sources_of(measurements), colours)
        return figure


def _draw_score(axes: Any, table: LayerTable, measurements: Sequence[Measurement], colours: Mapping[str | None, str]) -> None:
    every = [value for one in measurements for value in one.by_layer if math.isfinite(value)]
    for one in measurements:
        draw_curve(axes, table.layers, one, colours[one.source])
    depth_scale(axes, every)
    subtitle = len(measurements) <= 2
    for place, one in enumerate(measurements if subtitle else ()):
        lowest = by_importance(one)[:3]
        axes.plot(
            lowest,
            [one.by_layer[layer] for layer in lowest],
            "o",
            markersize=6,
            markerfacecolor="none",
            color=colours[one.source],
            markeredgewidth=1.3,
        )
        axes.text(
            place / 2, 1.03, f"least: {labels(table.layers, lowest)}", transform=axes.transAxes, fontsize=7.2, color=colours[one.source], va="bottom"
        )
    axes.set_title(score_words(measurements[0].score), fontsize=9.5, pad=15)
    axes.set_ylabel(unit_of(table, measurements[0]), fontsize=7.5)
    layer_ticks(axes, table.layers, most=16)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_xlabel("")


def draw_curve(axes: Any, layers: Sequence[LayerName], one: Measurement, colour: str, **look: Any) -> None:
    """A score over the layers with its 95 % band; new blocks are green squares on the line."""
    values, margins = one.by_layer, layer_margins(one)
    axes.plot(range(len(layers)), values, color=colour, **{"linewidth": 1.6, "marker": "o", "markersize": 2.6, **look})
    if margins is not None:
        low, high = ([value + sign * margin for value, margin in zip(values, margins, strict=True)] for sign in (-1, 1))
        axes.fill_between(range(len(layers)), low, high, color=colour, alpha=0.2, linewidth=0)
    new = [layer.index for layer in layers if layer.new]
    axes.plot(new, [values[index] for index in new], "s", color=NEW, markersize=4.5, markeredgewidth=0)


def depth_scale(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic y axis where the largest number is more than twenty times the median; through zero where some are not positive."""
    sizes = sorted(abs(value) for value in values if value)
    if not sizes or sizes[-1] <= 20 * sizes[len(sizes) // 2]:
        axes.margins(y=0.12)
        return
    low, high = min(values), max(values)
    if low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.9, high * 1.9)
    else:
        axes.set_yscale("symlog", linthresh=sizes[len(sizes) // 2], linscale=0.7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axes.minorticks_off()


def _curve_legend(figure: Figure, table: LayerTable, sources: Sequence[str | None], colours: Mapping[str | None, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours[source], marker="o", markersize=3, label=source or "weights alone") for source in sources]
    handles.append(Line2D([], [], color=INK, marker="o", markerfacecolor="none", linestyle="", label="three least important"))
    if any(layer.new for layer in table.layers):
        handles.append(Line2D([], [], color=NEW, marker="s", linestyle="", label="new block"))
    a_line = max(1, int(figure.get_figwidth() / ENTRY_INCHES))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), a_line), fontsize=8.5)


def agreement_columns(table: LayerTable, source: str | None) -> list[int]:
    """Places in the agreement of the scores on this text and of the weights alone; of all scores where no text is named."""
    return [place for place, column in enumerate(table.agreement.get("columns") or []) if source is None or column["source"] in (source, None)]


def agreement_figure(table: LayerTable, source: str | None = None) -> Figure:
    """Spearman's rank correlation of every two scores, more important always being higher; scores that agree stand beside each other."""
    columns = [table.agreement["columns"][place] for place in agreement_columns(table, source)]
    names = [score_words(one["score"]) + (f" · {one['source']}" if one["source"] and source is None else "") for one in columns]
    matrix = [table.agreement["spearman"][place] for place in agreement_columns(table, source)]
    values = [[math.nan if number(line[place]) is None else float(line[place]) for place in agreement_columns(table, source)] for line in matrix]
    order = cluster_order(values)
    shown = [[values[row][column] for column in order] for row in order]
    few = len(order) <= FEW_COLUMNS
    cell, size = (0.47, 8.5) if few else (max(0.2, min(0.3, 7.0 / len(order))), 7)
    with figure_style():
        figure = new_figure(2.9 + cell * len(order), 1.9 + 0.8 * cell * len(order))
        axes = figure.subplots()
        cells = [(x, y, value) for y, line in enumerate(shown) for x, value in enumerate(line)]
        squares = draw_cells(axes, cells, (WORST, "#f7f7f7", BEST), -1, 1)
        for x, y, value in cells if few else ():
            if math.isfinite(value):
                text = f"{value:.2f}".replace("-", "−")
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7.5, color=ON_DARK if abs(value) > 0.65 else ON_PALE)
        axes.set(xlim=(0, len(order)), ylim=(len(order), 0))
        axes.set_xticks(
            [place + 0.5 for place in range(len(order))], [names[place] for place in order], rotation=40, ha="right", fontsize=size, color=INK
        )
        axes.set_yticks([place + 0.5 for place in range(len(order))], [names[place] for place in order], fontsize=size, color=INK)
        bare(axes)
        axes.set_title(f"Do scores rank the layers alike? Spearman{f' on {source}' if source else ''}")
        bar = figure.colorbar(squares, ax=axes, shrink=0.5, aspect=24, pad=0.02)
        bar.set_ticks([-1, 0, 1], labels=["−1: opposite", "0: unrelated", "1: alike"], fontsize=8)
        bar.outline.set_visible(False)
        return figure


def cluster_order(correlations: Sequence[Sequence[float]]) -> list[int]:
    """Places in an order in which what correlates stands together: leaves of average linkage on 1 − r; unknown counts as 0."""
    if len(correlations) < 3:
        return list(range(len(correlations)))
    import numpy as np
    from scipy.cluster.hierarchy import average, leaves_list, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    known = np.nan_to_num(np.asarray(correlations, np.float64))
    distances = 1 - (known + known.T) / 2
    np.fill_diagonal(distances, 0)
    condensed = squareform(np.maximum(distances, 0), checks=False)
    return [int(place) for place in leaves_list(optimal_leaf_ordering(average(condensed), condensed))]


def group_figure(table: LayerTable, source: str | None) -> Figure:
    """Scores of single layers by group of depth, a panel per score, with the groups' means; p: one-way ANOVA, after Holm over all scores."""
    shown = main_first([one for one in ordering(table) if one.source in (source, None)])
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    with figure_style():
        figure = new_figure(max(4.0, 2.45 * columns), 0.55 + 2.05 * lines)
        grid = figure.subplots(lines, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(shown):
                axes.set_axis_off()
                continue
            _draw_groups(axes, table, shown[place])
        figure.suptitle(f"Scores by depth{f' on {source}' if source else ''}", fontweight="bold", fontsize=11, x=0.01, ha="left")
        return figure


def _draw_groups(axes: Any, table: LayerTable, one: Measurement) -> None:
    groups, values = groups_of(table), one.by_layer
    for place, members in enumerate(groups.values()):
        known = sorted(values[layer] for layer in members if math.isfinite(values[layer]))
        if not known:
            continue
        colour, marker = SERIES[place % len(SERIES)]
        # Spread over the width in order of value: never on top of one another, the same in every drawing.
        spread = [place + 0.3 * ((2 * index + 1) / len(known) - 1) for index in range(len(known))]
        axes.plot(spread, known, marker, color=colour, markersize=4.2, alpha=0.8, markeredgewidth=0)
        axes.hlines(sum(known) / len(known), place - 0.36, place + 0.36, color=INK, linewidth=1.7)
    depth_scale(axes, [value for value in values if math.isfinite(value)])
    p = number(mapping(mapping(mapping(table.agreement.get("effects")).get(one.key)).get("anova")).get("p_holm"))
    turned = " (high: less important)" if CATALOGUE[one.score].high_is_important is False else ""
    axes.set_title(f"{score_words(one.score)}{turned}", fontsize=9, pad=15 if p is not None else 6)
    if p is not None:
        found = p < 0.05
        axes.text(
            0, 1.03, with_relation(p), transform=axes.transAxes, fontsize=7.8, color=INK if found else MUTED, fontweight="bold" if found else "normal"
        )
    axes.set_xticks(range(len(groups)), list(groups), fontsize=8, color=INK)
    axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(unit_of(table, one), fontsize=7.5)
    axes.tick_params(axis="y", labelsize=7.5)
