"""What may be searched, from the words of a command line: `interval(…)`, `tag(log, interval(…))`, `range(…)`, `choice(…)` and lists of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from slayer.config import RunConfig
from slayer.errors import ConfigError, Problem
from slayer.schema import as_override, example_for, field_at, number_kind

SHOWN_DIGITS = 5
"""Significant digits of a number that a search types: names of runs stay readable, and what is learnt of it holds for the number typed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The values of one key: numbers from `low` to `high` (whole ones where `step` is set), evenly on a logarithmic scale if `log`; or `choices`,
    as they are typed. `element` is the key as Hydra was given it."""

    element: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: int | None = None
    choices: tuple[str, ...] = ()

    def distribution(self) -> Any:
        """In optuna's terms."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.step is not None:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=self.step)
        return FloatDistribution(self.low, self.high, log=self.log)

    def word(self, value: Any) -> str:
        """`key=value` as it is typed."""
        if not isinstance(value, float):
            return f"{self.element}={value}"
        short = f"{value:.{SHOWN_DIGITS}g}"
        return f"{self.element}={short if self.low <= float(short) <= self.high else repr(value)}"


def space_of(key: str, override: Any) -> Space:
    """The space of one override as Hydra has parsed it (hydra.core.override_parser.types.Override); ConfigError for one that is empty."""
    element, value = override.get_key_element(), override.value()
    if override.is_interval_sweep():
        log, low, high = "log" in value.tags, float(value.start), float(value.end)
        whole = number_kind(field_at(key, RunConfig)) is int
        if whole:
            low, high = math.ceil(low), math.floor(high)
        if low > high or (log and low <= 0):
            why = "needs a beginning above 0 on a logarithmic scale" if log and low <= 0 else "holds no number"
            raise ConfigError([Problem(key=key, value=override.get_value_string(), why=why, fix=f"{key}=interval(1,2)")])
        return Space(element=element, low=low, high=high, log=log, step=1 if whole else None)
    if override.is_range_sweep():
        numbers = list(value.range())
        if numbers and all(isinstance(number, int) for number in numbers):
            ordered = sorted(numbers)
            return Space(element=element, low=ordered[0], high=ordered[-1], step=ordered[1] - ordered[0] if len(ordered) > 1 else 1)
    return Space(element=element, choices=tuple(dict.fromkeys(override.sweep_string_iterator())))


def interval_problem(key: str, value: str, field: FieldInfo, *, searches: bool) -> Problem | None:
    """Why `key=interval(…)` cannot be: it belongs to a search, and to a key that holds a number."""
    if number_kind(field) is None:
        why = "is a range of numbers, and this key holds none"
        return Problem(key=key, value=value, why=why, fix=as_override(key, example_for(field)))
    if searches:
        return None
    why = "is a range of numbers to search, which hydra/sweeper=optuna does"
    return Problem(key=key, value=value, why=why, fix=f"hydra/sweeper=optuna '{key}={value}'   (python train.py -m …)")


def read_words(arguments: Sequence[str], config_loader: Any = None) -> tuple[list[str], dict[str, Space]]:
    """(the words that are the same at every point, what is searched by key); Hydra's loader of configurations is needed for `glob(…)`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed, space = [], {}
    for override in OverridesParser.create(config_loader=config_loader).parse_overrides(list(arguments)):
        if override.is_sweep_override():
            key = override.get_key_element().lstrip("+")
            space[key] = space_of(key, override)
        else:
            fixed.append(override.input_line)
    return fixed, space
