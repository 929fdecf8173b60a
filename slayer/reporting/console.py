"""The terminal: the plan as a picture, tables of data and scores, errors, and what to type next."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from slayer.errors import SlayerError, ToldError
from slayer.reporting.numbers import MISSING, fixed, interval, percent, share, short
from slayer.reporting.plan_rows import (
    SIGNS,
    STAGE_LEGEND,
    Kind,
    PlanRow,
    PlanTotals,
    StageRow,
    collapse,
    new_blocks_sentence,
    outside_sentence,
    plan_rows,
    plan_totals,
    stage_rows,
)
from slayer.reporting.scores import SourceScore, proof_sentences, source_scores
from slayer.secrets import redacted_stream
from slayer.surgery.plan import LayerPlan

WIDTH = 80
MOST_ROWS = 38
"""Longer pictures get their runs of untouched layers folded: nobody takes in more at a glance."""

COLOURS: dict[Kind, str] = {"kept": "bright_black", "new": "bold green", "pruned": "red", "tail": "yellow"}

# Each sign has an equally wide stand-in, so that a table keeps its shape on a terminal without UTF-8.
ASCII = str.maketrans({
    "░": ".", "█": "#", "▓": "@", "×": "x", "❄": "*", "●": "o", "→": ">", "–": "-", "−": "-", "·": "-", "…": ".",
    "━": "-", "╸": "-", "╺": "-", "─": "-", "│": "|", "✔": "+", "✖": "x", "±": "~", "≤": "<", "▲": "^", "▼": "v", "\u00a0": " ",
    "◐": "c", "≥": ">", "▏": "|", "■": "#", "▁": ".", "▂": ",", "▃": ":", "▄": ";", "▅": "+", "▆": "*", "▇": "%",
})  # fmt: skip


class AsciiStream:
    """A text stream for terminals without UTF-8: signs become ASCII of the same width, other letters a question mark."""

    encoding = "ascii"

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the ASCII form of `text`."""
        return self._stream.write(text.translate(ASCII).encode("ascii", "replace").decode("ascii"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_console(stream: IO[str] | None = None) -> Console:
    """A console on `stream` (default: standard output), plain where it is not a terminal, ASCII where it is not UTF-8. It shows no secret."""
    stream = redacted_stream(stream or sys.stdout)
    if not (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf"):
        stream = cast(IO[str], AsciiStream(stream))
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(file=stream, highlight=False, width=width)


def print_plan(
    plan: LayerPlan, *, block_parameters: int, other_parameters: int, stage_parameters: Sequence[int] = (), warm_start: str | None = None,
    console: Console | None = None,
) -> None:  # fmt: skip
    """Draw the plan: the stack in one line, a row per layer from shallow to deep, and the totals.

    `block_parameters` are those of one decoder layer, `other_parameters` those of embeddings, final norm and head, `stage_parameters`
    those that train in each freeze stage; `warm_start` is the run that this one goes on from.
    """
    console = console or open_console()
    rows = plan_rows(plan)
    totals = plan_totals(plan, block_parameters=block_parameters, other_parameters=other_parameters)
    console.print()
    title = Text.assemble(("Layer plan", "bold"), f"  {plan.strategy} · {plan.n_base} base layers → {plan.n_layers} layers")
    console.print(title)
    console.print(Padding(_strip(rows), (0, 0, 1, 0)))
    shown = fold(rows)
    console.print(_plan_table(shown, plan, block_parameters))
    for line in _totals(plan, totals, warm_start):
        console.print(line)
    if plan.stages:
        console.print(_stage_grid(stage_rows(plan, stage_parameters), totals))
    console.print()


def fold(rows: Sequence[PlanRow]) -> list[PlanRow]:
    """The rows themselves if they are few; else with runs of kept layers folded, the shorter runs too if need be."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    folded = collapse(rows, shortest=3)
    return folded if len(folded) <= MOST_ROWS else collapse(rows, shortest=2)


def _strip(rows: Sequence[PlanRow]) -> Text:
    text = Text()
    for row in rows:
        text.append(SIGNS[row.kind], style=COLOURS[row.kind])
    text.append("  shallow → deep", style="dim")
    return text


def _plan_table(rows: Sequence[PlanRow], plan: LayerPlan, block_parameters: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("layer", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column("what", width=32, no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for row in rows:
        colour = COLOURS[row.kind]
        struck = "dim strike" if row.kind == "pruned" else ""
        state = "" if row.kind == "pruned" else row.stage_mark or ("● trained" if row.trains else "❄ frozen")
        parameters = MISSING if row.kind == "pruned" else short(row.layers * block_parameters)
        table.add_row(
            Text(row.index_label, style="bold" if row.trains_whole else "dim"),
            Text(SIGNS[row.kind] * (6 if row.trains_whole else 4), style=colour),
            Text(row.base_label, style=struck),
            Text.assemble((_WORDS[row.kind], struck or colour), f" {_what(row)}" if _what(row) else ""),
            Text(state, style="bold green" if row.trains_whole else "green" if row.trains else "cyan dim"),
            Text(parameters, style="" if row.trains_whole else "dim"),
        )
    table.caption = Text(f"outside the layers: {outside_sentence(plan)}", style="dim")
    table.caption_justify = "left"
    return table


_WORDS: dict[Kind, str] = {"kept": "kept", "new": "NEW", "pruned": "pruned", "tail": "tail"}


def _what(row: PlanRow) -> str:
    return f"×{row.layers}" if row.layers > 1 else row.note


def _totals(plan: LayerPlan, totals: PlanTotals, warm_start: str | None) -> list[Text]:
    new = len(plan.new_indices)
    layers = f"{plan.n_base} − {len(plan.pruned)} pruned + {new} new = {plan.n_layers}"
    removed = f", {short(totals.removed_parameters)} pruned" if plan.pruned else ""
    trained = f"{short(totals.trained_parameters)} of {short(totals.parameters)} ({share(totals.trained_parameters, totals.parameters)})"
    blocks = "everything" if plan.trains_everything else f"{totals.trained_layers} of {plan.n_layers} layers"
    start = new_blocks_sentence(plan, warm_start)
    return [
        Text.assemble(("layers      ", "dim"), layers),
        *([Text.assemble(("new blocks  ", "dim"), start)] if start else []),
        Text.assemble(("parameters  ", "dim"), short(totals.parameters), removed),
        *([Text.assemble(("trained     ", "dim"), ("● ", "bold green"), (trained, "bold"), f" · {blocks}")] if not plan.stages else []),
    ]


def _stage_grid(rows: Sequence[StageRow], totals: PlanTotals) -> Table:
    grid = Table.grid(padding=(0, 0))
    grid.add_column(width=12, style="dim")
    grid.add_column()
    for row in rows:
        grid.add_row(f"stage {row.number}", Text.assemble((f"{row.until}: ", "bold"), row.parts))
        if row.trained_parameters is not None:
            trained = f"{short(row.trained_parameters)} of {short(totals.parameters)} ({share(row.trained_parameters, totals.parameters)})"
            grid.add_row("", Text.assemble(("● ", "bold green"), (trained, "bold"), f" · {row.layers}"))
    grid.add_row("", Text(STAGE_LEGEND, style="dim"))
    return grid


def print_proof(proof: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Say what was measured between the base and the model before training (results.json's `proof`)."""
    console = console or open_console()
    good = proof.get("identity_max_difference") in (0, None)
    for number, sentence in enumerate(proof_sentences(proof)):
        mark = Text("✔ ", style="green") if good and number == 0 else Text("· ", style="dim")
        console.print(_hanging(mark, sentence))


def _hanging(mark: Text, sentence: str) -> Table:
    grid = Table.grid()
    grid.add_row(mark, Text(sentence))
    return grid


def _role_style(role: object) -> str:
    return "blue" if role == "domain" else "magenta"


def print_results(results: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Held-out scores: base → before training → result, with the change, its 95 % interval and the verdict."""
    console = console or open_console()
    scores = source_scores(results)
    if not scores:
        return
    title = "Held-out bits per byte (lower is better)"
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title=title, title_justify="left", title_style="bold")
    table.add_column("source", overflow="fold")
    table.add_column("role")
    alone = all(score.base is None for score in scores)
    for name in ("result", "95 % interval") if alone else ("base", "start", "result", "change", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    if not alone:
        table.add_column("verdict", overflow="fold")
    for score in scores:
        named = (Text(score.source), Text(score.role, style=_role_style(score.role)))
        if alone:
            table.add_row(*named, fixed(score.result), interval(score.result_interval, digits=3))
            continue
        table.add_row(
            *named, fixed(score.base), fixed(score.start), fixed(score.result), Text(percent(score.change_percent), style="bold"),
            interval(score.change_interval_percent, signed=True), _verdict(score),
        )  # fmt: skip
    console.print()
    console.print(table)
    console.print()


def _verdict(score: SourceScore) -> Text:
    marks = {"learnt": ("▼ ", "bold green"), "forgotten": ("▲ ", "bold red")}
    mark, style = marks.get(score.verdict, ("· ", "dim"))
    return Text(f"{mark}{score.verdict}", style=style) if score.verdict else Text(MISSING)


def print_error(error: SlayerError, *, console: Console | None = None) -> None:
    """One message for a person, on standard error; no traceback. Nothing where another rank tells it."""
    if isinstance(error, ToldError):
        return
    console = console or open_console(sys.stderr)
    console.print(f"[bold red]✖[/] {escape(str(error))}", soft_wrap=True)


def print_next(commands: Iterable[tuple[str, str]], *, console: Console | None = None) -> None:
    """What to type next: (command, what it does) pairs."""
    console = console or open_console()
    console.print("[bold]Next[/]")
    for command, purpose in commands:
        # Commands are copied from the terminal: never wrapped.
        console.print(f"  [dim]{escape(purpose)}[/]", soft_wrap=True)
        console.print(f"    [bold cyan]{escape(command)}[/]", soft_wrap=True)
    console.print()


def print_finished(report: Path, *, console: Console | None = None) -> None:
    """Name the report at the end of a run."""
    (console or open_console()).print(f"[green]✔[/] report: [bold]{escape(str(report))}[/]", soft_wrap=True)
