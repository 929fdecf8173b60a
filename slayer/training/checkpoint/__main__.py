"""python -m slayer.training.checkpoint verify|list|diff DIR [OTHER]: is every byte as written, what is there, what changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slayer.errors import CheckpointError, SlayerError
from slayer.training.checkpoint.compare import Difference, compare
from slayer.training.checkpoint.folder import STATE_NAME, find_problem, list_checkpoints, step_of
from slayer.training.checkpoint.load import read_values

USAGE = """python -m slayer.training.checkpoint COMMAND DIR [OTHER]

  verify DIR          read every byte and compare it with the manifest; exit code 1 when something is damaged
  list DIR            steps, tokens, sizes, and how each was written; nothing but state.json is read
  diff DIR [OTHER]    what changed between two checkpoints, tensor by tensor; of a run: between its newest two

DIR is a run folder, its checkpoints folder, or one checkpoint."""

DAMAGED_EXIT_CODE, REFUSED_EXIT_CODE = 1, 2


def found_in(folder: Path) -> list[Path]:
    """The checkpoints that a folder holds or is, oldest first. CheckpointError when there are none."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; type a run folder (runs/NAME), its checkpoints folder, or one checkpoint")
    if (folder / STATE_NAME).exists() or folder.name.startswith("step-"):
        return [folder]
    found = list_checkpoints(folder / "checkpoints") or list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint yet (train.save_every steps make the first); type a run folder that has trained")
    return found


def verify(folders: Sequence[Path]) -> int:
    """Print a line a checkpoint; DAMAGED_EXIT_CODE when one is not as written."""
    from slayer.reporting.console import open_console

    console, damaged = open_console(), 0
    for folder in folders:
        problem = find_problem(folder)
        damaged += problem is not None
        console.print(f"[green]whole[/]    {folder}" if problem is None else f"[bold red]damaged[/]  {folder}: {problem}", soft_wrap=True)
    if damaged:
        console.print(f"{damaged} of {len(folders)} damaged; a run goes on from its newest whole one")
    return DAMAGED_EXIT_CODE if damaged else 0


def show(folders: Sequence[Path]) -> int:
    """Print the table of `list`."""
    from rich.table import Table

    from slayer.reporting.console import open_console
    from slayer.reporting.numbers import count, size

    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for name in ("step", "tokens", "stage", "tensors", "size", "written by", "rewinds"):
        table.add_column(name, justify="right")
    for folder in folders:
        n_bytes = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        try:
            values = read_values(folder)
            run, ranks = values["run"], values["world"]
            table.add_row(
                count(run["step"]), count(run["tokens"]), str(len(run["stage_steps"])), count(len(values["updates"])), size(n_bytes),
                f"{ranks} {'rank' if ranks == 1 else 'ranks'}, ZeRO-{values['zero_stage']}", str(len(run["rewinds"])),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            table.add_row(count(step_of(folder)), "[red]damaged[/]", "", "", size(n_bytes), f"[red]no {STATE_NAME}[/]", "")
    open_console().print(table)
    return 0


def show_difference(old: Path, new: Path) -> int:
    """Print what `diff` finds. CheckpointError when one of the two is damaged."""
    from rich.table import Table

    from slayer.reporting.console import open_console

    for folder in (old, new):
        problem = find_problem(folder)
        if problem is not None:
            raise CheckpointError(f"{folder} is damaged: {problem}; compare others, `list` shows them")
    console, found = open_console(), compare(old, new)
    console.print(f"{old} → {new}", soft_wrap=True)
    for key, before, after in found.state:
        console.print(f"  {key}: {_shown(before)} → {_shown(after)}", soft_wrap=True, markup=False)
    if found.same:
        console.print(f"all {len(found.tensors)} tensors are the same, bit for bit")
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("tensor", overflow="fold")
    for name in ("change", "largest", "exp_avg", "exp_avg_sq"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.tensors:
        table.add_row(one.name.removeprefix("model.").removesuffix(".weight"), *_cells(one))
    console.print(table)
    console.print(f"{found.n_same} of {len(found.tensors)} tensors are the same; change: ‖second − first‖ / ‖first‖")
    return 0


def _cells(one: Difference) -> tuple[str, str, str, str]:
    if one.note is not None:
        return one.note, "", "", ""
    if one.same:
        return "none", "", "", ""
    return _percent(one.relative), f"{one.largest:.2g}", _percent(one.exp_avg), _percent(one.exp_avg_sq)


def _percent(ratio: float | None) -> str:
    if ratio is None:
        return ""
    if math.isinf(ratio):
        return "from zero"
    return f"{100 * ratio:.3g} %" if ratio < 9.995 else f"{ratio:,.0f}×"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str]) -> int:
    """Exit code: 0 whole or shown, 1 something is damaged, 2 something to mend."""
    from slayer.reporting.console import print_error

    command, *folders = words or ["--help"]
    if {"--help", "-h"} & set(words) or not words:
        print(USAGE)
        return 0
    known = {"verify": 1, "list": 1, "diff": 2}
    try:
        if command not in known or not 1 <= len(folders) <= known[command]:
            raise CheckpointError(f"cannot read {' '.join(words)!r}; type\n\n{USAGE}")
        found = [found_in(Path(folder)) for folder in folders]
        if command == "diff":
            pair = found[0][-2:] if len(found) == 1 else [found[0][-1], found[1][-1]]
            if len(pair) < 2:
                raise CheckpointError(f"{folders[0]} holds one checkpoint only; type a second one behind it")
            return show_difference(*pair)
        return verify(found[0]) if command == "verify" else show(found[0])
    except SlayerError as error:
        print_error(error)
        return REFUSED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
