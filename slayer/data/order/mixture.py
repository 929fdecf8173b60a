"""Which source serves which row of the stream: fixed by shares alone, as even as it can be, and open at any place.

Weights are shares of trained tokens: places that carry a label, every token of a document but its first. Rows of different
sources hold different numbers of them, so a source with m of them per row gets its share of tokens divided by m, normed, of the rows.

The order is that of the chairman assignment problem (Tijdeman 1980): at every prefix of n rows of a stage, each source has served
its share × n rows to within less than one row. With rational shares the order is periodic, so one period answers every question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig
from slayer.errors import DataError

LONGEST_PERIOD_ROWS = 1 << 16
"""Shares of rows whose common denominator is larger are rounded to multiples of 1 / this: a change of less than 0.002 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShares:
    """Asked shares of trained tokens, of every source, from a number of trained tokens on; they add up to 1."""

    from_tokens: int
    shares: dict[str, Fraction]


def stage_shares(data: DataConfig) -> list[StageShares]:
    """The first mixture (from token 0) and every later one; what a stage does not name stays as it was before.

    Replay sources together get the replay share, domain sources the rest; weights count within a role. DataError, with the key,
    when a role that should be served has no source or no weight left, a stage names no source of this mixture, or stages do not
    follow one another.
    """
    replay, weights = data.replay, {name: source.weight for name, source in data.sources.items()}
    found = [StageShares(from_tokens=0, shares=_shares(data, replay, weights, "data.replay"))]
    for number, stage in enumerate(data.stages):
        key = f"data.stages[{number}]"
        unknown = [name for name in stage.weights if name not in weights]
        if unknown:
            raise DataError(f"{key}.weights names {', '.join(unknown)}, but the sources are {', '.join(weights)}\n    type: one of these names")
        if stage.from_tokens <= found[-1].from_tokens:
            raise DataError(
                f"{key}.from_tokens={stage.from_tokens} is not after {found[-1].from_tokens}, where the stage before begins\n"
                f"    type: the stages in the order of their from_tokens"
            )
        replay = replay if stage.replay is None else stage.replay
        weights = weights | stage.weights
        found.append(StageShares(from_tokens=stage.from_tokens, shares=_shares(data, replay, weights, f"{key}.replay")))
    return found


def _shares(data: DataConfig, replay: float, weights: Mapping[str, float], replay_key: str) -> dict[str, Fraction]:
    replay_share = _exact(replay)
    shares: dict[str, Fraction] = {}
    for role, whole in (("domain", 1 - replay_share), ("replay", replay_share)):
        names = [name for name, source in data.sources.items() if source.role == role]
        total = sum((_exact(weights[name]) for name in names), Fraction(0))
        if whole > 0 and total == 0:
            lacking = f"every source with role={role} has weight 0" if names else f"no source has role={role}"
            fix = f"data.sources.NAME.role={role}" if not names else f"a weight above 0 for {' or '.join(names)}"
            if role == "replay":
                fix = f"{replay_key}=0, or {fix}"
            raise DataError(f"{replay_key}={replay} asks for {role} text, but {lacking}\n    type: {fix}")
        shares |= {name: whole * _exact(weights[name]) / (total or 1) for name in names}
    return {name: shares[name] for name in data.sources}


def _exact(value: float) -> Fraction:
    """The number a person wrote: 0.1 is one tenth, not the nearest binary fraction."""
    return Fraction(repr(value))


def row_shares(token_shares: Mapping[str, Fraction], labels_per_row: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Share of the rows of each source that makes these shares of the trained tokens. Sources that are not served need no labels."""
    parts = {name: share / labels_per_row[name] if share else Fraction(0) for name, share in token_shares.items()}
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """One period of the order: `order[r]` is the source of row r. Rows count from the beginning of the stage."""

    order: NDArray[np.int64]
    n_sources: int

    @cached_property
    def before(self) -> NDArray[np.int32]:
        """before[r, i]: how many of rows 0 to r - 1 source i serves; r up to the period, included."""
        served = np.zeros((len(self.order) + 1, self.n_sources), dtype=np.int32)
        served[np.arange(1, len(served)), self.order] = 1
        return np.cumsum(served, axis=0, dtype=np.int32)

    @property
    def period_rows(self) -> int:
        """After so many rows the order repeats."""
        return len(self.order)

    def source_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Source index of each row."""
        sources: NDArray[np.int64] = self.order[rows % self.period_rows]
        return sources

    def index_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many earlier rows the same source serves."""
        periods, place = np.divmod(rows, self.period_rows)
        source = self.order[place]
        indices: NDArray[np.int64] = periods * self.before[-1, source].astype(np.int64) + self.before[place, source]
        return indices

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Rows of each source among the first `rows` rows."""
        periods, place = divmod(rows, self.period_rows)
        counts: NDArray[np.int64] = periods * self.before[-1].astype(np.int64) + self.before[place]
        return counts


def build_mixture(shares: Mapping[str, Fraction]) -> Mixture:
    """The order for these shares of rows (they must add up to 1; a share of 0 is never served, any other at least once a period)."""
    return _mixture(tuple(_whole_numbers(list(shares.values()))))


@lru_cache(maxsize=64)
def _mixture(weights: tuple[int, ...]) -> Mixture:
    return Mixture(order=np.array(_tijdeman(weights), dtype=np.int64), n_sources=len(weights))


def _whole_numbers(shares: Sequence[Fraction]) -> list[int]:
    """Rows of each source in one period."""
    if sum(shares) != 1 or min(shares) < 0:
        raise ValueError(f"shares must be ≥ 0 and add up to 1, not {[str(share) for share in shares]}")
    period = math.lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD_ROWS:
        return [int(share * period) for share in shares]
    floors = [max(int(share * LONGEST_PERIOD_ROWS), int(share > 0)) for share in shares]
    short = LONGEST_PERIOD_ROWS - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: (floors[i] - shares[i] * LONGEST_PERIOD_ROWS, i))
    for i in by_remainder[: max(short, 0)]:
        floors[i] += 1
    floors[floors.index(max(floors))] += min(short, 0)  # what tiny shares were given beyond their due
    return floors


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """A stretch of steps with one mixture. `served[i]` is the number of rows that source i served before it."""

    from_tokens: int
    from_step: int
    token_shares: dict[str, Fraction]
    row_shares: dict[str, Fraction]
    mixture: Mixture
    served: NDArray[np.int64]


class Schedule:
    """The mixtures of all stages, one after another. Within a source rows count on from stage to stage: nothing comes twice."""

    def __init__(self, stages: Sequence[Stage], labels_per_row: Mapping[str, Fraction], batch_rows: int) -> None:
        self.stages = tuple(stages)
        self._labels_per_row = np.array([float(labels_per_row.get(name, 0)) for name in stages[0].token_shares])
        self._from_rows = np.array([stage.from_step * batch_rows for stage in stages], dtype=np.int64)

    def stage_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Stage of each global row, from 0."""
        stages: NDArray[np.int64] = np.searchsorted(self._from_rows, rows, side="right") - 1
        return stages

    def source_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Source index of each global row."""
        sources = np.empty(len(rows), dtype=np.int64)
        for stage, mine, within in self._by_stage(rows):
            sources[mine] = stage.mixture.source_of(within)
        return sources

    def index_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many earlier global rows the same source serves: the row's number within its source."""
        indices = np.empty(len(rows), dtype=np.int64)
        for stage, mine, within in self._by_stage(rows):
            indices[mine] = stage.served[stage.mixture.source_of(within)] + stage.mixture.index_of(within)
        return indices

    def counts(self, n_rows: int) -> NDArray[np.int64]:
        """Rows of each source among the first `n_rows` global rows."""
        number = int(self.stage_of(np.array([n_rows]))[0])
        stage = self.stages[number]
        counts: NDArray[np.int64] = stage.served + stage.mixture.counts(n_rows - int(self._from_rows[number]))
        return counts

    def expected_tokens(self, n_rows: int) -> NDArray[np.float64]:
        """Trained tokens of each source in the first `n_rows` global rows, when every row holds its source's mean."""
        expected: NDArray[np.float64] = self.counts(n_rows) * self._labels_per_row
        return expected

    def _by_stage(self, rows: NDArray[np.int64]) -> list[tuple[Stage, NDArray[np.bool_], NDArray[np.int64]]]:
        numbers = self.stage_of(rows)
        masks = [(int(number), numbers == number) for number in np.unique(numbers)]
        return [(self.stages[number], mine, rows[mine] - self._from_rows[number]) for number, mine in masks]


def build_schedule(asked: Sequence[StageShares], labels_per_row: Mapping[str, Fraction], batch_rows: int) -> Schedule:
    """Stages with their first steps. `labels_per_row` are means, needed of every source that is served at all.

    A stage begins at the first step before which so many tokens are expected to have been trained; a step has one mixture.
    """
    rows = [row_shares(stage.shares, labels_per_row) for stage in asked]
    steps = [0]
    tokens = Fraction(0)
    for following, shares in zip(asked[1:], rows[:-1], strict=True):
        per_step = batch_rows * sum((share * labels_per_row[name] for name, share in shares.items() if share), Fraction(0))
        lasting = max(math.ceil((following.from_tokens - tokens) / per_step), 0)
        tokens += lasting * per_step
        steps.append(steps[-1] + lasting)
    mixtures = [build_mixture(shares) for shares in rows]
    served = [np.zeros(len(rows[0]), dtype=np.int64)]
    for mixture, (begin, end) in zip(mixtures, pairwise(steps), strict=False):
        served.append(served[-1] + mixture.counts((end - begin) * batch_rows))
    stages = [
        Stage(from_tokens=stage.from_tokens, from_step=step, token_shares=stage.shares, row_shares=shares, mixture=mixture, served=before)
        for stage, step, shares, mixture, before in zip(asked, steps, rows, mixtures, served, strict=True)
    ]
    return Schedule(stages, labels_per_row, batch_rows)
