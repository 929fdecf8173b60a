"""Figures of single scores: Shapley values of halves, triangles of blocks, profiles over depth, probes, sparsities, matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.importance.table import LayerTable, Measurement
from slayer.reporting.benchmark_scores import number
from slayer.reporting.figures import DOMAIN_COLOURS, FILLS, INK, MUTED, REPLAY_COLOURS, Figure, figure_style, new_figure
from slayer.reporting.layer_figures import SHADES, bare, draw_cells, draw_curve, layer_ticks
from slayer.reporting.layer_scores import colours_of, three_figures, title_of, unit_of
from slayer.reporting.numbers import percent
from slayer.reporting.study_scores import mapping

ATTENTION, MLP = "#cc79a7", MUTED
TRIANGLES = {
    "angular_distance": ("blocks", "best", "distance", "How far a block turns the residual stream"),
    "window_removal": ("windows", "cheapest", "lost", "What is lost without a block of layers"),
}
"""Where a score keeps its blocks, the best of each length and the number of the best; the figure's title."""
MANY_CELLS = 1500
"""More are drawn as pixels: as shapes they would take megabytes."""
FAR = 20
"""Where the largest value is so many times the median, a second panel shows the small ones."""


def shapley_figure(table: LayerTable, one: Measurement) -> Figure:
    """Attention and MLP of every layer side by side with 95 % intervals (or whole layers), cornerstones named; small values enlarged below."""
    stones = [stone for stone in one.details.get("cornerstones") or [] if number(stone.get("value")) is not None]
    sizes = sorted(abs(value) for value in one.values if math.isfinite(value))
    enlarged = bool(sizes) and sizes[-1] > FAR * sizes[len(sizes) // 2]
    with figure_style():
        figure = new_figure(min(11.0, max(7.6, 1.2 + 0.24 * len(table.layers))), 4.6 if enlarged else 3.1)
        panels = figure.subplots(2 if enlarged else 1, 1, squeeze=False, sharex=True)[:, 0]
        for axes in panels:
            _draw_players(axes, one)
            axes.set_ylabel(unit_of(table, one), fontsize=8.5)
        _name_cornerstones(panels[0], one, stones)
        share = number(one.details.get("share"))
        told = f": the top three hold {percent(100 * share, signed=False, digits=0)}" if share is not None and stones else ""
        panels[0].set_title(f"{title_of(one)}{told}")
        if enlarged:
            top = 1.4 * sizes[int(0.82 * len(sizes))]
            panels[1].set_ylim(max(-top, min(0.0, *(value for value in one.values if math.isfinite(value))) - 0.1 * top), top)
            panels[1].set_title("the same, enlarged: taller bars are cut off", fontsize=9, fontweight="normal", color=MUTED, pad=6)
        layer_ticks(panels[-1], table.layers)
        panels[-1].set_xlim(-0.8, len(table.layers) - 0.2)
        if one.players == "halves":
            _halves_legend(panels[0])
        return figure


def _draw_players(axes: Any, one: Measurement) -> None:
    looks = ((ATTENTION, -0.21), (MLP, 0.21)) if one.players == "halves" else ((MLP, 0.0),)
    for place, (colour, side) in enumerate(looks):
        values, margins = one.values[place :: len(looks)], one.margins[place :: len(looks)]
        places = [layer + side for layer in range(len(values))]
        axes.bar(places, values, width=0.76 / len(looks), color=colour, linewidth=0)
        if one.errors is not None:
            axes.errorbar(places, values, yerr=margins, fmt="none", color=INK, linewidth=0.8, alpha=0.75)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="y", labelsize=8)


def _halves_legend(axes: Any) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=ATTENTION, label="attention (left)"), Patch(color=MLP, label="MLP (right)")]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8.5)


def _name_cornerstones(axes: Any, one: Measurement, stones: Sequence[Mapping[str, Any]]) -> None:
    total = sum(max(0.0, value) for value in one.values if math.isfinite(value))
    lines = []
    for place, stone in enumerate(stones, start=1):
        player, value = int(stone["player"]), float(stone["value"])
        margin = one.margins[player] if math.isfinite(one.margins[player]) else 0.0
        middle = player // 2 + (0.21 if player % 2 else -0.21) if one.players == "halves" else player
        axes.annotate(
            str(place), (middle, value + margin), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8.5, fontweight="bold"
        )
        part = f" ({percent(100 * value / total, signed=False, digits=0)})" if total > 0 else ""
        lines.append(f"{place}: layer {str(stone['label']).replace('mlp', 'MLP')}, {three_figures(value)}{part}")
    axes.text(_emptiest(one), 0.94, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.5)
    axes.margins(y=0.12)


def _emptiest(one: Measurement) -> float:
    """Where along the axis three lines of text are least in the way of bars and their intervals."""
    tops = [value + (margin if math.isfinite(margin) else 0.0) for value, margin in zip(one.values, one.margins, strict=True)]
    width = 0.3

    def highest(left: float) -> float:
        inside = tops[int(left * len(tops)) : int((left + width) * len(tops)) + 1]
        return max((top for top in inside if math.isfinite(top)), default=0.0)

    return min((0.02, 0.2, 0.36, 0.5, 0.68), key=highest)


def triangle_figure(table: LayerTable, one: Measurement) -> Figure:
    """Every block of layers, by its first layer and its length; the best of each length is ringed and told at the right."""
    key, best_key, best_value, title = TRIANGLES[one.score]
    lines = {int(size): line for size, line in mapping(one.details.get(key)).items()}
    best = {int(size): entry for size, entry in mapping(one.details.get(best_key)).items()}
    n_layers, sizes = len(table.layers), sorted(lines)
    cells = [(start, row, math.nan if value is None else float(value)) for row, size in enumerate(sizes) for start, value in enumerate(lines[size])]
    known = [value for *_, value in cells if math.isfinite(value)] or [0.0]
    with figure_style():
        figure = new_figure(min(10.0, max(6.4, 2.7 + 0.15 * n_layers)), 1.4 + min(5.6, (0.15 if len(sizes) > 12 else 0.24) * len(sizes)))
        figure.set_dpi(200)  # of what is drawn as pixels in the SVG
        axes = figure.subplots()
        squares = draw_cells(axes, cells, SHADES, min(known), max(known))
        squares.set_rasterized(len(cells) > MANY_CELLS)
        logarithmic = key == "windows" and min(known) > 0
        if logarithmic:
            squares.set_norm("log")
            squares.set_clim(min(known), max(known))
        _ring_best(
            axes, table, [(row, int(best[size]["start"]), size, number(best[size].get(best_value))) for row, size in enumerate(sizes) if size in best]
        )
        axes.set(xlim=(0, n_layers), ylim=(len(sizes), 0), ylabel="layers in the block")
        step = 1 if len(sizes) <= 16 else 2 if len(sizes) <= 40 else 5
        axes.set_yticks(
            [row + 0.5 for row in range(0, len(sizes), step)], [str(sizes[row]) for row in range(0, len(sizes), step)], fontsize=7.5, color=INK
        )
        layer_ticks(axes, table.layers, offset=0.5, most=40, label="first layer of the block")
        bare(axes)
        axes.set_title(f"{title} · {one.source}" if one.source else title, pad=16)
        bar = figure.colorbar(squares, ax=axes, location="bottom", shrink=0.5, aspect=34, pad=0.02)
        bar.set_label("share of π" if key == "blocks" else unit_of(table, one) + (", logarithmic" if logarithmic else ""), fontsize=8)
        bar.ax.tick_params(labelsize=7.5)
        bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.outline.set_visible(False)
        return figure


def _ring_best(axes: Any, table: LayerTable, best: Sequence[tuple[int, int, int, float | None]]) -> None:
    from matplotlib.patches import Rectangle

    told = 1 if len(best) <= 30 else -(-len(best) // 26)
    edge = len(table.layers)
    for row, start, size, value in best:
        axes.add_patch(
            Rectangle((start + 0.08, row + 0.08), 0.84, 0.84, facecolor="none", edgecolor=REPLAY_COLOURS[0], linewidth=1.6, zorder=3, clip_on=False)
        )
        if row % told == 0 and value is not None:
            first, last = table.layers[start].label, table.layers[start + size - 1].label
            words = f"{first}–{last}" if size > 1 else first
            axes.text(edge + 0.6, row + 0.55, f"{words}: {three_figures(value)}", fontsize=6.8, va="center", color=INK)
    if best:
        axes.annotate(
            "best of its length", (edge + 0.6, 0), (0, 5), textcoords="offset points", fontsize=7, color=REPLAY_COLOURS[0], annotation_clip=False
        )


PROFILES = {
    "dola_divergence": ("Divergence from what is said in the end", "read out after layer"),
    "layer_drop": ("Lost without this layer and all above it", "first layer dropped"),
}
"""Title and meaning of the x axis of scores that are curves."""


def profile_figure(table: LayerTable, score: str) -> Figure:
    """A score that is a curve over depth and no ranking: DoLa's divergence, or what is left when the top is dropped."""
    measurements = [one for one in table.measurements if one.score == score]
    title, along = PROFILES[score]
    with figure_style():
        figure = new_figure(6.4, 2.9)
        axes = figure.subplots()
        colours = colours_of(table)
        for one in measurements:
            draw_curve(axes, table.layers, one, colours[one.source], label=one.source)
            embedding = number(one.details.get("embedding"))
            if embedding is not None:
                axes.plot([-1], [embedding], "D", color=colours[one.source], markersize=4.5, markerfacecolor="none")
        embedded = any(number(one.details.get("embedding")) is not None for one in measurements)
        axes.set(title=title, ylabel=unit_of(table, measurements[0]), ylim=(min(0.0, axes.get_ylim()[0]), None))
        layer_ticks(axes, table.layers, most=34, label=along + ("; ◇ at the left: the embedding" if embedded else ""))
        axes.legend(loc="best", fontsize=8.5)
        return figure


def probe_figure(table: LayerTable) -> Figure:
    """Accuracy of a linear probe by depth at both reading points, a panel per question set; the best layer named, the larger class dotted."""
    probes = [one for one in table.measurements if one.score == "probe"]
    columns = min(2, len(probes))
    with figure_style():
        figure = new_figure(6.4 if columns == 1 else 9.6, 0.3 + 2.8 * -(-len(probes) // columns))
        for axes in list((grid := figure.subplots(-(-len(probes) // columns), columns, squeeze=False)).flat)[len(probes) :]:
            axes.set_axis_off()
        for one, axes in zip(probes, grid.flat, strict=False):
            _draw_probe(axes, table, one)
        return figure


def _draw_probe(axes: Any, table: LayerTable, one: Measurement) -> None:
    draw_curve(axes, table.layers, one, DOMAIN_COLOURS[0], label="block output")
    normed = mapping(one.details.get("accuracy")).get("post_attention_norm")
    if normed:
        axes.plot(
            [math.nan if value is None else value for value in normed], color=REPLAY_COLOURS[0], linestyle=(0, (4, 2)), label="post-attention norm"
        )
    embedding = number(mapping(one.details.get("embedding")).get("accuracy"))
    if embedding is not None:
        axes.plot([-1], [embedding], "D", color=INK, markersize=4.5, markerfacecolor="none", linestyle="", label="embedding")
    majority = number(one.details.get("majority"))
    if majority is not None:
        axes.axhline(majority, color=MUTED, linewidth=1.1, linestyle=(0, (1, 2)), label="larger class")
    known = [(value, layer) for layer, value in enumerate(one.values) if math.isfinite(value)]
    if known:
        value, layer = max(known)
        axes.plot([layer], [value], "o", color=INK, markersize=7, markerfacecolor="none", zorder=4)
        told = f"best: layer {table.layers[layer].label}, {value:.2f}"
        axes.annotate(told, (layer, value), (0, 8), textcoords="offset points", ha="right" if layer > len(one.values) / 2 else "left", fontsize=8)
    axes.set(title=title_of(one), ylabel="accuracy on the test part")
    axes.margins(y=0.16)
    layer_ticks(axes, table.layers, most=34)
    axes.legend(loc="lower right", fontsize=8)


def sparsity_figure(table: LayerTable, one: Measurement) -> Figure:
    """OWL's sparsity of every layer around the uniform one, and the loss of the dense and of both pruned models."""
    sparsities = [math.nan if value is None else 100 * float(value) for value in one.details["sparsities"]]
    uniform = 100 * float(one.details["sparsity"])
    check = {name: value for name, each in mapping(one.details.get("check")).items() if (value := number(each)) is not None}
    with figure_style():
        figure = new_figure(min(10.5, max(7.6, 3 + 0.2 * len(table.layers))), 2.9)
        both = figure.subplots(1, 2 if check else 1, width_ratios=[4, 1] if check else None, squeeze=False)[0]
        # A bar starts where the allocation would be without scores: what is seen is what the scores change.
        colours = [DOMAIN_COLOURS[0] if value <= uniform else REPLAY_COLOURS[1] for value in sparsities]
        both[0].bar(range(len(sparsities)), [value - uniform for value in sparsities], bottom=uniform, color=colours, width=0.75, linewidth=0)
        both[0].axhline(uniform, color=INK, linewidth=1.2)
        both[0].set(ylabel="% of weights to prune", title=f"Sparsity by outliers (OWL) · {one.source}, uniform: {uniform:g} %")
        both[0].grid(axis="x", visible=False)
        both[0].margins(y=0.12)
        layer_ticks(both[0], table.layers, most=40)
        if check:
            _draw_check(both[1], check)
        return figure


def _draw_check(axes: Any, check: Mapping[str, float]) -> None:
    looks = {"dense": FILLS["kept"], "uniform": REPLAY_COLOURS[0], "owl": DOMAIN_COLOURS[0]}
    shown = [name for name in looks if name in check]
    axes.bar(range(len(shown)), [check[name] for name in shown], color=[looks[name] for name in shown], width=0.7, linewidth=0)
    for place, name in enumerate(shown):
        axes.text(place, check[name], f"{check[name]:.2f}", ha="center", va="bottom", fontsize=8.5, fontweight="bold")
    axes.set_xticks(range(len(shown)), [{"owl": "OWL"}.get(name, name) for name in shown], fontsize=8, color=INK)
    axes.set(ylabel="nats per token", title="Pruned so")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)


MATRICES = {"weight_snr": "matrices", "taylor": "units"}
"""Where a score keeps its numbers by weight matrix."""


def matrices_figure(table: LayerTable, one: Measurement) -> Figure:
    """A score by weight matrix and layer; shades within each matrix, for matrices differ in shape, its least and largest number at its name."""
    lines = mapping(one.details.get(MATRICES[one.score]))
    n_layers, names = len(table.layers), []
    with figure_style():
        figure = new_figure(min(11.0, max(7.6, 2.6 + 0.22 * n_layers)), 1.15 + 0.24 * len(lines))
        axes = figure.subplots()
        for row, (name, line) in enumerate(lines.items()):
            values = [math.nan if value is None else float(value) for value in line]
            known = [value for value in values if math.isfinite(value)] or [0.0]
            draw_cells(axes, [(layer, row, value) for layer, value in enumerate(values)], SHADES, min(known), max(known))
            names.append(f"{name}: {three_figures(min(known))} to {three_figures(max(known))}")
        axes.set_yticks([row + 0.5 for row in range(len(lines))], names, fontsize=8, color=INK)
        axes.set(xlim=(0, n_layers), ylim=(len(lines), 0))
        layer_ticks(axes, table.layers, offset=0.5)
        bare(axes)
        axes.set_title(f"{title_of(one)}: by matrix, darker is higher within its row")
        return figure
