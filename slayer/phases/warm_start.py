"""warm_start=RUN: a run begins from what another one has trained, instead of from its base. Only when it is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from slayer.errors import CheckpointError, ModelError
from slayer.models import model_hash_cached
from slayer.results import Results
from slayer.surgery.build import HASHES_NAME, model_hash, write_trained
from slayer.surgery.plan import LayerPlan, load_plan
from slayer.surgery.weights import Weights, require_space

FREE_TO_DIFFER = ("freeze", "trainable", "stages", "prune_scores", "expansion_scores", "strategy", "prune_by", "tail")
"""Of a plan: what trains, and how its layers were chosen. The layers themselves must be the same."""


def unfinished(other: Path) -> str | None:
    """Why a folder is no run whose result can be taken over, None when it is one. Reads no weights."""
    if not other.is_dir():
        return "there is no such folder"
    missing = [name for name in ("plan.json", "model/config.json", "results.json") if not (other / name).exists()]
    if missing:
        return f"it is not a finished run (no {', no '.join(missing)} in it)"
    try:
        told = {"base_hash", "model_hash"} <= set(Results(other).values)
    except CheckpointError as error:
        return str(error)
    return None if told else "it is not a finished run (its results.json does not say what was exported)"


def build_warm(base: Path, plan: LayerPlan, folder: Path, *, other: Path) -> None:
    """Write the result of the run in `other` as the expanded model, complete or not at all.

    CheckpointError when that run has no result, began from another base, has other layers, or when its model is not what it exported.
    """
    why = unfinished(other)
    if why is not None:
        raise CheckpointError(f"warm_start={other}: {why}; type warm_start=runs/NAME, or leave it out")
    told, result = Results(other), other / "model"
    if told["base_hash"] != model_hash_cached(base):
        raise CheckpointError(f"warm_start={other}: that run began from another base; type its model, or leave warm_start out")
    ours, theirs = _layers(plan), _layers(load_plan(other / "plan.json"))
    different = [key for key in ours if ours[key] != theirs.get(key)]
    if different:
        raise CheckpointError(
            f"warm_start={other}: that run has other layers ({', '.join(different)} of its plan.json differ); type its expansion and prune, or "
            "leave warm_start out"
        )
    try:
        exported = model_hash(result)
    except ModelError as error:
        raise CheckpointError(f"warm_start={other}: {error}") from error
    if exported != told["model_hash"]:
        raise CheckpointError(
            f"warm_start={other}: {result} is not what that run exported; it is damaged or was changed. Restore it, or leave warm_start out"
        )
    require_space(folder, Weights(result).n_bytes, "the expanded model")
    aside = folder.with_name(f"{folder.name}.warm")
    hashes = write_trained(result, {}, aside)
    (aside / HASHES_NAME).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _layers(plan: LayerPlan) -> dict[str, Any]:
    values = json.loads(json.dumps(plan.to_dict()))
    values["entries"] = [{key: value for key, value in entry.items() if key != "trains"} for entry in values["entries"]]
    return {key: value for key, value in values.items() if key not in FREE_TO_DIFFER}
