"""The tensors of an expanded model and which of them train: what every byte of the estimate is counted from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from slayer.surgery.families import layer_of
from slayer.surgery.freeze import stage_factors
from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import ModelShape, Shapes


@dataclass(frozen=True, kw_only=True)
class TrainedTensors:
    """An expanded model in one freeze stage: shapes of all its parameters by name, in the model's order, and the learning-rate factor of those
    that train."""

    model: ModelShape
    n_layers: int
    shapes: Shapes
    factors: dict[str, float]

    @cached_property
    def parameters(self) -> int:
        """All of them."""
        return sum(map(prod, self.shapes.values()))

    @cached_property
    def trained(self) -> int:
        """Those that train."""
        return self.size_of(self.factors)

    @cached_property
    def groups(self) -> list[list[int]]:
        """Sizes of the trained tensors, group by group as the optimiser holds them: matrices, which decay, apart from the rest, for each factor."""
        found: dict[tuple[float, bool], list[int]] = {}
        for name, factor in self.factors.items():
            shape = self.shapes[name]
            found.setdefault((factor, len(shape) > 1), []).append(prod(shape))
        return list(found.values())

    def size_of(self, names: Iterable[str]) -> int:
        """Parameters in these tensors."""
        return sum(prod(self.shapes[name]) for name in names)

    def trained_in(self, layer: int) -> set[str]:
        """Names, within the layer, of what trains in it."""
        return self._by_layer.get(layer, set())

    @cached_property
    def _by_layer(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for name in self.factors:
            at = layer_of(name)
            if at is not None:
                found.setdefault(at[0], set()).add(at[1])
        return found


def trained_tensors(shape: ModelShape, plan: LayerPlan, stage: int = 0) -> TrainedTensors:
    """The tensors of the expanded model in a 0-based freeze stage."""
    shapes = shape.tensors(plan.n_layers)
    return TrainedTensors(model=shape, n_layers=plan.n_layers, shapes=shapes, factors=stage_factors(plan, list(shapes), stage))
