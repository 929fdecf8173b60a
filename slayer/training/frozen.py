"""The audit of frozen weights: their bytes must be the base's at the start, at every save and at export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slayer.errors import FrozenWeightsError
from slayer.surgery.weights import Weights, tensor_sha256
from slayer.training.engine import TrainingEngine

if TYPE_CHECKING:
    import torch


class FrozenAudit:
    """Hashes of the frozen tensors as they stand in the expanded folder, in the engine's compute type."""

    def __init__(self, expanded: Path, built_hashes: dict[str, str], trainable: list[str], dtype: torch.dtype) -> None:
        """FrozenWeightsError when the folder itself no longer holds what was built."""
        weights = Weights(expanded)
        self.expected: dict[str, str] = {}
        for name in sorted(set(weights.infos) - set(trainable)):
            tensor = weights[name]
            if tensor_sha256(tensor) != built_hashes[name]:
                raise FrozenWeightsError(f"{name} in {expanded} is not what was built there; remove that folder and start the run again")
            self.expected[name] = tensor_sha256(tensor.to(dtype))

    def check(self, engine: TrainingEngine, moment: str) -> int:
        """Compare every frozen tensor of the engine; returns how many. Collective."""
        checked = 0
        for name in engine.names:
            if name not in self.expected:
                continue
            with engine.whole(name) as parameter:
                if engine.ranks.is_first and tensor_sha256(parameter) != self.expected[name]:
                    raise FrozenWeightsError(f"{name} is frozen but differs from the base {moment}; nothing was written. Please report this run")
            checked += 1
        return checked

    def check_exported(self, hashes: dict[str, str], built_hashes: dict[str, str]) -> int:
        """Compare the hashes of exported tensors with those of the build; returns how many."""
        changed = [name for name in self.expected if hashes.get(name) != built_hashes[name]]
        if changed:
            raise FrozenWeightsError(f"{len(changed)} frozen tensors changed on export, first {changed[0]}; the export was not kept")
        return len(self.expected)
