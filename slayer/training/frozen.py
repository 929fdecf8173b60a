"""The audit of frozen weights: their bytes must be the base's after every load, at every save and at export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slayer.errors import FrozenWeightsError
from slayer.surgery.weights import Weights, tensor_sha256
from slayer.training.engine import TrainingEngine
from slayer.training.ranks import Ranks

if TYPE_CHECKING:
    import torch


class FrozenAudit:
    """Hashes of the tensors as they stand in the expanded folder, in the engine's compute type."""

    def __init__(self, expanded: Path, built_hashes: dict[str, str], dtype: torch.dtype, ranks: Ranks) -> None:
        """FrozenWeightsError when the folder itself no longer holds what was built. Each rank reads some of it. Collective."""
        self._built, self._dtype = built_hashes, dtype
        own = ranks.together(lambda: self._read(Weights(expanded), ranks))
        self._start: dict[str, str] = {name: digest for hashes in ranks.gather(own) for name, digest in hashes.items()}
        self._expected: dict[str, str] = {}
        self._resident: dict[str, str] = {}

    def _read(self, weights: Weights, ranks: Ranks) -> dict[str, str]:
        hashes = {}
        for name in sorted(weights.infos)[ranks.rank :: ranks.world]:
            tensor = weights[name]
            if tensor_sha256(tensor) != self._built[name]:
                raise FrozenWeightsError(f"{name} in {weights.folder} is not what was built there; remove that folder and start the run again")
            hashes[name] = tensor_sha256(tensor.to(self._dtype))
        return hashes

    def check(self, engine: TrainingEngine, moment: str) -> int:
        """Compare every tensor that does not train now: with the base, or, where it trained in an earlier freeze stage, with what it had
        become by then. Returns how many; FrozenWeightsError, told by the first rank. Collective."""
        trains, problem = set(engine.trainable), None
        self._expected = {name: digest for name, digest in self._start.items() if name not in trains}
        for name in engine.changed:
            if name in self._expected:
                self._expected[name] = tensor_sha256(engine.state_of(name, "master").to(self._dtype))
        for name in engine.names:
            if name not in self._expected:
                continue
            with engine.whole(name) as parameter:
                if engine.ranks.is_first and problem is None and tensor_sha256(parameter) != self._expected[name]:
                    problem = FrozenWeightsError(f"{name} is frozen but differs from the base {moment}; nothing was written. Please report this run")
        engine.ranks.agree_on(problem)
        # Under ZeRO-3 a rank holds a part of each: its hash is taken now that the whole is known to be right.
        names = [name for name in engine.names if name in self._expected]
        self._resident = {name: tensor_sha256(engine.resident(name)) if engine.stage == 3 else self._expected[name] for name in names}
        return len(names)

    def check_resident(self, engine: TrainingEngine) -> None:
        """The same for what this rank itself holds, without talking to the others: safe beside training. FrozenWeightsError."""
        for name, digest in self._resident.items():
            if tensor_sha256(engine.resident(name)) != digest:
                raise FrozenWeightsError(
                    f"{name} is frozen but has changed on rank {engine.ranks.rank}; this checkpoint was not kept. "
                    "Start the same command again to go on from the one before; if it comes again, the memory or the GPU of that rank is failing"
                )

    def check_exported(self, hashes: dict[str, str], changed: list[str]) -> int:
        """Compare the hashes of exported tensors, but those that trained, with the build's; returns how many."""
        frozen = sorted(set(self._built) - set(changed))
        wrong = [name for name in frozen if hashes.get(name) != self._built[name]]
        if wrong:
            raise FrozenWeightsError(f"{len(wrong)} frozen tensors changed on export, first {wrong[0]}; the export was not kept")
        return len(frozen)
