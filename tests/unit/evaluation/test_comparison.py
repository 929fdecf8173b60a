"""Two models on the same items: verdicts against simulated truths, families of the correction, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from slayer.errors import DataError
from slayer.evaluation.comparison import benchmark_verdict, compare_tasks, joined, top_units
from slayer.evaluation.items import MetricItems, TaskFacts, TaskScores

COMPARED = (
    "metric", "higher_is_better", "chance", "base", "base_interval", "result", "result_interval", "change", "change_interval", "p", "p_holm",
    "noise_floor", "verdict",
)  # fmt: skip
TASK_KEYS = {
    *COMPARED, "role", "groups", "split", "num_fewshot", "fewshot_split", "items", "available", "source", "version", "test", "lost", "gained",
    "metrics",
}  # fmt: skip
GROUP_KEYS = {*COMPARED, "tasks", "items"}


def facts(task: str, n_items: int, **changes: Any) -> TaskFacts:
    values: dict[str, Any] = dict(
        task=task, role="general", groups=(), split="test", num_fewshot=0, fewshot_split=None, n_items=n_items, n_available=n_items, metric="acc",
        higher_is_better=True, chance=0.25, generates=False, source="wheel", version="1.0",
    )  # fmt: skip
    return TaskFacts(**{**values, **changes})


def scores(task: str, values: Any, **changes: Any) -> TaskScores:
    values_N = np.asarray(values, np.float64)
    items = MetricItems(
        **{"name": "acc", "value": float(values_N.mean()), "higher_is_better": True, "aggregation": "mean", "values_N": values_N, **changes}
    )
    return TaskScores(task=task, items=np.arange(len(values_N)), prompts="as asked", metrics={items.name: items})


def answers(right: float, n_items: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n_items) < right).astype(np.float64)


def changed(before: np.ndarray, lost: int, gained: int) -> np.ndarray:
    after = before.copy()
    after[np.flatnonzero(before == 1)[:lost]] = 0
    after[np.flatnonzero(before == 0)[:gained]] = 1
    return after


def test_a_task_in_the_words_of_results_json() -> None:
    before = answers(0.6, 200, seed=0)
    found = compare_tasks([facts("arc", 200)], {"arc": scores("arc", before)}, {"arc": scores("arc", changed(before, 7, 3))})
    entry = found["tasks"]["arc"]
    assert set(entry) == TASK_KEYS and found["groups"] == {}
    assert (entry["test"], entry["lost"], entry["gained"]) == ("mcnemar", 7, 3) and entry["p"] == pytest.approx(0.34375) == entry["p_holm"]
    assert entry["base"] == before.mean() and entry["change"] == pytest.approx(-0.02) and entry["verdict"] == "no change detected"
    low, high = entry["change_interval"]
    assert low < -0.02 < high and entry["noise_floor"] == pytest.approx((high - low) / 2)
    assert entry["metrics"]["acc"]["base_stderr"] == pytest.approx(before.std(ddof=1) / np.sqrt(200))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_a_base_nothing_is_compared() -> None:
    found = compare_tasks([facts("arc", 50, groups=("all",))], None, {"arc": scores("arc", answers(0.6, 50, 0))})
    for entry in (found["tasks"]["arc"], found["groups"]["all"]):
        assert entry["result"] is not None and entry["result_interval"][0] < entry["result"]
        assert all(
            entry[key] is None for key in ("base", "base_interval", "change", "change_interval", "p", "p_holm", "noise_floor", "verdict", "test")
        )


@pytest.mark.parametrize(
    ("change", "p_holm", "higher", "word"),
    [(0.1, 0.01, True, "learnt"), (-0.1, 0.01, True, "forgotten"), (0.1, 0.01, False, "forgotten"), (-0.1, 0.01, False, "learnt"),
     (-0.1, 0.05, True, "no change detected"), (-0.1, None, True, "no change detected"), (0.0, 0.01, True, "no change detected")],
)  # fmt: skip
def test_a_change_is_one_only_if_it_stands_out(change: float, p_holm: float | None, higher: bool, word: str) -> None:
    assert benchmark_verdict(change, p_holm, higher) == word


def test_the_correction_is_over_single_tasks_and_outermost_groups() -> None:
    """alone, and mmlu = {stem = {maths, physics}, law}: families {alone, mmlu}, {stem, law}, {maths, physics}."""
    chains = {"alone": (), "maths": ("mmlu", "stem"), "physics": ("mmlu", "stem"), "law": ("mmlu",)}
    base = {task: answers(0.5, 100, seed) for seed, task in enumerate(chains)}
    losses = {"alone": 12, "maths": 9, "physics": 6, "law": 14}
    found = compare_tasks(
        [facts(task, 100, groups=groups, chance=0.5 if task == "law" else 0.25) for task, groups in chains.items()],
        {task: scores(task, values) for task, values in base.items()},
        {task: scores(task, changed(values, losses[task], 0)) for task, values in base.items()},
    )
    tasks, groups = found["tasks"], found["groups"]
    assert set(groups) == {"mmlu", "stem"} and set(groups["mmlu"]) >= GROUP_KEYS
    for family in ([tasks["alone"], groups["mmlu"]], [groups["stem"], tasks["law"]], [tasks["maths"], tasks["physics"]]):
        first, second = sorted(family, key=lambda entry: entry["p"])
        assert first["p_holm"] == pytest.approx(2 * first["p"]) and second["p_holm"] == pytest.approx(max(2 * first["p"], second["p"]))
    assert (groups["mmlu"]["tasks"], groups["mmlu"]["items"], groups["stem"]["items"]) == (3, 300, 200)
    assert groups["mmlu"]["lost"] == 29 and groups["mmlu"]["p"] == pytest.approx(2 / 2**29)
    assert groups["mmlu"]["chance"] == pytest.approx(1 / 3)
    assert top_units(found) == {"alone": ("alone",), "mmlu": ("maths", "physics", "law")}


def test_a_group_weighs_every_item_alike() -> None:
    parts = [scores("a", answers(0.9, 300, 0)).metrics["acc"], scores("b", answers(0.2, 50, 1)).metrics["acc"]]
    assert joined(parts).value == pytest.approx((300 * parts[0].value + 50 * parts[1].value) / 350)
    bits = [replace(part, aggregation="ratio", weights_N=np.full(len(part.values_N), 4.0)) for part in parts]
    assert joined(bits).value == pytest.approx(sum(part.values_N.sum() for part in bits) / 1400)


def test_tasks_with_nothing_in_common_are_no_group() -> None:
    values = np.linspace(-3, -1, 40)
    likelihood = scores("b", values, name="perplexity", aggregation="perplexity", value=float(np.exp(-values.mean())), higher_is_better=False)
    known = {"a": scores("a", answers(0.5, 40, 0)), "b": likelihood}
    told = [facts("a", 40, groups=("both",)), facts("b", 40, groups=("both",), metric="perplexity", higher_is_better=False, chance=None)]
    found = compare_tasks(told, known, known)
    assert found["groups"] == {} and set(top_units(found)) == {"a", "b"}
    assert {entry["verdict"] for entry in found["tasks"].values()} == {"no change detected"} and found["tasks"]["b"]["test"] == "permutation"


def test_fewer_bits_are_better() -> None:
    generator = np.random.default_rng(0)
    n_bytes, bits = np.full(80, 10.0), generator.uniform(8, 12, 80)
    kind = {"name": "bpb", "aggregation": "ratio", "higher_is_better": False, "weights_N": n_bytes}
    before = scores("gold", bits, **kind, value=bits.sum() / 800)
    after = scores("gold", bits * 0.9, **kind, value=0.9 * bits.sum() / 800)
    entry = compare_tasks([facts("gold", 80, metric="bpb", higher_is_better=False, chance=None)], {"gold": before}, {"gold": after})["tasks"]["gold"]
    assert entry["verdict"] == "learnt" and entry["change"] < 0 and entry["lost"] is None


def test_other_items_or_other_words_are_refused() -> None:
    known = scores("arc", answers(0.5, 30, 0))
    with pytest.raises(DataError, match=r"30 items and the checkpoint 20.*seed="):
        compare_tasks([facts("arc", 30)], {"arc": known}, {"arc": scores("arc", answers(0.5, 20, 0))})
    with pytest.raises(DataError, match=r"different words.*apply_chat_template=false"):
        compare_tasks([facts("arc", 30)], {"arc": known}, {"arc": replace(known, prompts="otherwise")})
    with pytest.raises(DataError, match=r"the base has no scores on arc; type tasks=\[arc\]"):
        compare_tasks([facts("arc", 30)], {}, {"arc": known})
    with pytest.raises(DataError, match="gave acc for the checkpoint, not acc_norm"):
        compare_tasks([facts("arc", 30, metric="acc_norm")], None, {"arc": known})


def suite(after: Any, seed: int) -> list[str]:
    """Verdicts of eight tasks of 100 items; `after` makes the result's answers from the base's."""
    generator = np.random.default_rng(seed)
    base = {f"task{number}": (generator.random(100) < 0.55).astype(np.float64) for number in range(8)}
    result = {task: scores(task, after(values, generator)) for task, values in base.items()}
    found = compare_tasks([facts(task, 100) for task in base], {task: scores(task, values) for task, values in base.items()}, result)
    return [entry["verdict"] for entry in found["tasks"].values()]


def test_equal_models_rarely_raise_an_alarm_and_damaged_ones_do() -> None:
    def equally_good(before: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return np.where(generator.random(100) < 0.2, (generator.random(100) < 0.55), before)

    def damaged(before: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return np.where(generator.random(100) < 0.9, (generator.random(100) < 0.25), before)

    alarms = sum(any(word != "no change detected" for word in suite(equally_good, seed)) for seed in range(40))
    assert alarms <= 4, "the correction holds false alarms in a whole suite to 5 %"
    found = [word for seed in range(5) for word in suite(damaged, seed)]
    assert found.count("forgotten") >= 34 and "learnt" not in found
