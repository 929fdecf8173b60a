"""The ledger of a run: what every rank trained on in every step, written down by the ranks themselves."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.reporting.json_lines import JsonLines, read_json_lines

FOLDER_VARIABLE, STOP_VARIABLE = "DRILL_LEDGER", "DRILL_STOP_AT"
"""Where a rank writes its ledger; and, as RANK:STEP, after how many steps which rank gets a SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one rank trained on in one step (0-based): a hash of the token ids of each row of each micro-batch, in order, and a number drawn
    from each of its random generators (torch's, numpy's and Python's), as dropout would."""

    step: int
    rank: int
    world: int
    micro_batches: tuple[tuple[str, ...], ...]
    drawn: tuple[float, ...]


@contextmanager
def recording() -> Iterator[None]:
    """Write the ledger of this rank into the folder that the environment names, if it does."""
    if FOLDER_VARIABLE not in os.environ:
        yield
        return
    import numpy as np
    import torch

    from slayer.training.engine import TrainingEngine

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stop_rank, _, stop_step = os.environ.get(STOP_VARIABLE, "-1:0").partition(":")
    forward_backward, update = TrainingEngine.forward_backward, TrainingEngine.update
    pending: list[list[str]] = []

    def seen(self: TrainingEngine, rows: Any, global_valid_tokens: int) -> Any:
        pending.append([hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows.input_ids_BL.numpy()])
        return forward_backward(self, rows, global_valid_tokens)

    def taken(self: TrainingEngine, step: int, *arguments: Any, **named: Any) -> None:
        drawn = [float(torch.rand(())), float(np.random.random()), random.random()]
        ledger.append({"step": step, "rank": rank, "world": world, "micro_batches": pending, "drawn": drawn})
        pending.clear()
        update(self, step, *arguments, **named)
        if (rank, step + 1) == (int(stop_rank), int(stop_step)):
            os.kill(os.getpid(), signal.SIGTERM)

    ledger = JsonLines(Path(os.environ[FOLDER_VARIABLE]) / f"rank-{rank}.jsonl")  # a line torn by a kill is cut off by the next start
    TrainingEngine.forward_backward, TrainingEngine.update = seen, taken  # type: ignore[method-assign]
    yield


def read_ledger(folder: Path) -> list[Line]:
    """All lines of all ranks, each rank's in the order in which it wrote them."""
    found = []
    for path in sorted(folder.glob("rank-*.jsonl")):
        for values in read_json_lines(path):
            micro_batches = tuple(tuple(rows) for rows in values["micro_batches"])
            found.append(
                Line(step=values["step"], rank=values["rank"], world=values["world"], micro_batches=micro_batches, drawn=tuple(values["drawn"]))
            )
    return found


def global_rows(lines: Sequence[Line]) -> tuple[str, ...]:
    """The rows of one step in the order of the global batch: micro-batch m of rank r comes at place m × world + r."""
    lines = sorted(lines, key=lambda line: line.rank)
    return tuple(row for parts in zip(*(line.micro_batches for line in lines), strict=True) for rows in parts for row in rows)
