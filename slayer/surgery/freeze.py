"""From a plan to the names of the tensors that train."""

from __future__ import annotations

from collections.abc import Iterable

from slayer.errors import PlanError
from slayer.surgery.families import layer_of
from slayer.surgery.plan import LayerPlan


def trainable_names(plan: LayerPlan, names: Iterable[str]) -> list[str]:
    """The parameter names, in the given order, that train under the plan; PlanError when the rule matches nothing."""
    names = list(names)
    if plan.trains_everything:
        return names
    chosen = [name for name in names if (at := layer_of(name)) is not None and at[0] in plan.trainable]
    if not chosen:
        if plan.freeze == "existing_layers":
            left = max(plan.index_of_base)
            raise PlanError(f"freeze=existing_layers leaves nothing to train: its layers were pruned; type freeze.train_layers=[{left}]")
        raise PlanError(f"freeze={plan.freeze} leaves nothing to train; type expansion=shallow_half, or freeze=none")
    return chosen
