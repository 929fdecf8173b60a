"""The text of a run on the terminal: a row per source, what cleaning removed, what could not be read, lengths, and a row as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from slayer.reporting.console import open_console
from slayer.reporting.data_figures import is_reached
from slayer.reporting.numbers import MISSING, count, fixed, share, short
from slayer.reporting.packed_row import BEGINS, COMES_FROM, ENDS, GOES_ON, Piece, sample_row
from slayer.reporting.removals import removed_documents, removed_sentence

Facts = Mapping[str, Any]

BARS = " ▁▂▃▄▅▆▇█"
PIECE_CHARACTERS = 300
"""Of a long piece the terminal shows the beginning and the end."""


def print_data(facts: Facts, *, report: Path | None = None, console: Console | None = None) -> None:
    """A row per source, then a line each for cleaning, unreadable records, every warning and the page that tells more.

    `facts` as preparing a text leaves them; whatever is missing is a dash or no line.
    """
    console = console or open_console()
    console.print(_source_table(facts))
    console.print(_lines(facts))
    if report is not None:
        console.print(f"[dim]more of it in[/] [bold]{escape(str(report))}[/]", soft_wrap=True)
    console.print()


def _source_table(facts: Facts) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", title="Data", title_justify="left", title_style="bold")
    table.add_column("\nsource", overflow="fold")
    table.add_column("\nrole", min_width=7)
    for name in ("\ndocuments", "\nremoved", "held\nout", "\ntokens", "rows\nfull", "\nshare", "\nepochs"):
        table.add_column(name, justify="right", no_wrap=True, min_width=7)
    warn_epochs = float(facts.get("warn_epochs") or math.inf)
    for source in facts.get("sources") or ():
        role, epochs, streamed = source.get("role"), source.get("epochs"), bool(source.get("streamed"))
        table.add_row(
            Text(str(source.get("name", MISSING))), Text(str(role or MISSING), style="blue" if role == "domain" else "magenta"),
            Text("streamed", style="cyan") if streamed else count(source.get("train_documents")),
            MISSING if streamed else count(removed_documents(facts, str(source.get("name")))), count(source.get("heldout_documents")),
            short(source.get("train_tokens")), share(source.get("fill"), 1), share(source.get("share"), 1),
            Text(fixed(epochs, 2), style="bold yellow" if (epochs or 0) > warn_epochs else ""),
        )  # fmt: skip
    return table


def _lines(facts: Facts) -> Table:
    lines = Table.grid(padding=(0, 2, 0, 0))
    cleaning = removed_sentence(facts)
    if cleaning:
        lines.add_row(Text("cleaning", style="dim"), Text(cleaning))
    for entry in facts.get("quarantine") or ():
        if entry.get("bad"):
            lines.add_row(Text("put aside", style="dim"), Text(_bad_sentence(entry)))
    for warning in facts.get("warnings") or ():
        lines.add_row(Text("warning", style="yellow"), Text(str(warning), style="yellow"))
    return lines


def _bad_sentence(entry: Mapping[str, Any]) -> str:
    """`1 of 121 records of web could not be read; the first: part-1.jsonl, record 17 (is not JSON)`."""
    first: Mapping[str, Any] = next(iter(entry.get("examples") or ()), {})
    told = f"; the first: {first.get('file')}, record {count(first.get('record'))} ({first.get('reason')})" if first else ""
    return f"{count(entry['bad'])} of {count(entry.get('records'))} records of {entry.get('source')} could not be read{told}"


def print_inspection(facts: Facts, *, console: Console | None = None) -> None:
    """Stages, document lengths as a small histogram per source, and the first sample row of each source as text."""
    console = console or open_console()
    _print_stages(facts, console)
    _print_lengths(facts, console)
    shown: set[str] = set()
    for sample in facts.get("samples") or ():
        if sample.get("source") not in shown:
            shown.add(sample.get("source"))
            _print_row(sample, facts, console)


def _print_stages(facts: Facts, console: Console) -> None:
    stages = list(facts.get("stages") or ())
    if len(stages) < 2:
        return
    table = Table(box=None, pad_edge=False, header_style="dim", title="Stages", title_justify="left", title_style="bold")
    table.add_column("from token", justify="right")
    table.add_column("from step", justify="right")
    names = [str(source["name"]) for source in facts.get("sources") or ()]
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for stage in stages:
        shares = stage.get("shares") or {}
        step = count(stage.get("from_step")) + ("" if is_reached(stage, facts) else " (not reached)")
        table.add_row(count(stage.get("from_tokens")), step, *(share(shares.get(name), 1) for name in names))
    console.print(table)
    console.print()


def _print_lengths(facts: Facts, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", title="Lengths of documents, in tokens", title_justify="left", title_style="bold")
    for name, justify in (("source", "left"), ("shortest", "right"), ("", "left"), ("longest", "right"), ("middle", "right")):
        table.add_column(name, justify=justify, no_wrap=bool(name != "source"))  # type: ignore[arg-type]
    for source in facts.get("sources") or ():
        edges, counts = (list((source.get("lengths") or {}).get(key) or ()) for key in ("edges_tokens", "documents"))
        held = [place for place, documents in enumerate(counts) if documents]
        if held and len(edges) == len(counts) + 1:
            first, last = held[0], held[-1] + 1
            middle = _middle_bin(counts)
            table.add_row(
                Text(str(source.get("name", ""))), f"≥ {count(edges[first])}", sparkline(counts[first:last]), f"≤ {count(edges[last])}",
                f"{count(edges[middle])} to {count(edges[middle + 1])}",
            )  # fmt: skip
    if table.row_count:
        console.print(table)
        console.print()


def _middle_bin(counts: list[int]) -> int:
    """The bin of the middle document."""
    seen, half = 0, sum(counts) / 2
    for place, documents in enumerate(counts):
        seen += documents
        if seen >= half:
            return place
    return len(counts) - 1


def sparkline(counts: list[int], most_bars: int = 30) -> str:
    """Counts as bars of one line; a bin that holds anything is never drawn as empty. Many bins are drawn together."""
    together = max(1, -(-len(counts) // most_bars))
    sums = [sum(counts[place : place + together]) for place in range(0, len(counts), together)]
    top = max(sums, default=0) or 1
    return "".join(BARS[math.ceil((len(BARS) - 1) * number / top)] for number in sums)


def _print_row(sample: Mapping[str, Any], facts: Facts, console: Console) -> None:
    row = sample_row(sample, facts)
    console.print(Text(row.title, style="bold"))
    for place, piece in enumerate(row.pieces):
        note = f", {piece.note}" if piece.note else ""
        colour = ("cyan", "yellow")[place % 2]
        console.print(Text.assemble(("── ", colour), (piece.document, "bold"), (f"  {count(piece.tokens)} tokens{note}", "dim")))
        console.print(_piece(piece, colour))
    if row.padding_tokens:
        console.print(Text(f"── padding, {count(row.padding_tokens)} places", style="dim"))
    console.print()


def _piece(piece: Piece, colour: str) -> Text:
    text = " ".join(piece.text.split())
    if len(text) > PIECE_CHARACTERS:
        text = f"{text[: PIECE_CHARACTERS * 2 // 3]} […] {text[-PIECE_CHARACTERS // 3 :]}"
    return Text.assemble((BEGINS if piece.starts else COMES_FROM, colour), text, (f" {ENDS}" if piece.ends else GOES_ON, colour))
