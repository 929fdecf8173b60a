"""Benchmarks and forgetting in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from slayer.reporting.benchmark_scores import TaskRow, asked, benchmarks_of, probability, score, span, task_rows
from slayer.reporting.benchmark_words import chance_sentence, forgetting_sentences, noise_sentence, sampling_sentence, source_sentence
from slayer.reporting.console import open_console

VERDICT_STYLES = {"learnt": "bold green", "forgotten": "bold red"}


def print_benchmarks(results: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Scores of every task, base beside result, with the change, its 95 % interval, p after Holm and the verdict; what was asked below."""
    console = console or open_console()
    rows = task_rows(results)
    if not rows:
        return
    compared = any(row.base is not None for row in rows)
    console.print()
    console.print(Text.assemble(("Benchmarks", "bold"), (f"  {_title(results)}", "dim")))
    table = _wide_table(rows, compared)
    if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
        console.print(table)
    else:  # two lines a task
        for line in _narrow_lines(rows, compared, console.width):
            console.print(line, no_wrap=True, overflow="ellipsis")
    notes = [chance_sentence(rows), sampling_sentence(results, rows), noise_sentence(rows), source_sentence(results)]
    for note in filter(None, notes):
        console.print(Text(note, style="dim"))
    console.print()


def _title(results: Mapping[str, Any]) -> str:
    benchmarks = benchmarks_of(results)
    names = " → ".join(str(name) for name in (benchmarks.get("base"), benchmarks.get("result")) if name)
    suite = f"suite {benchmarks['suite']}" if benchmarks.get("suite") else ""
    decoding = benchmarks.get("decoding")
    decoded = f"decoding {decoding}" if decoding and decoding != "task" else ""
    return " · ".join(part for part in (suite, names, decoded) if part)


def _name(row: TaskRow) -> str:
    return "  " * row.depth + row.name + (f" ({row.tasks} tasks)" if row.tasks else "")


def _shots(row: TaskRow) -> str:
    return "–" if row.num_fewshot is None else str(row.num_fewshot)


def _verdict(row: TaskRow) -> Text:
    return Text(row.verdict, style=VERDICT_STYLES.get(row.verdict, "dim"))


def _result(row: TaskRow) -> str:
    return score(row.result) + ("*" if row.at_chance else " ")


def _colour(row: TaskRow) -> str:
    return "blue" if row.role == "domain" else "magenta"


def _wide_table(rows: Sequence[TaskRow], compared: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("task", no_wrap=True)
    table.add_column("shots", justify="right", no_wrap=True)
    table.add_column("items", justify="right", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for name in ("base", "result", "change", "95 % interval", "p Holm") if compared else ("result", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    if compared:
        table.add_column("verdict", no_wrap=True)
    for row in rows:
        style = "" if row.depth == 0 else "dim"
        scores = (
            (score(row.base), _result(row), Text(score(row.change, signed=True), style="bold"), span(row.change_interval, signed=True),
             probability(row.p_holm), _verdict(row))
            if compared
            else (_result(row), span(row.result_interval))
        )  # fmt: skip
        what = (Text(_name(row), style=_colour(row)), _shots(row), asked(row), Text(row.metric))
        table.add_row(*what, *scores, style=style)
    return table


def _narrow_lines(rows: Sequence[TaskRow], compared: bool, width: int) -> list[Text]:
    heads = ("base", "result ", "change", "95 % interval", "p (Holm)") if compared else ("result ", "95 % interval")
    cells = [_narrow_cells(row, compared) for row in rows]
    widths = [max(len(head), *(len(line[place]) for line in cells)) for place, head in enumerate(heads)]
    left = max(12, min(width - sum(widths) - 2 * len(widths), max(len(_name(row)) for row in rows)))

    def line(name: str, columns: Sequence[str]) -> str:
        clipped = name if len(name) <= left else name[: left - 1] + "…"
        return clipped.ljust(left) + "".join("  " + cell.rjust(size) for cell, size in zip(columns, widths, strict=True))

    lines = [Text(line("task", heads), style="dim")]
    for row, columns in zip(rows, cells, strict=True):
        first = Text(line(_name(row), columns))
        first.stylize(f"bold {_colour(row)}" if row.depth == 0 else _colour(row), 0, left)
        details = "  " * row.depth + f"  {_details(row)}"
        end = left + sum(widths) + 2 * len(widths)
        room = max(1, end - len(details) - len(row.verdict))
        second = Text.assemble((details, "dim"), " " * room, _verdict(row)) if row.verdict else Text(details, style="dim")
        lines += [first, second]
    return lines


def _narrow_cells(row: TaskRow, compared: bool) -> tuple[str, ...]:
    if not compared:
        return _result(row), span(row.result_interval)
    return score(row.base), _result(row), score(row.change, signed=True), span(row.change_interval, signed=True), probability(row.p_holm)


def _details(row: TaskRow) -> str:
    shots = f"{row.num_fewshot}-shot" if row.num_fewshot is not None else ""
    return ", ".join(part for part in (row.metric, shots, f"{asked(row)} items" if row.items is not None else "") if part)


def print_forgetting(results: Mapping[str, Any], *, console: Console | None = None) -> None:
    """FG, KL divergence and rank shift in sentences."""
    console = console or open_console()
    sentences = forgetting_sentences(results)
    if not sentences:
        return
    console.print(Text("Forgetting", style="bold"))
    print_sentences(sentences, console)
    console.print()


def print_sentences(sentences: Iterable[str], console: Console) -> None:
    """A list of sentences, later lines of each indented like its first."""
    for sentence in sentences:
        grid = Table.grid()
        grid.add_row(Text("· ", style="dim"), Text(sentence))
        console.print(grid)
