"""What was found out about one model on one task: a value for every item, so that two models can be compared item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["mean", "ratio", "perplexity", "corpus"]
"""How items become one value. mean: of the values; ratio: sum of values over sum of weights (bits per byte: bits and bytes);
perplexity: exp of minus the mean (values are log-likelihoods in nats); corpus: only the task itself can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricItems:
    """One metric of one task. `values_N` are in the order of the task's items; `weights_N` of a ratio only."""

    name: str
    value: float
    higher_is_better: bool
    aggregation: Aggregation
    values_N: NDArray[np.float64]
    weights_N: NDArray[np.float64] | None = None

    @property
    def is_binary(self) -> bool:
        """Every item is right (1) or wrong (0)."""
        return self.aggregation == "mean" and bool(np.isin(self.values_N, (0.0, 1.0)).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """One model on one task. `items` are the task's own item numbers [N]; `prompts` a hash of everything the model was asked.

    `answers` are the texts that it wrote, of tasks that generate; empty for the others.
    """

    task: str
    items: NDArray[np.int64]
    prompts: str
    metrics: Mapping[str, MetricItems]
    seconds: float = 0.0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What does not depend on the model.

    `metric` is the name of the one that verdicts are about. `chance` is its value for a model that guesses, where that is known.
    `groups` are lm-eval's groups around the task, outermost first. `source` says where the questions came from.
    """

    task: str
    role: Literal["general", "domain"]
    groups: tuple[str, ...]
    split: str
    num_fewshot: int
    fewshot_split: str | None
    n_items: int
    n_available: int
    metric: str
    higher_is_better: bool
    chance: float | None
    generates: bool
    source: str
    version: str
