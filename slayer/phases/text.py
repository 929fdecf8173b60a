"""The text of a run: prepared, opened as a stream of batches, and told as facts for a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from slayer.config import RunConfig
from slayer.data.facts import text_facts
from slayer.data.identity import differences
from slayer.data.order.loader import Loader
from slayer.data.preparation import PreparedText, open_loader, prepare_text
from slayer.data.storing.parts import Workers
from slayer.errors import CheckpointError
from slayer.reporting.progress import progress_bar
from slayer.training.optim import planned_steps

TEXT_IDENTITY = "data.json"
"""In the run folder: what its text was made of when it began."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedText:
    """What training reads, and what is known of it."""

    prepared: PreparedText
    loader: Loader
    total_steps: int

    def facts(self, tokenizer: Any) -> dict[str, Any]:
        """What a report shows of it."""
        return text_facts(self.prepared, self.loader, tokenizer, self.total_steps)


def open_text(config: RunConfig, tokenizer: Any, console: Console, stop_requested: Callable[[], bool] = lambda: False) -> OpenedText:
    """Read, clean, tokenise and pack the text of a run, or open what was found before; count the steps.

    Raises KeyboardInterrupt where a stop is asked for on the way: what was prepared by then stays in the cache.
    """
    with progress_bar("text", console) as show, Workers(config.data.processes) as workers:

        def on_progress(label: str, done: int, total: int) -> None:
            show(label, done, total)
            if stop_requested():
                raise KeyboardInterrupt

        prepared = prepare_text(config.data, workers, on_progress=on_progress)
        loader = open_loader(prepared, tokenizer, workers, seed=config.seed, batch_rows=config.train.batch_rows, on_progress=on_progress)
    total_steps = planned_steps(config.train, config.data.sequence_length, loader.steps_per_domain_epoch)
    loader.require_epochs(total_steps)
    return OpenedText(prepared=prepared, loader=loader, total_steps=total_steps)


def has_work(folder: Path) -> bool:
    """True when a run folder holds more than a plan: something that another configuration or other text would make worthless."""
    return any((folder / name).exists() for name in ("expanded", "checkpoints", "model"))


def require_same_text(folder: Path, identity: Mapping[str, Any]) -> None:
    """CheckpointError, naming what differs, when the run in this folder was begun on text of another identity (`Loader.identity`)."""
    path = folder / TEXT_IDENTITY
    if not path.exists() or not has_work(folder):
        return
    found = differences(json.loads(path.read_text(encoding="utf-8")), identity)
    if found:
        lines = "\n".join(f"    {sentence}" for sentence in found)
        raise CheckpointError(
            f"{folder} was begun on other text:\n{lines}\n    restore the text as it was, or type run=NAME for a new run on what is there now"
        )
