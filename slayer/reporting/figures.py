"""The figures of a report: plan, loss, held-out scores, learnt and forgotten, and the frontier of a sweep.

Each function returns a matplotlib Figure; picture.py saves it and shows it on a page. Colours are from Okabe and Ito's set, which people
with any colour vision tell apart; every colour also has a sign, a dash or a word of its own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slayer.reporting.numbers import percent
from slayer.reporting.plan_rows import Kind, PlanRow, plan_rows, stage_rows
from slayer.reporting.run_folder import HELDOUT, SOURCE_LOSS, Record, series, source_names, stage_starts
from slayer.reporting.scores import SourceScore
from slayer.surgery.plan import LayerPlan

Figure = Any
"""matplotlib.figure.Figure, imported only where a figure is drawn."""

INK, MUTED, GRID = "#1f2937", "#6b7280", "#d9dee5"
DOMAIN_COLOURS = ("#0072b2", "#56b4e9", "#004c78")
REPLAY_COLOURS = ("#d55e00", "#e69f00", "#8a3d00")
FILLS: dict[Kind, str] = {"kept": "#c3cbd6", "new": "#009e73", "pruned": "none", "tail": "#e69f00"}

STYLE: dict[str, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5, "svg.fonttype": "none", "svg.hashsalt": "slayer",
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": GRID, "axes.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlepad": 12, "legend.frameon": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


@contextmanager
def figure_style() -> Iterator[None]:
    """The look of all figures, for the time they are drawn and saved."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure."""
    # The object, not pyplot: no global state, no backend to choose, nothing to close.
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width_inches, height_inches), layout="constrained")


def source_colours(roles: Mapping[str, str]) -> dict[str, str]:
    """A colour per source: blues for what is to be learnt, oranges for what must be kept."""
    colours: dict[str, str] = {}
    for role, palette in (("domain", DOMAIN_COLOURS), ("replay", REPLAY_COLOURS)):
        for number, source in enumerate(source for source, its_role in roles.items() if its_role == role):
            colours[source] = palette[number % len(palette)]
    return colours


def plan_figure(plan: LayerPlan) -> Figure:
    """The stack of layers from shallow (top) to deep, base indices at the left, indices of the result at the right."""
    with figure_style():
        rows = plan_rows(plan)
        columns = 1 if len(rows) <= 24 else 2 if len(rows) <= 80 else 3
        height = math.ceil(len(rows) / columns)
        figure = new_figure(1.2 + 3.1 * columns, 1.1 + 0.21 * height)
        axes_row = figure.subplots(1, columns, squeeze=False)[0]
        for column, axes in enumerate(axes_row):
            _draw_stack(axes, rows[column * height : (column + 1) * height], height)
        new, pruned = len(plan.new_indices), len(plan.pruned)
        figure.suptitle(f"{plan.n_base} base layers − {pruned} pruned + {new} new = {plan.n_layers}", fontweight="bold", fontsize=11)
        lines = [f"stage {row.number}, {row.until}: {row.parts}" for row in stage_rows(plan)]
        if lines:
            wrapped = [piece for line in lines for piece in textwrap.wrap(line, 34 * columns + 12, subsequent_indent="    ")]
            figure.supxlabel("\n".join([*wrapped, "● trains, ◐ only its norms, in these stages"]), fontsize=7.5, color=MUTED, x=0.04, ha="left")
        return figure


def _draw_stack(axes: Any, rows: Sequence[PlanRow], height: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    for place, row in enumerate(rows):
        left, width = (0.0, 5.0) if row.kind in ("new", "tail") or row.trains_whole else (0.5, 4.0)
        edge = INK if row.trains_whole else "#b42318" if row.kind == "pruned" else "none"
        dash = (0, (3, 2)) if row.kind == "pruned" else "-"
        box = FancyBboxPatch(
            (left, place + 0.12), width, 0.76, boxstyle="round,pad=0,rounding_size=0.18", facecolor=FILLS[row.kind],
            edgecolor=edge, linestyle=dash, linewidth=0.9, mutation_aspect=1,
        )  # fmt: skip
        axes.add_patch(box)
        word = {"kept": "", "new": "new", "pruned": "pruned", "tail": "tail"}[row.kind]
        label = f"{word} · {row.note}" if row.note and word else word
        colour = "white" if row.kind == "new" else "#b42318" if row.kind == "pruned" else INK
        axes.text(2.5, place + 0.5, label, ha="center", va="center", fontsize=7.5, color=colour)
        axes.text(-0.25, place + 0.5, row.base_label, ha="right", va="center", fontsize=7.5, color=MUTED)
        mark = "" if row.kind == "pruned" else row.stage_mark or ("● trained" if row.trains else "❄")
        axes.text(5.25, place + 0.5, f"{row.index_label:>2} {mark}", va="center", fontsize=7.5, color=INK if row.trains_whole else MUTED)
    axes.text(-0.25, -0.3, "base", ha="right", fontsize=7.5, color=MUTED)
    axes.text(5.25, -0.3, "result", fontsize=7.5, color=MUTED)
    axes.set(xlim=(-1.1, 7.0), ylim=(height + 0.1, -0.8))
    axes.set_axis_off()


def loss_figure(training: tuple[Record, ...], roles: Mapping[str, str], events: Sequence[Record] = ()) -> Figure:
    """Training loss per source, raw faint and smoothed, with the learning rate below. Lines where a freeze stage begins, signs at the
    foot where a step was skipped or the run went back (`events`: lines of events.jsonl)."""
    with figure_style():
        figure = new_figure(7.6, 3.9)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
        sources = source_names(training, SOURCE_LOSS)
        colours = source_colours({source: roles.get(source, "domain") for source in sources})
        lines = [(source, SOURCE_LOSS + source, colours[source]) for source in sources] or [("all text", "loss", DOMAIN_COLOURS[0])]
        for label, key, colour in lines:
            steps, values = series(training, key)
            upper.plot(steps, values, color=colour, alpha=0.28, linewidth=0.9)
            upper.plot(steps, smooth(values), color=colour, linewidth=2, label=label)
        _mark_stages((upper, lower), stage_starts(training))
        _mark_events(upper, events)
        upper.set(ylabel="nats per token", title="Training loss")
        upper.legend(loc="upper right", ncols=len(upper.get_legend_handles_labels()[1]))
        upper.margins(y=0.15)
        lower.plot(*series(training, "lr"), color=MUTED, linewidth=1.4)
        lower.set(xlabel="step", ylabel="rate")
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        lower.yaxis.get_offset_text().set_fontsize(7.5)
        lower.set_ylim(bottom=0)
        return figure


def _mark_stages(both: Sequence[Any], starts: Sequence[tuple[int, int]]) -> None:
    for step, stage in starts:
        for axes in both:
            axes.axvline(step - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        both[0].annotate(
            f"stage {stage}", (step - 0.5, 0), (4, 4), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8, color=MUTED
        )


def _mark_events(axes: Any, events: Sequence[Record]) -> None:
    """Signs stand on the lower edge, as high as the figure's own words, whatever the losses are."""
    listed = [event["steps"] for event in events if event.get("event") == "skipped" and isinstance(event.get("steps"), list)]
    skipped = [step for steps in listed for step in steps if isinstance(step, int)]
    rewinds = [event["to_step"] for event in events if event.get("event") == "rewind" and isinstance(event.get("to_step"), int)]
    for steps, marker, colour, label in ((skipped, "x", REPLAY_COLOURS[0], "skipped step"), (rewinds, "<", INK, "went back to")):
        if steps:
            axes.plot(steps, [0.0] * len(steps), marker, color=colour, clip_on=False, transform=axes.get_xaxis_transform(), label=label, zorder=4)


def smooth(values: Sequence[float], *, window_share: float = 0.12) -> list[float]:
    """Centred mean over about an eighth of the run: unlike a running one it does not lag behind a falling loss."""
    reach = int(len(values) * window_share / 2)
    result = []
    for place in range(len(values)):
        # The window shrinks evenly towards both ends, so that it stays centred.
        side = min(reach, place, len(values) - 1 - place)
        near = [value for value in values[place - side : place + side + 1] if math.isfinite(value)]
        result.append(sum(near) / len(near) if near else math.nan)
    return result


def heldout_figure(heldout: tuple[Record, ...], scores: Sequence[SourceScore]) -> Figure:
    """Held-out bits per byte over the steps, with the unpruned base as a dashed line per source."""
    with figure_style():
        figure = new_figure(7.6, 3.4)
        axes = figure.subplots()
        roles = {score.source: score.role for score in scores}
        names = list(dict.fromkeys([*roles, *source_names(heldout, HELDOUT)]))
        colours = source_colours({name: roles.get(name, "domain") for name in names})
        bases = {score.source: score.base for score in scores}
        for name in names:
            steps, values = series(heldout, HELDOUT + name)
            axes.plot(steps, values, color=colours[name], linewidth=2, marker="o", markersize=4.5, label=name)
            if bases.get(name) is not None:
                axes.axhline(bases[name], color=colours[name], linestyle=(0, (5, 3)), linewidth=1.2, label=f"base on {name}")
        axes.set(xlabel="step", ylabel="bits per byte", title="Held-out text (lower is better)")
        axes.margins(y=0.12)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


def change_figure(scores: Sequence[SourceScore]) -> Figure:
    """Learnt and forgotten: change of bits per byte against the base, per source, with 95 % intervals."""
    with figure_style():
        scored = [score for score in scores if score.change_percent is not None]
        figure = new_figure(7.6, 1.35 + 0.55 * len(scored))
        axes = figure.subplots()
        colours = source_colours({score.source: score.role for score in scored})
        ends = [0.0]
        for place, score in enumerate(scored):
            change = score.change_percent or 0.0
            low, high = score.change_interval_percent or (change, change)
            ends += [low, high]
            axes.barh(place, change, height=0.5, color=colours[score.source], alpha=0.85)
            axes.errorbar(change, place, xerr=[[max(0.0, change - low)], [max(0.0, high - change)]], color=INK, capsize=3, linewidth=1.3)
            outside = low if change < 0 else high
            offset, side = ((-6, 0), "right") if change < 0 else ((6, 0), "left")
            label = f"{percent(change)}  {score.verdict}"
            axes.annotate(label, (outside, place), offset, textcoords="offset points", ha=side, va="center", fontweight="bold", fontsize=9)
        span = max(ends) - min(ends) or 1.0
        axes.set_xlim(min(ends) - 0.8 * span, max(ends) + 0.8 * span)  # room for the labels
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(scored)), [f"{score.source}\n{score.role}" for score in scored], color=INK)
        axes.set_ylim(len(scored) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set(
            xlabel="change of bits per byte against the base, %   (left of the line: better)", title="Change against the base, with 95 % intervals"
        )
        return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One run of a sweep: percent changes of bits per byte on replay and domain text; negative is better."""

    label: str
    replay_percent: float
    domain_percent: float
    replay_interval: tuple[float, float] | None = None
    domain_interval: tuple[float, float] | None = None
    best: bool = False
    series: str = ""


FORGOTTEN_LABEL = "forgotten: change on replay text, %   (left is better)"
LEARNT_LABEL = "learnt: bits per byte saved, %"
SERIES = ((DOMAIN_COLOURS[0], "o"), (REPLAY_COLOURS[1], "s"), (FILLS["new"], "^"), (REPLAY_COLOURS[0], "D"), (DOMAIN_COLOURS[1], "v"), (MUTED, "P"))
"""Colour and marker of each series; further ones begin again."""


def frontier_figure(points: Sequence[FrontierPoint], *, x_label: str = FORGOTTEN_LABEL, y_label: str = LEARNT_LABEL) -> Figure:
    """Forgotten to the right, learnt upwards; the line joins the runs that no other run beats on both. Points of one series look alike."""
    looks = {name: SERIES[place % len(SERIES)] for place, name in enumerate(dict.fromkeys(point.series for point in points))}
    with figure_style():
        figure = new_figure(7.6, 4.4)
        axes = figure.subplots()
        best_path = pareto(points)
        axes.plot([p.replay_percent for p in best_path], [-p.domain_percent for p in best_path], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for point in points:
            colour, marker = looks[point.series]
            colour = FILLS["new"] if point.best else colour
            x, y = point.replay_percent, -point.domain_percent
            x_error = _bars(x, point.replay_interval)
            y_error = _bars(y, tuple(sorted(-bound for bound in point.domain_interval)) if point.domain_interval else None)
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt=marker, color=colour, markersize=7, linewidth=0.9, capsize=0, alpha=0.9)
        labels = [f"{point.label}{' (best)' if point.best else ''}" for point in points]
        spots = [(label, point.replay_percent, -point.domain_percent) for label, point in zip(labels, points, strict=True)]
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.margins(x=0.25, y=0.2)
        label_points(axes, spots, bold=[label for label, point in zip(labels, points, strict=True) if point.best])
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_title("What each run learnt and what it forgot (upper left is best)")
        if len(looks) > 1:
            handles = [axes.plot([], [], marker, color=colour, label=name)[0] for name, (colour, marker) in looks.items()]
            axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
        return figure


_LABEL_PLACES = ((7, 6), (-7, 6), (7, -6), (-7, -6), (0, 12), (0, -12), (7, 17), (-7, 17))


def label_points(axes: Any, points: Sequence[tuple[str, float, float]], bold: Collection[str] = ()) -> None:
    """Write each (label, x, y) beside its point, at the first place inside the axes that no earlier label and no other point has (by a rough guess
    of sizes). What belongs to the axes and how far they go is settled before."""
    width, height = _size_points(axes)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = [((x - left) / (right - left) * width, (y - low) / (high - low) * height) for _, x, y in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (text, *spot), (x, y) in zip(points, places, strict=True):
        boxes = [_label_box(x + dx, y + dy, text, _side(dx)) for dx, dy in _LABEL_PLACES]
        free = [not any(_overlap(box, other) for other in taken) for box in boxes]
        inside = [is_free and box[0] >= 0 and box[2] <= width for is_free, box in zip(free, boxes, strict=True)]
        chosen = inside.index(True) if any(inside) else free.index(True) if any(free) else 0
        taken.append(boxes[chosen])
        offset = _LABEL_PLACES[chosen]
        weight = "bold" if text in bold else "normal"
        axes.annotate(text, spot, offset, textcoords="offset points", ha=_side(offset[0]), va="center", fontsize=8.5, fontweight=weight)


def _size_points(axes: Any) -> tuple[float, float]:
    """Width and height of the axes, as far as they are known before they are laid out."""
    width, height = axes.get_figure().get_size_inches()
    position = axes.get_position()
    return width * position.width * 72, height * position.height * 72


def _side(dx: float) -> str:
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _label_box(x: float, y: float, text: str, side: str) -> tuple[float, float, float, float]:
    width = 5.2 * len(text)
    left = x if side == "left" else x - width if side == "right" else x - width / 2
    return left, y - 4.5, left + width, y + 4.5


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _bars(value: float, bounds: Sequence[float] | None) -> list[list[float]] | None:
    return [[max(0.0, value - bounds[0])], [max(0.0, bounds[1] - value)]] if bounds else None


def pareto(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no other point beats on both counts, in order of what they forgot."""
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda point: (point.replay_percent, point.domain_percent)):
        if not best or point.domain_percent < best[-1].domain_percent:
            best.append(point)
    return best
