"""Where a run stands, in one object: everything the loop needs to go on besides weights, moments and random state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """A return from `from_step` to the checkpoint of `to_step`, after which the data of the steps between is not served again."""

    from_step: int
    to_step: int

    @property
    def jump_steps(self) -> int:
        """Steps by which the data moves on."""
        return self.from_step - self.to_step


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Steps done, tokens trained on, seconds spent in steps, where streamed sources were, the step at which each freeze stage began
    (the last one is the stage in hand), the returns to a checkpoint so far, and whether an evaluation of this step was cut short."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: dict[str, Any] = field(default_factory=dict)
    stage_steps: tuple[int, ...] = (0,)
    rewinds: tuple[Rewind, ...] = ()
    owes_evaluation: bool = False

    @property
    def stage(self) -> int:
        """The freeze stage in hand, from 0."""
        return len(self.stage_steps) - 1

    @property
    def data_step(self) -> int:
        """The step of the loader that this step trains on: a pure function of the step and of the rewinds so far."""
        return _data_step(self.step, self.rewinds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)


def _data_step(step: int, rewinds: tuple[Rewind, ...]) -> int:
    """Behind the step that a rewind went back to the data goes on where it was before: no batch is served twice."""
    for number, rewind in reversed(list(enumerate(rewinds))):
        if rewind.to_step <= step:
            return _data_step(rewind.from_step, rewinds[:number]) + step - rewind.to_step
    return step


def load_state(values: Mapping[str, Any]) -> RunState:
    """What `to_dict` wrote. KeyError or TypeError when it is something else."""
    rewinds = tuple(Rewind(**rewind) for rewind in values["rewinds"])
    return RunState(**{**values, "stage_steps": tuple(values["stage_steps"]), "rewinds": rewinds})


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a checkpoint belongs to: hashes of the expanded model it continues from and of the data it was drawn from."""

    model: str
    data: str
