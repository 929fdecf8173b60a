"""Every error a user can cause. Each message says what is wrong, the value seen, the key, and what to type instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slayer.secrets import redacted


class SlayerError(Exception):
    """Base of all errors that are shown to a person as one message without a traceback, and without the secrets that its text may repeat."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class PlanError(SlayerError):
    """A layer plan that cannot be made, read, or that does not fit the model at hand."""


class ModelError(SlayerError):
    """A model folder or hub name that cannot be used."""


class DataError(SlayerError):
    """Text that cannot be found, read or tokenised."""


class AssetError(SlayerError):
    """An embedded asset that is missing or whose hash is wrong."""


class CheckpointError(SlayerError):
    """A checkpoint or run folder that does not belong to this run or is damaged."""


class FrozenWeightsError(SlayerError):
    """A tensor that should be frozen differs from the base model's."""


class TrainingError(SlayerError):
    """Training that leads nowhere: bad steps that neither skipping nor going back gets past."""


class EngineError(SlayerError):
    """The training engine cannot be opened: no free port, no such device, not enough disk space."""


class ToldError(SlayerError):
    """What the first rank of a run tells the person: on the others it only ends them."""


class InstallationError(SlayerError):
    """Packages that are missing, or older than is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a configuration: where, what was seen, why it is wrong, and the overrides that mend it.

    `fix` is what to type: words of a command line; alternatives are joined by ", or ", a remark stands in brackets behind three
    spaces, and "leave out KEY" means what it says.
    """

    key: str
    value: object
    why: str
    fix: str

    def __str__(self) -> str:
        shown = (
            {None: "null", True: "true", False: "false"}.get(self.value) if self.value is None or isinstance(self.value, bool) else repr(self.value)
        )
        return f"{self.key} = {shown}: {self.why}\n     type: {self.fix}"


class ConfigError(SlayerError):
    """All problems of a configuration, found together and reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem in the configuration" if count == 1 else f"{count} problems in the configuration"
        super().__init__("\n".join([head, *(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        """Ranks send each other what they found wrong."""
        return ConfigError, (self.problems,)
