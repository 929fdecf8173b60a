"""What a run will need and take, on the terminal: memory and arithmetic in a line each, a row per GPU, and what to type."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from slayer.reporting.console import open_console
from slayer.reporting.estimate_words import (
    Costs,
    advice,
    arithmetic_sentence,
    gpu_hours,
    held,
    here_sentence,
    lacks_memory,
    layout_sentence,
    layout_words,
    length_words,
    memory_sentence,
    time,
)
from slayer.reporting.numbers import MISSING, percent, size


def print_estimate(costs: Costs, *, console: Console | None = None) -> None:
    """Draw results.json's `estimate`."""
    console = console or open_console()
    console.print(Text.assemble(("What it costs", "bold"), f"  {layout_sentence(costs['asked'])}"))
    console.print(_lines(costs))
    console.print(_devices(costs))
    told = advice(costs)
    if told is not None:
        sentence, override = told
        console.print(Text.assemble(("→ ", "bold green"), sentence))
        if override:
            console.print(f"  [dim]type:[/] [bold cyan]{escape(override)}[/]", soft_wrap=True)
    console.print()


def _lines(costs: Costs) -> Table:
    asked, here = costs["asked"], costs["here"]
    memory, recomputes = held(asked), asked["activation_checkpointing"]
    other = asked["memory" if recomputes else "checkpointed"]["total"]
    grid = Table.grid(padding=(0, 0))
    grid.add_column(width=12, style="dim", no_wrap=True)
    grid.add_column()
    grid.add_row("arithmetic", arithmetic_sentence(costs["flops_per_token"]))
    peak = f" a GPU: {memory_sentence(memory)} ({'without recomputing' if recomputes else 'recomputing'}: {size(other)})"
    grid.add_row("memory", Text.assemble((size(memory["total"]), "bold"), peak))
    told = (here_sentence(here), "bold yellow" if lacks_memory(here) else "")
    grid.add_row("here", Text.assemble(told, f"; a checkpoint {size(costs['checkpoint_bytes'])}"))
    return grid


def _devices(costs: Costs) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("GPU", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    table.add_column("spare", justify="right", no_wrap=True)
    table.add_column(f"{length_words(costs)} at {percent(100 * costs['mfu'], signed=False, digits=0)} MFU", no_wrap=True)
    for device in costs["devices"]:
        best = device["recommended"]
        told = (size(best["spare_bytes"]), f"{time(device['seconds'])} · {gpu_hours(device['gpu_hours'])}") if best else (MISSING, MISSING)
        table.add_row(
            Text.assemble((device["name"], "bold"), f" {device['memory_bytes'] / 1e9:.0f} GB"),
            Text(layout_words(best), style="green" if best and not best["fewer_gpus"] else "yellow"), *told,
        )  # fmt: skip
    return table
