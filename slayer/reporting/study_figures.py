"""The figures of a study: scores by level of a factor, how scores go together, and what a sequence of domains left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.reporting.benchmark_scores import number, with_relation
from slayer.reporting.figures import DOMAIN_COLOURS, INK, MUTED, SERIES, Figure, figure_style, label_points, new_figure
from slayer.reporting.numbers import short
from slayer.reporting.study_scores import ScoreFacts, StudyModel, level_of, mapping

MOST_PANELS = 9
WORST, BEST = "#b35806", "#2166ac"


def level_figure(factor: str, scores: Sequence[ScoreFacts], models: Sequence[StudyModel], effects: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every model as a dot over its level of the factor, one panel per score, with the levels' means and standard errors."""
    shown = [score for score in scores if any(score.name in model.scores for model in models)][:MOST_PANELS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    levels = list(dict.fromkeys(level for model in models if (level := level_of(model, factor)) is not None))
    with figure_style():
        figure = new_figure(max(8.2 if columns == 3 else 2.9 * columns, 4.0), 0.3 + (2.15 if len(levels) <= 3 else 2.5) * lines)
        grid = figure.subplots(lines, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place < len(shown):
                _draw_levels(axes, factor, levels, shown[place], models, effects.get(shown[place].name, {}))
            else:
                axes.set_axis_off()
        return figure


def _draw_levels(axes: Any, factor: str, levels: Sequence[str], score: ScoreFacts, models: Sequence[StudyModel], effect: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    for place, level in enumerate(levels):
        values = sorted(model.scores[score.name].value for model in models if level_of(model, factor) == level and score.name in model.scores)
        if not values:
            continue
        colour, marker = SERIES[place % len(SERIES)]
        # Spread over the width in order of value: never on top of one another, the same in every drawing.
        spread = [place + 0.3 * ((2 * index + 1) / len(values) - 1) for index in range(len(values))]
        axes.plot(spread, values, marker, color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        mean = sum(values) / len(values)
        axes.hlines(mean, place - 0.36, place + 0.36, color=INK, linewidth=1.6)
        if len(values) > 1:
            error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
            axes.vlines(place, mean - error, mean + error, color=INK, linewidth=1.1)
    p = number(mapping(effect.get("anova")).get("p_holm"))
    direction = "" if score.higher_is_better else " (lower: better)"
    axes.set_title(f"{score.label}{direction}", fontsize=9, pad=16 if p is not None else 6)
    if p is not None:
        weight = "bold" if p < 0.05 else "normal"
        axes.text(0, 1.03, with_relation(p), transform=axes.transAxes, fontsize=8, color=INK if p < 0.05 else MUTED, fontweight=weight)
    crowded = max(map(len, levels)) * len(levels) > 26
    axes.set_xticks(range(len(levels)), levels, fontsize=8, rotation=25 if crowded else 0, ha="right" if crowded else "center", color=INK)
    axes.set_xlim(-0.55, len(levels) - 0.45)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(score.metric, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)


def matrix_figure(values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str, *, signed: bool) -> Figure:
    """A heat map with its numbers written into it. Signed: from −1 to 1, as of correlations; else from the least value to the largest."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = [WORST, "#f7f7f7", BEST] if signed else ["#f3f7fb", DOMAIN_COLOURS[0]]
    known = [value for line in values for value in line if value is not None]
    low, high = (-1.0, 1.0) if signed else (min(known, default=0.0), max(known, default=1.0))
    with figure_style():
        figure = new_figure(2.2 + 0.78 * len(columns) + 0.06 * max(map(len, rows), default=0), 1.5 + 0.42 * len(rows))
        axes = figure.subplots()
        table = [[math.nan if value is None else value for value in line] for line in values]
        colours = LinearSegmentedColormap.from_list("shades", shades)
        axes.pcolormesh(table, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=1.5)
        axes.invert_yaxis()
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value is not None:
                    dark = abs(value) > 0.65 if signed else value - low > 0.6 * (high - low)
                    text = f"{value:.2f}" if signed else f"{value:.3f}"
                    axes.text(
                        x + 0.5, y + 0.5, text.replace("-", "−"), ha="center", va="center", fontsize=8.5, color="#ffffff" if dark else "#1f2938"
                    )
        axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, rotation=30, ha="right", color=INK, fontsize=8.5)
        axes.set_yticks([y + 0.5 for y in range(len(rows))], rows, color=INK, fontsize=8.5)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(title)
        return figure


def map_figure(points: Sequence[tuple[str, float, float, str]], title: str) -> Figure:
    """Models as points on a plane: (label, x, y, series)."""
    looks = {name: SERIES[place % len(SERIES)] for place, name in enumerate(dict.fromkeys(series for *_, series in points))}
    with figure_style():
        figure = new_figure(7.6, 4.2)
        axes = figure.subplots()
        for _, x, y, series in points:
            colour, marker = looks[series]
            axes.plot(x, y, marker, color=colour, markersize=7, alpha=0.85, markeredgewidth=0)
        axes.margins(0.12)
        label_points(axes, [(label, x, y) for label, x, y, _ in points])
        axes.set(xticklabels=[], yticklabels=[], title=title)
        if len(looks) > 1:
            handles = [axes.plot([], [], marker, color=colour, label=name)[0] for name, (colour, marker) in looks.items()]
            axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


def size_curves_figure(curves: Mapping[str, Mapping[str, Any]], scores: Mapping[str, ScoreFacts]) -> Figure:
    """Score against the number of parameters, one panel per score: the fitted curve with the 95 % band of its mean."""
    shown = list(curves.items())[:MOST_PANELS]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    with figure_style():
        figure = new_figure(max(2.75 * columns, 4.0), 0.3 + 2.1 * lines)
        for place, axes in enumerate(figure.subplots(lines, columns, squeeze=False).flat):
            if place < len(shown):
                name, entry = shown[place]
                _draw_size_curve(axes, entry, scores[name])
            else:
                axes.set_axis_off()
        return figure


def _draw_size_curve(axes: Any, entry: Mapping[str, Any], facts: ScoreFacts) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    sizes, values, low, high = zip(*entry["curve"], strict=True)
    axes.fill_between(sizes, low, high, color=DOMAIN_COLOURS[1], alpha=0.3, linewidth=0)
    axes.plot(sizes, values, color=DOMAIN_COLOURS[0], linewidth=1.8)
    axes.set_xscale("log")
    least, largest = sizes[0], sizes[-1]
    axes.set_xticks([least, math.sqrt(least * largest), largest] if largest > least else [least])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: short(size).replace(" ", "")))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=8)
    axes.set_title(facts.label, fontsize=9, pad=16)
    p = number(entry.get("p_holm"))
    if p is not None:
        axes.text(0, 1.03, with_relation(p), transform=axes.transAxes, fontsize=8, color=INK if p < 0.05 else MUTED)
    axes.set_ylabel(facts.metric, fontsize=8)
    axes.set_xlabel("parameters", fontsize=8)
