"""The course of a search: what each trial came to, and the best so far."""

from __future__ import annotations

from collections.abc import Sequence

from slayer.reporting.figures import DOMAIN_COLOURS, FILLS, MUTED, Figure, figure_style, new_figure


def course_figure(numbers: Sequence[int], objectives: Sequence[float], objective_name: str) -> Figure:
    """Objectives (lower is better) by number of the trial, in that order, and the lowest so far as a line."""
    lowest = [min(objectives[: place + 1]) for place in range(len(objectives))]
    best = objectives.index(lowest[-1])
    with figure_style():
        figure = new_figure(7.6, 3.2)
        axes = figure.subplots()
        axes.step(numbers, lowest, where="post", color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="best so far")
        axes.plot(numbers, objectives, "o", color=DOMAIN_COLOURS[0], markersize=6, alpha=0.9, label="a trial")
        axes.plot([numbers[best]], [objectives[best]], "o", color=FILLS["new"], markersize=8, label="the best")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.15)
        axes.set(xlabel="trial", ylabel=objective_name.replace("_", " "), title="The course of the search (lower is better)")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure
