"""The picture of the goodput drill: what the faults did to the steps, and how long each kind of fault takes to recover from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from drill_goodput import Goodput
from drill_job import KINDS, Fault

from slayer.reporting.figures import DOMAIN_COLOURS, FILLS, INK, MUTED, REPLAY_COLOURS, figure_style, new_figure
from slayer.reporting.picture import save_figure

COLOURS = dict(zip(KINDS, (REPLAY_COLOURS[0], DOMAIN_COLOURS[0], FILLS["new"], REPLAY_COLOURS[1], "#cc79a7"), strict=True))
MARKS = dict(zip(KINDS, "Xso^D", strict=True))
PARTS = (
    ("noticed", "until it is noticed", "#9aa3af"),
    ("resumed", "until a checkpoint is loaded", "#c3cbd6"),
    ("recovered", "until a step", "#e5e8ec"),
)


def write_goodput_figure(goodput: Goodput, folder: Path) -> None:
    """goodput.svg and goodput.png."""
    with figure_style():
        figure = new_figure(7.6, 6.2)
        upper, lower = figure.subplots(2, 1, height_ratios=[5, 3])
        _draw_timeline(upper, goodput)
        _draw_recoveries(lower, goodput)
    save_figure(figure, folder, "goodput")


def _draw_timeline(axes: Any, goodput: Goodput) -> None:
    for piece in unbroken(goodput.timeline):
        axes.plot([seconds for seconds, _ in piece], [step for _, step in piece], color=INK, linewidth=1.6, solid_capstyle="round")
    for kind, faults in goodput.by_kind.items():
        axes.scatter(
            [fault.at for fault in faults], [fault.step for fault in faults], color=COLOURS[kind], marker=MARKS[kind], s=42, zorder=3, label=kind,
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
    axes.set(xlabel="seconds of wall time", ylabel="step", xlim=(0, goodput.wall_seconds))
    axes.set_title(goodput.shares)
    axes.legend(loc="lower right", fontsize=8)


def unbroken(timeline: Sequence[tuple[float, int]]) -> list[list[tuple[float, int]]]:
    """The stretches in which steps followed one another: apart where it took long, or where steps were done again."""
    pieces = [[timeline[0]]] if timeline else []
    for before, now in pairwise(timeline):
        if now[1] <= before[1] or now[0] - before[0] > 2.0:
            pieces.append([])
        pieces[-1].append(now)
    return pieces


def _draw_recoveries(axes: Any, goodput: Goodput) -> None:
    """A bar a kind, of medians; a mark a fault."""
    for place, (kind, faults) in enumerate(goodput.by_kind.items()):
        left = 0.0
        for part, label, colour in PARTS:
            right = statistics.median(_seconds(fault, part) for fault in faults)
            axes.barh(place, max(right - left, 0.0), left=left, color=colour, height=0.62, label=label if place == 0 else None)
            left = max(left, right)
        axes.scatter(
            [_seconds(fault, "recovered") for fault in faults], [place] * len(faults), color=COLOURS[kind], marker=MARKS[kind], s=30, zorder=3,
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        axes.text(left + 0.15, place - 0.36, f"{left:.1f} s", fontsize=8, color=MUTED, va="center")
    axes.set_yticks(range(len(goodput.by_kind)), list(goodput.by_kind))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="seconds from the fault to the first step after it", xlim=(0, None))
    axes.set_title(f"median recovery {goodput.median_recovery_seconds:.1f} s")
    axes.legend(loc="upper center", fontsize=8, ncols=3, bbox_to_anchor=(0.5, -0.3))


def _seconds(fault: Fault, part: str) -> float:
    return float(getattr(fault, part) or 0.0)
