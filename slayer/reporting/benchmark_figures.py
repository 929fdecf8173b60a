"""The figures of benchmarks: changes with their intervals, what moved in the predictions, scores while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slayer.reporting.benchmark_scores import Role, TaskRow, score, shift_shares
from slayer.reporting.figures import DOMAIN_COLOURS, FILLS, GRID, INK, MUTED, REPLAY_COLOURS, Figure, figure_style, new_figure
from slayer.reporting.numbers import percent
from slayer.reporting.run_folder import TASKS, Record, series, source_names

VERDICT_COLOURS = {"learnt": FILLS["new"], "forgotten": REPLAY_COLOURS[0]}
MARKERS = {"learnt": "^", "forgotten": "v"}
ROLE_WORDS: dict[Role, str] = {"domain": "to learn", "general": "to keep"}
SHIFT_COLOURS = (DOMAIN_COLOURS[1], REPLAY_COLOURS[1], REPLAY_COLOURS[0])


def task_change_figure(rows: Sequence[TaskRow]) -> Figure:
    """One row per task: change and 95 % interval on the task's noise floor. Each metric that does not count right answers has its own axis.

    Better is always at the right: where lower scores are better the axis is turned round.
    """
    panels: dict[str, list[TaskRow]] = {}
    for row in rows:
        if row.change is not None:
            panels.setdefault("" if row.higher_is_better else row.metric, []).append(row)
    with figure_style():
        heights = [len(panel) + 1.5 for panel in panels.values()]
        figure = new_figure(8.2, 0.75 + 0.3 * sum(heights) + 0.35 * (len(panels) - 1))
        axes_column = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, panel) in zip(axes_column, panels.items(), strict=True):
            _draw_changes(axes, panel, metric)
        axes_column[0].set_title("Change against the base, with 95 % intervals", pad=14)
        _change_legend(axes_column[-1])
        return figure


def _draw_changes(axes: Any, rows: Sequence[TaskRow], metric: str) -> None:
    for place, row in enumerate(rows):
        change = row.change or 0.0
        low, high = row.change_interval or (change, change)
        if row.noise_floor:
            axes.barh(place, 2 * row.noise_floor, left=-row.noise_floor, height=0.72, color=GRID, alpha=0.75, linewidth=0)
        colour = VERDICT_COLOURS.get(row.verdict, MUTED)
        axes.errorbar(
            change, place, xerr=[[max(0.0, change - low)], [max(0.0, high - change)]], fmt=MARKERS.get(row.verdict, "o"), color=colour,
            markerfacecolor=colour if row.verdict in MARKERS else "white", markersize=6.5, linewidth=1.6, capsize=0,
        )  # fmt: skip
        weight = "bold" if row.verdict in MARKERS else "normal"
        axes.annotate(
            f"{score(row.base)} → {score(row.result)}", (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
            color=INK, fontweight=weight, annotation_clip=False,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    labels = [f"{'    ' * row.depth}{row.name}{f' ({row.tasks})' if row.tasks else ''}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, color=INK, fontsize=9)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(DOMAIN_COLOURS[0] if row.role == "domain" else INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    for place in range(1, len(rows)):
        if rows[place].role != rows[place - 1].role:
            axes.axhline(place - 0.5, color=MUTED, linewidth=0.8)
    axes.margins(x=0.08)
    axes.set_xlabel(
        f"{metric}, lower is better: axis turned round (right: better)" if metric else "score, as a fraction (right: better)", fontsize=8.5
    )
    if metric:
        axes.invert_xaxis()


def _change_legend(axes: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [
        ("better", FILLS["new"], "^", FILLS["new"]),
        ("worse", REPLAY_COLOURS[0], "v", REPLAY_COLOURS[0]),
        ("no change detected", MUTED, "o", "white"),
    ]
    handles: list[Any] = [Line2D([], [], color=colour, marker=mark, markerfacecolor=face, label=word) for word, colour, mark, face in marks]
    handles.append(Patch(color=GRID, alpha=0.75, label="noise floor"))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)


def shift_figure(shift: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Where the result's first choices stood in the base's ranking, in percent of tokens, one bar per source."""
    shown = [(source, shares) for source, entry in shift.items() if (shares := shift_shares(entry)) is not None]
    with figure_style():
        figure = new_figure(7.6, 1.45 + 0.45 * len(shown))
        axes = figure.subplots()
        words = ("unshifted: first", "marginal: second or third", "shifted: further down")
        for place, (_, shares) in enumerate(shown):
            left = 0.0
            for part, colour in zip(shares, SHIFT_COLOURS, strict=True):
                axes.barh(place, part, left=left, height=0.55, color=colour, linewidth=0)
                left += part
            label = " / ".join(percent(part, signed=False) for part in shares)
            axes.annotate(label, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, annotation_clip=False)
        axes.set_yticks(range(len(shown)), [source for source, _ in shown], color=INK)
        axes.set(
            xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), xlabel="% of tokens", title="Where the result's first choice stood in the base's ranking"
        )
        axes.grid(axis="y", visible=False)
        _shift_legend(axes, words)
        return figure


def _shift_legend(axes: Any, words: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=word) for word, colour in zip(words, SHIFT_COLOURS, strict=True)]
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)


def task_curves_figure(records: tuple[Record, ...], rows: Sequence[TaskRow]) -> Figure:
    """Scores of tasks over the steps; chance, where it is near, is dotted."""
    names = curve_names(records)
    known = {row.name: row for row in rows}
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    with figure_style():
        figure = new_figure(8.2 if columns > 1 else 5.2, 0.5 + 1.75 * lines)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(names):
                axes.set_axis_off()
                continue
            _draw_curve(axes, names[place], series(records, TASKS + names[place]), known.get(names[place]))
        for axes in list(grid.flat)[max(0, len(names) - columns) : len(names)]:
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
        return figure


def _draw_curve(axes: Any, name: str, points: tuple[list[int], list[float]], row: TaskRow | None) -> None:
    from matplotlib.ticker import MaxNLocator

    colour = DOMAIN_COLOURS[0] if row is None or row.role == "domain" else REPLAY_COLOURS[0]
    axes.plot(*points, color=colour, linewidth=1.8, marker="o", markersize=3.5)
    axes.set_title(name, fontsize=9, pad=5)
    axes.margins(y=0.15)
    if row is not None:
        axes.set_ylabel(row.metric, fontsize=8)
        if row.chance is not None:
            shown = axes.get_ylim()
            axes.axhline(row.chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.set_ylim(shown)  # chance far away would flatten the curve
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def curve_names(records: tuple[Record, ...]) -> list[str]:
    """Tasks with at least two points over the steps."""
    return [name for name in source_names(records, TASKS) if len(series(records, TASKS + name)[0]) > 1]
