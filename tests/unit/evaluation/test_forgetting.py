"""The table of what was learnt and what was forgotten."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from slayer.evaluation.comparison import compare_tasks
from slayer.evaluation.forgetting import compare, fg_percent, forgetting_summary, objective, sequence_scores
from slayer.evaluation.heldout import HeldoutSet, build_heldout_set
from slayer.evaluation.items import MetricItems, TaskFacts, TaskScores

N_BYTES = 100


class Text:
    def __init__(self, name: str) -> None:
        self.id, self.tokens, self.n_bytes = name, np.arange(1, 11), N_BYTES


def heldout(source: str, count: int) -> HeldoutSet:
    return build_heldout_set(source, [Text(f"{source}{number}") for number in range(count)], prefix_token=0, row_tokens=32)


def table(factors: dict[str, float], count: int = 30, noise: float = 0.01) -> dict[str, Any]:
    """Documents of about 1 bit per byte under the base; the result multiplies each source's nats by its factor."""
    generator = np.random.default_rng(0)
    base = {source: N_BYTES * math.log(2) * generator.uniform(0.8, 1.2, count) for source in factors}
    result = {source: base[source] * factor * generator.normal(1, noise, count) for source, factor in factors.items()}
    roles = {source: "replay" if source.startswith("old") else "domain" for source in factors}
    return compare({source: heldout(source, count) for source in factors}, roles, base, result, {source: 2 * base[source] for source in base})


def test_each_source_gets_its_scores_and_its_verdict() -> None:
    found = table({"law": 0.8, "old": 1.02, "old_too": 1.0})
    assert {source: entry["verdict"] for source, entry in found.items()} == {
        "law": "learnt",
        "old": "forgotten",
        "old_too": "no change detected",
    }
    law = found["law"]
    assert (law["role"], law["documents"], law["bytes"], law["tokens"]) == ("domain", 30, 3_000, 300)
    assert law["change_percent"] == pytest.approx(-20, abs=1) and law["change_percent"] == pytest.approx(100 * (law["result"] / law["base"] - 1))
    assert law["start"] == pytest.approx(2 * law["base"]) and law["base"] == pytest.approx(1, abs=0.1)
    for value, interval in (("base", "base_interval"), ("result", "result_interval"), ("change_percent", "change_interval_percent")):
        assert law[interval][0] < law[value] < law[interval][1]
    assert json.loads(json.dumps(found)) == found


def test_one_document_decides_nothing() -> None:
    assert table({"law": 0.5}, count=1)["law"]["verdict"] == "no change detected"
    assert table({"law": 0.5}, count=20, noise=0.0)["law"]["verdict"] == "learnt"


def test_before_training_there_may_be_no_start() -> None:
    base = {"law": np.full(3, 70.0)}
    assert compare({"law": heldout("law", 3)}, {"law": "domain"}, base, base)["law"]["start"] is None


def test_the_objective_of_a_sweep_is_the_mean_over_its_sources() -> None:
    found = table({"law": 0.8, "code": 0.6, "old": 1.2})
    assert objective(found, "domain_bits_per_byte") == pytest.approx((found["law"]["result"] + found["code"]["result"]) / 2)
    assert objective(found, "replay_bits_per_byte") == found["old"]["result"]
    assert objective(found, "mean_bits_per_byte") == pytest.approx(sum(entry["result"] for entry in found.values()) / 3)
    assert objective(table({"law": 1.0}), "replay_bits_per_byte") == math.inf


def test_without_a_base_there_is_no_change() -> None:
    entry = compare({"law": heldout("law", 3)}, {"law": "domain"}, None, {"law": np.full(3, 70.0)})["law"]
    assert entry["result"] is not None and {entry[key] for key in entry if key.startswith(("base", "change"))} == {None} == {entry["verdict"]}


def test_fg_by_hand() -> None:
    """Two tasks, two models: (10 % + 20 %) / 2 on the first, (0 % − 5 %) / 2 on the second."""
    assert fg_percent([0.5, 0.4], [[0.45, 0.4], [0.4, 0.42]], [True, True]) == pytest.approx((15 - 2.5) / 2)
    assert fg_percent([2.0], [[2.2]], [False]) == pytest.approx(10), "more bits per byte are forgetting"


def test_a_sequence_by_hand() -> None:
    """GEM's matrix: row t is after training on domain t. OP = (0.5 + 0.6 + 0.9) / 3; BWT = ((0.5 − 0.8) + (0.6 − 0.7)) / 2."""
    matrix = [[0.8, 0.2, 0.1], [0.6, 0.7, 0.2], [0.5, 0.6, 0.9]]
    found = sequence_scores(matrix, higher_is_better=True, base_T=[0.4, 0.4, 0.4])
    assert found["op"] == pytest.approx(2 / 3) and found["bwt"] == pytest.approx(-0.2)
    assert found["fg_percent"] == pytest.approx(100 * (0.4 - np.mean(matrix)) / 0.4)
    bits = sequence_scores([[1.0, 2.0], [1.3, 1.1]], higher_is_better=False)
    assert bits["op"] == pytest.approx(1.2) and bits["bwt"] == pytest.approx(-0.3) and bits["fg_percent"] is None
    assert sequence_scores([[0.5]], higher_is_better=True)["bwt"] is None
    with pytest.raises(ValueError, match="as many models as domains"):
        sequence_scores([[0.5, 0.4]], higher_is_better=True)


def asked(task: str, right: int, n_items: int, **changes: Any) -> tuple[TaskFacts, TaskScores]:
    values: dict[str, Any] = dict(
        task=task, role="general", groups=(), split="test", num_fewshot=0, fewshot_split=None, n_items=n_items, n_available=n_items, metric="acc",
        higher_is_better=True, chance=None, generates=False, source="wheel", version="1",
    )  # fmt: skip
    values_N = np.repeat([1.0, 0.0], [right, n_items - right])
    items = MetricItems(name="acc", value=float(values_N.mean()), higher_is_better=True, aggregation="mean", values_N=values_N)
    return TaskFacts(**{**values, **changes}), TaskScores(task=task, items=np.arange(n_items), prompts="", metrics={"acc": items})


def models(right: dict[str, tuple[int, int]], **changes: dict[str, Any]) -> tuple[list[TaskFacts], dict[str, TaskScores], dict[str, TaskScores]]:
    """Right answers of 200 before and after, by task; the result loses the last ones."""
    pairs = {task: [asked(task, count, 200, **changes.get(task, {})) for count in counts] for task, counts in right.items()}
    facts = [pair[0][0] for pair in pairs.values()]
    return facts, {task: pair[0][1] for task, pair in pairs.items()}, {task: pair[1][1] for task, pair in pairs.items()}


def test_forgetting_is_that_of_general_tasks_and_a_group_counts_once() -> None:
    facts, base, result = models(
        {"arc": (100, 90), "maths": (80, 60), "law": (120, 100), "french": (50, 100), "none": (0, 10)},
        maths={"groups": ("mmlu",)}, law={"groups": ("mmlu",)}, french={"role": "domain"},
    )  # fmt: skip
    compared = compare_tasks(facts, base, result)
    found = forgetting_summary(compared, None, base, result)
    assert found["fg_tasks"] == ["arc", "mmlu"], "not what was to be learnt, and not what the base cannot do at all"
    assert found["fg_percent"] == pytest.approx((10 + 100 * 40 / 200) / 2)
    low, high = found["fg_interval_percent"]
    # Delta method: the share lost of n right answers is a proportion of n; a task's losses vary on their own.
    half = 1.96 * 100 * math.sqrt(0.1 * 0.9 / 100 + 0.2 * 0.8 / 200) / 2
    assert (low, high) == pytest.approx((15 - half, 15 + half), rel=0.08)
    assert json.loads(json.dumps(found)) == found
    assert forgetting_summary(compared, None)["fg_interval_percent"] is None


def test_a_group_of_both_roles_counts_by_its_general_tasks() -> None:
    facts, base, result = models({"a": (100, 90), "b": (100, 50)}, a={"groups": ("all",)}, b={"groups": ("all",), "role": "domain"})
    found = forgetting_summary(compare_tasks(facts, base, result), {"law": {"kl_nats": 0.1}}, base, result)
    assert found["fg_tasks"] == ["a"] and found["fg_percent"] == pytest.approx(10) and found["shift"] == {"law": {"kl_nats": 0.1}}


def test_without_benchmarks_or_base_there_is_no_forgetting() -> None:
    facts, _, result = models({"a": (100, 90)})
    for benchmarks in (None, compare_tasks(facts, None, result)):
        assert forgetting_summary(benchmarks, None) == {"fg_percent": None, "fg_interval_percent": None, "fg_tasks": [], "shift": None}
