"""Checkpoints: what training changed and nothing else, in safetensors and JSON.

    checkpoints/step-00000100/
      model.safetensors     fp32 master, exp_avg and exp_avg_sq of each trained tensor by name, random state of each rank
      state.json            step, tokens, and what the checkpoint belongs to
      manifest.json         SHA-256 of the two, written last

A checkpoint holds no trace of world size or ZeRO stage, so either may differ when it is read. It is written aside, synced and
renamed: a folder with a manifest is whole or was damaged later, and then its hashes say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.errors import CheckpointError
from slayer.surgery.weights import Recipe, Weights, require_space, write_weights
from slayer.training.engine import MOMENTS, TrainingEngine

if TYPE_CHECKING:
    import torch

TENSORS_NAME, STATE_NAME, MANIFEST_NAME = "model.safetensors", "state.json", "manifest.json"
KINDS = ("master", *MOMENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where training stands: optimiser steps done, tokens trained on, seconds spent in steps, and where streamed sources were."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a checkpoint belongs to: hashes of the expanded model it continues from and of the data it was drawn from."""

    model: str
    data: str


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def save_checkpoint(checkpoints: Path, engine: TrainingEngine, state: RunState, binding: Binding, keep: int) -> Path:
    """Write the checkpoint of `state.step` and drop all but the newest `keep`. Collective; the first rank writes.

    Checkpoints of later steps go as well: training goes on from the newest good one, so they are damaged.
    """
    import torch

    folder = checkpoint_folder(checkpoints, state.step)
    ranks = engine.ranks
    random_states = ranks.gather(torch.get_rng_state())
    order = [(kind, name) for name in engine.trainable for kind in KINDS]
    if not ranks.is_first:
        for kind, name in order:
            engine.state_of(name, kind)
        ranks.wait()
        return folder
    recipes = [Recipe(name=f"{kind}/{name}", dtype="F32", shape=engine.shape(name), make=_reader(engine, name, kind)) for kind, name in order]
    recipes += [
        Recipe(name=f"random/{rank}", dtype="U8", shape=tuple(value.shape), make=_constant(value)) for rank, value in enumerate(random_states)
    ]
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    require_space(checkpoints, sum(recipe.n_bytes for recipe in recipes), "a checkpoint")
    aside.mkdir(parents=True)
    write_weights(aside, recipes, shard_bytes=1 << 62)
    _write_synced(aside / STATE_NAME, {"format": 2, **asdict(state), **asdict(binding), "world": ranks.world, "zero_stage": engine.stage})
    _write_synced(aside / MANIFEST_NAME, {name: _file_sha256(aside / name) for name in (TENSORS_NAME, STATE_NAME)})
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    _sync_folder(checkpoints)
    found = list_checkpoints(checkpoints)
    later = found.index(folder) + 1
    for old in [*found[: max(later - keep, 0)], *found[later:]]:
        shutil.rmtree(old, ignore_errors=True)
    ranks.wait()
    return folder


def _reader(engine: TrainingEngine, name: str, kind: str) -> Callable[[], torch.Tensor]:
    return lambda: engine.state_of(name, kind)


def _constant(value: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: value


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first; unfinished ones are left out."""
    return sorted(path for path in checkpoints.glob("step-*") if path.is_dir() and not path.name.endswith(".partial"))


def find_problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every byte is as written."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        for name in (TENSORS_NAME, STATE_NAME):
            if _file_sha256(folder / name) != manifest[name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest_valid(checkpoints: Path, on_damage: Callable[[Path, str], None]) -> Path | None:
    """The newest checkpoint that verifies; `on_damage` hears of each one passed over. None when there is no checkpoint at all.

    CheckpointError when there are checkpoints and none is good: a run never silently starts over.
    """
    found = list_checkpoints(checkpoints)
    for folder in reversed(found):
        problem = find_problem(folder)
        if problem is None:
            return folder
        on_damage(folder, problem)
    if found:
        raise CheckpointError(f"no checkpoint in {checkpoints} is intact; remove that folder to start the run over, or type run=NAME for a new run")
    return None


def load_checkpoint(folder: Path, engine: TrainingEngine, binding: Binding) -> RunState:
    """Put a verified checkpoint into the engine. CheckpointError when it belongs to another model or other data. Collective."""
    import torch

    values = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    for key, ours in asdict(binding).items():
        if values[key] != ours:
            raise CheckpointError(
                f"{folder} was made with another {key} (hash {values[key][:12]}, now {ours[:12]}); "
                f"restore that {key}, or type run=NAME to start a new run"
            )
    weights = Weights(folder)
    engine.load_state(weights, values["step"])
    random_state = f"random/{engine.ranks.rank}"
    if random_state in weights.infos:
        torch.set_rng_state(weights[random_state].clone())
    return RunState(step=values["step"], tokens=values["tokens"], seconds=values["seconds"], position=values["position"])


def _write_synced(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
