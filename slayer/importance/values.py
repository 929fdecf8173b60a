"""v(S): what a model with only some of its layers can do, and what that says of the layers left out.

A coalition says for every layer what is left of it, one letter each: `k` whole, `-` gone, `a` its attention alone, `m` its MLP alone,
`2` run twice. "kk-k" is a four-layer model without its third layer.

Shape suffixes: U units of a sample (rows of text, or questions), over which errors are estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from slayer.importance.decoder import Decoder, Part

if TYPE_CHECKING:
    from torch import Tensor

WHOLE, GONE, ATTENTION, MLP, TWICE = "k", "-", "a", "m", "2"

Array = NDArray[np.float64]


class ValueFunction(Protocol):
    """What is asked of a model: loss on a text, accuracy on a suite. Higher is better: a loss counts negative.

    v(S) = sum of gains over the units / sum of weights, so units may be of different size.
    """

    source: str
    """The text or suite."""
    unit: str
    fingerprint: str
    """Changes with anything that changes values, the model aside."""
    parts: Sequence[Part]
    weights_U: Array
    floor: float | None
    """What a model that knows nothing gets (guessing every token alike), where values can be worse than that without end."""

    def read(self, decoder: Decoder, place: int, hidden_BLD: Tensor) -> Array:
        """What part number `place` says, from the states that leave the last layer: any numbers, kept until all parts are read."""

    def gains(self, readings: Sequence[Array]) -> Array:
        """Gains [U] from the readings of all parts, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Gains [U] by coalition. `failed` says why a coalition has none."""

    gains: Mapping[str, Array]
    weights_U: Array
    unit: str
    source: str
    failed: Mapping[str, str] = field(default_factory=dict)
    floor: float | None = None

    def floored(self) -> Values:
        """The same with no unit worth less than the floor: what is shared out is what the model knows, not how far off it can be."""
        if self.floor is None:
            return self
        return replace(self, gains={one: np.maximum(gains_U, self.floor * self.weights_U) for one, gains_U in self.gains.items()})

    def failure(self, coalition: str) -> str | None:
        """Why a coalition has no finite value; None where it has one."""
        if coalition in self.failed:
            return self.failed[coalition]
        if coalition not in self.gains:
            return "not measured"
        return None if np.isfinite(self.gains[coalition]).all() else "its value is not a finite number"

    def value(self, coalition: str) -> float:
        """v(S); NaN where it failed."""
        return mean_and_error(self.gains[coalition], self.weights_U)[0] if coalition in self.gains else float("nan")

    def difference(self, first: str, second: str) -> tuple[float, float]:
        """v(first) − v(second) and its standard error, paired unit by unit; NaN where one of them failed."""
        if first not in self.gains or second not in self.gains:
            return float("nan"), float("nan")
        return mean_and_error(self.gains[first] - self.gains[second], self.weights_U)


def mean_and_error(gains_U: Array, weights_U: Array) -> tuple[float, float]:
    """Σ gains / Σ weights and its standard error over units (ratio estimator, linearised); the error is NaN for a single unit.

    With equal weights: the mean, and the sample standard deviation over √U.
    """
    total, n_units = float(weights_U.sum()), len(weights_U)
    mean = float(gains_U.sum()) / total
    if n_units < 2:
        return mean, float("nan")
    residuals_U = gains_U - mean * weights_U
    return mean, float(np.sqrt((residuals_U**2).sum() * n_units / (n_units - 1)) / total)


def whole(n_layers: int) -> str:
    """Every layer kept."""
    return WHOLE * n_layers


def without(n_layers: int, layers: Sequence[int]) -> str:
    """These layers gone."""
    gone = set(layers)
    return "".join(GONE if layer in gone else WHOLE for layer in range(n_layers))


def without_halves(n_layers: int, players: Sequence[int]) -> str:
    """These halves gone: player 2 i is the attention of layer i, 2 i + 1 its MLP."""
    gone = set(players)
    letters = {(False, False): WHOLE, (True, False): MLP, (False, True): ATTENTION, (True, True): GONE}
    return "".join(letters[2 * layer in gone, 2 * layer + 1 in gone] for layer in range(n_layers))
