"""Which source serves which row of the stream: fixed by the shares alone, as even as it can be, and open at any place.

The order is that of the chairman assignment problem (Tijdeman 1980): at every prefix of n rows, each source has served its
share × n rows to within less than one row. With rational shares the order is periodic, so one period answers every question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig
from slayer.errors import DataError

LONGEST_PERIOD_ROWS = 1 << 18
"""Shares whose common denominator is larger are rounded to multiples of 1 / this (a change of less than 4e-6)."""


def source_shares(data: DataConfig) -> dict[str, Fraction]:
    """Share of the rows of each source, in the order of the configuration; they add up to 1.

    Replay sources together get data.replay, domain sources the rest; weights count within a role. DataError when a role that
    should get rows has no source.
    """
    replay = _exact(data.replay)
    shares: dict[str, Fraction] = {}
    for role, whole in (("domain", 1 - replay), ("replay", replay)):
        weights = {name: _exact(source.weight) for name, source in data.sources.items() if source.role == role}
        if not weights and whole > 0:
            raise DataError(f"data.replay={data.replay} asks for {role} text, but no source has role={role}\n    type: data.sources.NAME.role={role}")
        shares |= {name: whole * weight / sum(weights.values()) for name, weight in weights.items()}
    return {name: shares[name] for name in data.sources}


def _exact(value: float) -> Fraction:
    """The number a person wrote: 0.1 is one tenth, not the nearest binary fraction."""
    return Fraction(repr(value))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """One period of the order. `order[r]` is the source of row r, `before[r, i]` how many of rows 0 to r - 1 source i serves."""

    order: NDArray[np.int64]
    before: NDArray[np.int64]

    @property
    def period_rows(self) -> int:
        """After so many rows the order repeats."""
        return len(self.order)

    def source_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Source index of each global row."""
        sources: NDArray[np.int64] = self.order[rows % self.period_rows]
        return sources

    def index_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many earlier global rows the same source serves: the row's number within its source."""
        periods, place = np.divmod(rows, self.period_rows)
        source = self.order[place]
        indices: NDArray[np.int64] = periods * self.before[-1, source] + self.before[place, source]
        return indices

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Rows of each source among the first `rows` global rows."""
        periods, place = divmod(rows, self.period_rows)
        counts: NDArray[np.int64] = periods * self.before[-1] + self.before[place]
        return counts


def build_mixture(shares: Mapping[str, Fraction]) -> Mixture:
    """The order for these shares (they must add up to 1; a share of 0 is never served)."""
    weights = _whole_numbers(list(shares.values()))
    order = np.array(_tijdeman(weights), dtype=np.int64)
    served = order[:, None] == np.arange(len(weights))[None, :]
    return Mixture(order=order, before=np.concatenate([np.zeros((1, len(weights)), dtype=np.int64), np.cumsum(served, axis=0)]))


def _whole_numbers(shares: Sequence[Fraction]) -> list[int]:
    """Rows of each source in one period."""
    if sum(shares) != 1 or min(shares) < 0:
        raise ValueError(f"shares must be ≥ 0 and add up to 1, not {[str(share) for share in shares]}")
    period = lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD_ROWS:
        return [int(share * period) for share in shares]
    floors = [int(share * LONGEST_PERIOD_ROWS) for share in shares]
    short = LONGEST_PERIOD_ROWS - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: (floors[i] - shares[i] * LONGEST_PERIOD_ROWS, i))
    return [floor + (i in by_remainder[:short]) for i, floor in enumerate(floors)]


def _tijdeman(weights: Sequence[int]) -> list[int]:
    """One period. A source may serve once it is due by 1 / (2k - 2) rows; of those, the one that must serve soonest does."""
    active = [i for i, weight in enumerate(weights) if weight > 0]
    period, scale = sum(weights), max(1, 2 * len(active) - 2)
    due = [0] * len(weights)  # (share × rows so far − rows served) × period
    order = []
    for _ in range(period):
        chosen, chosen_slack = -1, 0
        for i in active:
            due[i] += weights[i]
            if scale * due[i] >= period:
                slack = (scale - 1) * period - scale * due[i]  # rows until the deadline × weight × scale
                if chosen < 0 or slack * weights[chosen] < chosen_slack * weights[i]:
                    chosen, chosen_slack = i, slack
        due[chosen] -= period
        order.append(chosen)
    return order
