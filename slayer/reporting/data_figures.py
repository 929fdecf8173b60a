"""The figures of the data report: the mixture over the run, and how long the documents of each source are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slayer.reporting.figures import INK, Figure, figure_style, new_figure, source_colours
from slayer.reporting.numbers import count, share, short

HATCHES = ("", "///", "...", "xxx")
"""A palette has three colours a role: sources beyond that get a pattern as well."""


def source_looks(sources: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """(colour, hatch) of each source, the same in every figure."""
    roles = {str(source["name"]): "replay" if source.get("role") == "replay" else "domain" for source in sources}
    colours, seen = source_colours(roles), dict.fromkeys(("domain", "replay"), 0)
    looks = {}
    for name, role in roles.items():
        looks[name] = (colours[name], HATCHES[seen[role] // 3 % len(HATCHES)])
        seen[role] += 1
    return looks


def is_reached(stage: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """False for a stage that begins after the last step of the run."""
    return not stage.get("from_step") or facts.get("steps") is None or stage["from_step"] < facts["steps"]


def mixture_figure(facts: Mapping[str, Any]) -> Figure:
    """Shares of the sources, of trained tokens, one above the other over the tokens of the run; a stage begins at a step in the bands."""
    with figure_style():
        stages, tokens = [stage for stage in facts["stages"] if is_reached(stage, facts)], float(facts["tokens"])
        starts = [min(float(stage.get("from_tokens") or 0), tokens) for stage in stages]
        figure = new_figure(7.6, 2.1 if len(stages) == 1 else 2.9)
        axes = figure.subplots()
        below = [0.0] * (len(stages) + 1)
        for name, (colour, hatch) in source_looks(facts["sources"]).items():
            shares = [100 * float(stage.get("shares", {}).get(name) or 0) for stage in stages]
            above = [low + part for low, part in zip(below, [*shares, shares[-1]], strict=True)]
            told = " → ".join(dict.fromkeys(share(part, 100) for part in shares))
            axes.fill_between(
                [*starts, tokens], below, above, step="post", color=colour, hatch=hatch, edgecolor="white", linewidth=1.2, label=f"{name}  {told}"
            )
            below = above
        for start in starts[1:]:
            axes.axvline(start, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        axes.set(xlim=(0, tokens), ylim=(0, 100), xlabel="trained tokens", ylabel="% of tokens", title="The mixture over the run")
        axes.xaxis.set_major_formatter(lambda value, _: short(value).replace(".0 ", " "))
        axes.grid(visible=False)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))  # in the order of the bands
        return figure


def lengths_figure(facts: Mapping[str, Any]) -> Figure:
    """Histograms of document lengths in tokens, one above the other on one logarithmic axis, the length of a row marked."""
    with figure_style():
        shown = [source for source in facts["sources"] if sum(source.get("lengths", {}).get("documents") or ())]
        looks, row_tokens = source_looks(facts["sources"]), facts.get("sequence_length")
        columns = 1 if len(shown) <= 4 else 2
        lines = -(-len(shown) // columns)
        figure = new_figure(7.6, 0.9 + 1.25 * lines)
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
        for place, source in enumerate(shown):
            _draw_lengths(grid[place // columns][place % columns], source, looks[str(source["name"])], row_tokens, mark_row=place < columns)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xscale("log")
            axes.set_xlabel("tokens in a document")
            axes.xaxis.set_major_locator(_round_ticks(*axes.get_xlim()))
            axes.xaxis.set_major_formatter(lambda value, _: count(value) if value < 10_000 else short(value).replace(".0", ""))
            axes.minorticks_off()
        figure.suptitle("How long the documents are", x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def _draw_lengths(axes: Any, source: Mapping[str, Any], look: tuple[str, str], row_tokens: float | None, *, mark_row: bool) -> None:
    counts = source["lengths"]["documents"]
    held = [place for place, documents in enumerate(counts) if documents]
    counts = counts[held[0] : held[-1] + 1]
    edges = [max(float(edge), 0.5) for edge in source["lengths"]["edges_tokens"][held[0] : held[-1] + 2]]  # a logarithm has no zero
    axes.stairs(counts, edges, fill=True, color=look[0], hatch=look[1], edgecolor="white", linewidth=0.4)
    axes.set_ylim(0, 1.25 * max(counts))
    axes.set_title(str(source["name"]), fontsize=9, pad=4, fontweight="normal")
    axes.yaxis.set_major_locator(_few_ticks())
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(axis="x", visible=False)
    if row_tokens:
        axes.axvline(row_tokens, color=INK, linewidth=1, linestyle=(0, (3, 3)))
        if mark_row:
            at = (row_tokens, axes.get_ylim()[1])
            axes.annotate(f"a row: {count(row_tokens)}", at, (4, -9), textcoords="offset points", fontsize=8)


def _round_ticks(low: float, high: float) -> Any:
    """Ticks at 1, 10, 100 …, and at 2 and 5 between them where the axis is short."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1.0, 2.0, 5.0) if high < 1_000 * low else (1.0,), numticks=20)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, integer=True)
