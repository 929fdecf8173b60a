"""From a plan to the names of the tensors that train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from slayer.errors import PlanError, Problem
from slayer.schema import as_override
from slayer.stages import KEY, mended, typed_stages
from slayer.surgery.families import EMBEDDINGS, HEAD, is_norm, layer_of
from slayer.surgery.plan import FreezeStage, LayerPlan


def trainable_names(plan: LayerPlan, names: Iterable[str]) -> list[str]:
    """The parameter names, in the given order, that train under the plan at any time; PlanError when a rule matches nothing."""
    names = list(names)
    if plan.trains_everything:
        return names
    if plan.stages:
        trained = {name for stage in range(plan.n_stages) for name in stage_factors(plan, names, stage)}
        return [name for name in names if name in trained]
    chosen = [name for name in names if (at := layer_of(name)) is not None and at[0] in plan.trainable]
    if not chosen:
        if plan.freeze == "existing_layers":
            left = max(plan.index_of_base)
            raise PlanError(f"freeze=existing_layers leaves nothing to train: its layers were pruned; type freeze.train_layers=[{left}]")
        raise PlanError(f"freeze={plan.freeze} leaves nothing to train; type expansion=shallow_half, or freeze=none")
    return chosen


def stage_factors(plan: LayerPlan, names: Iterable[str], stage: int = 0) -> dict[str, float]:
    """The tensors that train in a 0-based stage, in the order of `names`, each with its factor of the learning rate.

    Of the parts of a stage that name the same tensor the first one counts. PlanError when a part is left with no tensor.
    """
    names = list(names)
    if not plan.stages:
        return dict.fromkeys(trainable_names(plan, names), 1.0)
    problem = unmatched_parts(plan, names)
    if problem is not None:
        raise PlanError(str(problem))
    factors = dict(plan.stages[stage].parts)
    return {name: factors[part] for name, part in _owners(plan, list(factors), names).items()}


def stage_parameters(plan: LayerPlan, shapes: Mapping[str, Sequence[int]]) -> list[int]:
    """Parameters that train in each stage, from the shapes of the model's tensors."""
    return [sum(prod(shapes[name]) for name in stage_factors(plan, shapes, stage)) for stage in range(plan.n_stages)]


def _owners(plan: LayerPlan, parts: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """tensor → the part of a stage that trains it, in the order of `names`; frozen ones are left out."""
    layers = {part: set(plan.layers_of(part)) for part in parts}

    def covers(part: str, name: str) -> bool:
        at = layer_of(name)
        if at is not None:
            return at[0] in layers[part] and (part != "norms" or is_norm(name))
        return {"head": name == HEAD, "embeddings": name == EMBEDDINGS, "norms": is_norm(name)}.get(part, False)

    found = ((name, next((part for part in parts if covers(part, name)), None)) for name in names)
    return {name: part for name, part in found if part is not None}


def unmatched_parts(plan: LayerPlan, names: Iterable[str]) -> Problem | None:
    """What is wrong with the stages of a plan for a model of these parameters: every part that is left with no tensor, and a list without it."""
    names, faults, meant = list(names), list[str](), list[dict[str, Any]]()
    for number, stage in enumerate(plan.stages, 1):
        parts, its_faults = _matched(plan, stage, names)
        faults += [f"stage {number} trains {fault}" for fault in its_faults]
        meant.append({"until_tokens": stage.until_tokens, "parts": parts})
    if not faults:
        return None
    fix = as_override(KEY, mended(meant, has_new=bool(plan.new_indices)))
    return Problem(key=KEY, value=typed_stages(plan.stages), why="; ".join(faults), fix=fix)


def _matched(plan: LayerPlan, stage: FreezeStage, names: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The parts of a stage, mended so that each has a tensor, and what was wrong with them."""
    parts, faults = dict(stage.parts), list[str]()
    for part in [part for part, _ in stage.parts]:
        if part in _owners(plan, list(parts), names).values():
            continue
        if part in _owners(plan, [part], names).values():  # others before it have all its tensors
            faults.append(f"{part}, and parts named before it have all its tensors already")
            first = {part: parts[part], **parts}
            parts = first if set(_owners(plan, list(first), names).values()) == set(first) else {one: parts[one] for one in parts if one != part}
        elif part == "head":
            faults.append("head, and this model's head is its input embedding: embeddings trains both")
            parts = {("embeddings" if one == "head" else one): factor for one, factor in parts.items() if one != "head" or "embeddings" not in parts}
        else:
            faults.append(f"{part}, and {_absence(part)}")
            del parts[part]
    return parts, faults


def _absence(part: str) -> str:
    match part:
        case "new":
            return "expansion=none inserts no new block"
        case "norms" | "embeddings":
            return "this model has no tensor of that kind"
    return "all of these layers are pruned, or the base never had them"
