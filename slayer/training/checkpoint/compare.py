"""What changed between two checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.surgery.weights import Weights
from slayer.training.checkpoint.load import read_values
from slayer.training.engine import KINDS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor in two checkpoints. `relative`: ‖second − first‖ / ‖first‖ of the master (infinite where the first is zero), `largest`
    its largest change; `exp_avg`, `exp_avg_sq`: the same ratio of the moments, None where one has none. `note`: why there is nothing to compare."""

    name: str
    relative: float = 0.0
    largest: float = 0.0
    exp_avg: float | None = None
    exp_avg_sq: float | None = None
    same: bool = False
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All tensors, and (key, old, new) of what else differs."""

    tensors: list[Difference]
    state: list[tuple[str, Any, Any]]

    @property
    def n_same(self) -> int:
        """Tensors whose master and moments are equal bit for bit."""
        return sum(one.same for one in self.tensors)

    @property
    def same(self) -> bool:
        """True when all tensors are."""
        return self.n_same == len(self.tensors)


def compare(old: Path, new: Path) -> Comparison:
    """Compare two checkpoints that verify, one tensor at a time."""
    weights = Weights(old), Weights(new)
    names = [sorted(name.removeprefix("master/") for name in one.infos if name.startswith("master/")) for one in weights]
    tensors = [
        _compare(weights[0], weights[1], name)
        if name in names[0] and name in names[1]
        else Difference(name=name, note="only in first" if name in names[0] else "only in second")
        for name in sorted({*names[0], *names[1]})
    ]
    flat = [_flat({key: value for key, value in read_values(folder).items() if key not in ("updates", "plan")}) for folder in (old, new)]
    keys = sorted({*flat[0], *flat[1]})
    return Comparison(tensors=tensors, state=[(key, flat[0].get(key), flat[1].get(key)) for key in keys if flat[0].get(key) != flat[1].get(key)])


def _compare(first: Weights, second: Weights, name: str) -> Difference:
    import torch

    keys = [f"{kind}/{name}" for kind in KINDS]
    pairs = [(first[key], second[key]) if key in first and key in second else None for key in keys]
    if any(pair is not None and pair[0].shape != pair[1].shape for pair in pairs):
        return Difference(name=name, note="another shape")
    same = all((key in first) == (key in second) and (pair is None or torch.equal(*pair)) for key, pair in zip(keys, pairs, strict=True))
    relative, exp_avg, exp_avg_sq = (None if pair is None else _ratio(*pair) for pair in pairs)
    master = pairs[0]
    assert relative is not None and master is not None, "every tensor of a checkpoint has a master"
    largest = float((master[1] - master[0]).abs().max()) if master[0].numel() else 0.0
    return Difference(name=name, relative=relative, largest=largest, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, same=same)


def _ratio(old: torch.Tensor, new: torch.Tensor) -> float:
    change, size = float((new - old).norm()), float(old.norm())
    return change / size if size else (float("inf") if change else 0.0)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: inner for name, part in value.items() for key, inner in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}
    return {prefix: value}
