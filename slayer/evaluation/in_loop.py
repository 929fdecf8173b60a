"""Benchmarks in the middle of training: few items of each task, always the same, on the model that is being trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask
from slayer.evaluation.items import TaskScores
from slayer.evaluation.statistics import metric_value

ROW_TOKENS = 512
"""Fixed, not chosen by free memory: under ZeRO-3 every rank must make the same forward passes."""


class InLoopTasks:
    """The tasks of a suite cut down to some items each. Tasks that generate text take too long and are left out (`left_out`)."""

    def __init__(self, tasks: Sequence[LoadedTask], items_per_task: int) -> None:
        self.left_out = [one.facts.task for one in tasks if one.facts.generates]
        self.tasks = [_fewer(one, items_per_task) for one in tasks if not one.facts.generates]

    def score(self, model: Any, tokenizer: Any, scoring: Scoring) -> dict[str, float]:
        """The main metric of every task, of a model in evaluation mode. Under ZeRO-3 all ranks must call together."""
        from slayer.evaluation.harness.lm import SharedPrefixLM

        lm = SharedPrefixLM(model, tokenizer, batch_tokens=scoring.batch_tokens or ROW_TOKENS)
        return self.part_of({one.facts.task: score_task(lm, one, scoring) for one in self.tasks})

    def part_of(self, scores: Mapping[str, TaskScores]) -> dict[str, float]:
        """What `score` would have given, from scores of the whole tasks."""
        values = {}
        for one in self.tasks:
            found = scores[one.facts.task]
            metric, places = found.metrics[one.facts.metric], np.flatnonzero(np.isin(found.items, one.indices_N))
            weights = None if metric.weights_N is None else metric.weights_N[places]
            values[one.facts.task] = metric_value(replace(metric, values_N=metric.values_N[places], weights_N=weights))
        return values


def _fewer(loaded: LoadedTask, n_items: int) -> LoadedTask:
    """Some of the items, evenly spread: no seed is needed, and the same items are chosen on every rank and in every start."""
    if len(loaded.indices_N) <= n_items:
        return loaded
    places = np.linspace(0, len(loaded.indices_N) - 1, n_items).round().astype(np.int64)
    return replace(loaded, indices_N=loaded.indices_N[places], facts=replace(loaded.facts, n_items=n_items))
