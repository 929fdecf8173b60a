"""A sweep in the terminal: the ranking, what is not finished, and what to type next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slayer.reporting.benchmark_table import print_sentences
from slayer.reporting.console import open_console, print_finished, print_next
from slayer.reporting.numbers import MISSING, fixed, percent
from slayer.reporting.scores import RoleChange
from slayer.reporting.sweep_points import Sweep, SweepPoint, read_sweep
from slayer.reporting.sweep_words import counts_sentence, front_word, next_commands, sentences, verdict


def print_sweep(sweep_dir: Path, *, console: Console | None = None) -> None:
    """The page in short."""
    console = console or open_console()
    sweep = read_sweep(sweep_dir)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title="Sweep", title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    for key in sweep.keys:
        table.add_column(key.rpartition(".")[2], overflow="fold", no_wrap=len(sweep.keys) <= 2)
    for name in ("objective", "behind", "learnt", "forgotten"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold", max_width=24)
    for place, point in enumerate(sweep.ranked):
        _add_ranked(table, sweep, place, point)
    for point in sweep.others:
        said = point.short_error or point.status
        style = "red" if point.status == "failed" else "dim"
        table.add_row(str(point.number), *_values(point, sweep), *[MISSING] * 4, Text(said), style=style)
    console.print()
    console.print(table)
    print_sentences([counts_sentence(sweep), *sentences(sweep)], console)
    print_finished(sweep_dir / "report.html", console=console)
    if sweep.best is not None:
        print_next(next_commands(sweep), console=console)


def _add_ranked(table: Table, sweep: Sweep, place: int, point: SweepPoint) -> None:
    standing = sweep.standings[place]
    word = verdict(standing, place)
    front = front_word(sweep, place)
    said = ", ".join(one for one in (word, front) if one != MISSING) or point.status
    behind = MISSING if standing.behind is None else f"+{fixed(standing.behind, 4)}"
    table.add_row(
        str(point.number), *_values(point, sweep), fixed(point.objective, 4), behind, _percent(point.learnt), _percent(point.forgotten), Text(said),
        style="bold green" if place == 0 else "",
    )  # fmt: skip


def _values(point: SweepPoint, sweep: Sweep) -> list[Text]:
    return [Text(point.overrides.get(key, MISSING)) for key in sweep.keys]


def _percent(change: RoleChange | None) -> str:
    return percent(change.percent) if change else MISSING
