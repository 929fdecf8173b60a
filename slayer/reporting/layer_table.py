"""Layer scores in the terminal: a table of layers and the main scores, the ends of every ranking, and what it all says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from slayer.importance.table import LayerTable, Measurement
from slayer.reporting.benchmark_table import print_sentences
from slayer.reporting.layer_scores import by_importance, main_first, ordering, ranks, score_words, sources_of, three_figures, title_of, unit_of
from slayer.reporting.layer_words import choice_sentences, failed_sentences, layer_sentences
from slayer.reporting.numbers import MISSING

BARS = "▁▂▃▄▅▆▇█"
BARS_NOTE = "Bars: rank within the column, the tallest is the most important layer."
LEAST, MOST = 5, 3
"""Layers named at either end of a ranking."""
FIRST_COLUMN, COLUMN = 5, 12
"""Characters of the labels, and of a column: a number, a bar, and room for its heading."""


def print_layers(table: LayerTable, console: Console) -> None:
    """The main scores by layer, as many as fit, those of one text beside each other; the ends of every ranking; sentences."""
    chosen = ordering(table)
    console.print()
    if not chosen:
        print_sentences(layer_sentences(table), console)
        return
    new = sum(layer.new for layer in table.layers)
    n_layers = f"{len(table.layers)} layers" + (f", {new} of them new (+7: behind base layer 7)" if new else "")
    console.print(Text.assemble(("Layers", "bold"), (f"  {table.model} · {n_layers}", "dim")))
    shown = fitting(chosen, console.width)
    for line in _score_lines(table, shown):
        console.print(line, no_wrap=True, overflow="ellipsis")
    units = "; ".join(f"{score_words(one.score)}: {unit_of(table, one)}" for one in {one.score: one for one in shown}.values())
    console.print(Text(f"{units}. {BARS_NOTE}", style="dim"))
    console.print()
    for line in end_lines(table, chosen):
        console.print(line, no_wrap=True, overflow="ellipsis")
    failed = failed_sentences(table)
    if failed:
        console.print()
        for sentence in failed:
            console.print(Text(sentence, style="yellow"))
    console.print()
    print_sentences(layer_sentences(table), console)
    console.print()


def fitting(measurements: Sequence[Measurement], width: int) -> list[Measurement]:
    """As many as fit beside one another, the main scores first, every text with the same ones; those of a text stand together."""
    room = max(1, (width - FIRST_COLUMN) // COLUMN)
    by_score: dict[str, list[Measurement]] = {}
    for one in main_first(measurements):
        by_score.setdefault(one.score, []).append(one)
    taken: list[Measurement] = []
    for its_measurements in by_score.values():
        if len(taken) + len(its_measurements) <= room:
            taken += its_measurements
    taken = taken or main_first(measurements)[:room]
    sources = sources_of(measurements)
    return sorted(taken, key=lambda one: sources.index(one.source))


def _score_lines(table: LayerTable, shown: Sequence[Measurement]) -> list[Text]:
    """Text by text a group of columns under its name, a line per layer."""
    sources = Text(" " * FIRST_COLUMN)
    in_group = {source: sum(one.source == source for one in shown) for source in sources_of(shown)}
    column = max(COLUMN, *(-(-(len(source or "weights") + 2) // n_columns) for source, n_columns in in_group.items()))
    for source, n_columns in in_group.items():
        width = column * n_columns - 2
        name = source or "weights"
        sources.append("  " + (f" {name} ".center(width, "─") if len(name) + 2 <= width else name.rjust(width)))
    words = [score_words(one.score).partition(" ") for one in shown]
    above = "".join(_clipped(first if rest else "", column - 1).rjust(column) for first, _, rest in words)
    below = "".join(_clipped(rest or first, column - 1).rjust(column) for first, _, rest in words)
    heads = [sources, Text(" " * FIRST_COLUMN + above), Text("layer".rjust(FIRST_COLUMN) + below)]
    for line in heads:
        line.stylize("dim")
    every = [(one, ranks(one)) for one in shown]
    lines = []
    for layer in table.layers:
        line = Text.assemble((layer.label.rjust(FIRST_COLUMN), "bold green" if layer.new else ""))
        for one, its_ranks in every:
            line.append_text(_cell(one.by_layer[layer.index], its_ranks[layer.index], its_ranks, column))
        lines.append(line)
    return [*heads, *lines]


def _clipped(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _cell(value: float, rank: float, its_ranks: Sequence[float], column: int) -> Text:
    if not math.isfinite(rank):
        return Text(f"{MISSING}  ".rjust(column), style="yellow")
    n_known = sum(map(math.isfinite, its_ranks))
    height = (n_known - rank) / max(1, n_known - 1)
    style = "bold" if rank <= MOST else "dim" if rank > n_known - LEAST else ""
    return Text.assemble((three_figures(value).rjust(column - 2), style), " ", (BARS[round(height * (len(BARS) - 1))], "blue"))


def end_lines(table: LayerTable, measurements: Sequence[Measurement]) -> list[Text]:
    """One line per score: its least and its most important layers, the extreme ones first."""
    titles = [title_of(one) for one in measurements]
    ends = [(by_importance(one)[:LEAST], by_importance(one)[::-1][:MOST]) for one in measurements]
    told = [tuple(", ".join(table.layers[layer].label for layer in end) for end in both) for both in ends]
    left, middle = max(map(len, titles)), max([len(least) for least, _ in told] + [len("least important")])
    lines = [Text(f"{'':{left}}  {'least important':{middle}}  most important", style="dim")]
    for title, (least, most) in zip(titles, told, strict=True):
        lines.append(Text.assemble(f"{title:{left}}", "  ", (f"{least:{middle}}", "cyan"), "  ", (most, "bold")))
    return lines


def print_choice(choice: Mapping[str, Any], console: Console) -> None:
    """What a plan's own choice of layers costs here, beside what the scores would choose."""
    print_sentences(choice_sentences(choice), console)
