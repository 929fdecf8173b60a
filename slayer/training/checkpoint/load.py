"""From a checkpoint back into an engine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slayer.errors import CheckpointError
from slayer.surgery.weights import Weights
from slayer.training.checkpoint.folder import STATE_NAME
from slayer.training.checkpoint.random_state import restore_random_state
from slayer.training.engine import TrainingEngine
from slayer.training.state import Binding, RunState, load_state


def read_values(folder: Path) -> dict[str, Any]:
    """The state.json of a checkpoint that verifies."""
    values: dict[str, Any] = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    return values


def read_run_state(folder: Path) -> RunState:
    """Where the run stood."""
    return load_state(read_values(folder)["run"])


def load_checkpoint(folder: Path, engine: TrainingEngine, binding: Binding) -> RunState:
    """Put a verified checkpoint into the engine. CheckpointError when it belongs to another model or other data. Collective."""
    values = read_values(folder)
    for key, ours in asdict(binding).items():
        if values[key] != ours:
            raise CheckpointError(
                f"{folder} was made with another {key} (hash {values[key][:12]}, now {ours[:12]}); "
                f"restore that {key}, or type run=NAME to start a new run"
            )
    weights = Weights(folder)
    engine.load_state(weights, values["updates"])
    engine.guard.load({name: weights[f"guard/{name}"].clone() for name in engine.guard.state()})
    restore_random_state({name: weights[name] for name in weights.infos if name.startswith("random/")}, engine.ranks.rank)
    return load_state(values["run"])
