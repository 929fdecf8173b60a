"""Two models on the same benchmark items: the `tasks` and `groups` of results.json, with paired intervals, tests and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from slayer.errors import DataError
from slayer.evaluation.items import MetricItems, TaskFacts, TaskScores
from slayer.evaluation.statistics import holm, metric_estimate, metric_stderr, metric_value, paired_change

SIGNIFICANCE = 0.05

Scores = Mapping[str, TaskScores]


def compare_tasks(facts: Sequence[TaskFacts], base: Scores | None, result: Scores, seed: int = 0) -> dict[str, Any]:
    """`{"tasks": …, "groups": …}` of results.json's benchmarks. Without a base, all that compares is None.

    A change counts only if its p-value, corrected after Holm, is below 0.05. A group stands for its members: the correction is
    over the tasks in no group together with the outermost groups; a member's is over the members of its group.
    DataError when the two models were not asked the same.
    """
    for fact in facts:
        _check_scores(fact, base, result)
    chains = _group_chains(facts, result)
    tasks = {}
    for fact in facts:
        before = base[fact.task].metrics[fact.metric] if base is not None else None
        entry = _compared(before, result[fact.task].metrics[fact.metric], fact.higher_is_better, seed)
        all_metrics = _all_metrics(base[fact.task] if base is not None else None, result[fact.task])
        tasks[fact.task] = {**_facts_entry(fact), **entry, "metrics": all_metrics}
    groups = {}
    for group in dict.fromkeys(group for chain in chains.values() for group in chain):
        members = [fact for fact in facts if group in chains[fact.task]]
        before = joined([base[fact.task].metrics[fact.metric] for fact in members]) if base is not None else None
        after = joined([result[fact.task].metrics[fact.metric] for fact in members])
        groups[group] = {**_group_entry(members), **_compared(before, after, members[0].higher_is_better, seed)}
    if base is not None:
        _judge(tasks, groups, chains)
    return {"tasks": tasks, "groups": groups}


def joined(parts: Sequence[MetricItems]) -> MetricItems:
    """The same metric over the items of several tasks: every item counts alike (lm-eval's weight_by_size)."""
    weights = [part.weights_N for part in parts if part.weights_N is not None]
    whole = replace(
        parts[0], values_N=np.concatenate([part.values_N for part in parts]), weights_N=np.concatenate(weights) if weights else None
    )  # fmt: skip
    return replace(whole, value=metric_value(whole))


def benchmark_verdict(change: float, p_holm: float | None, higher_is_better: bool) -> str:
    """learnt or forgotten when the corrected p-value is below 0.05, else no change detected."""
    if p_holm is None or p_holm >= SIGNIFICANCE or change == 0:
        return "no change detected"
    return "learnt" if (change > 0) == higher_is_better else "forgotten"


def top_units(benchmarks: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What stands for itself: the outermost groups and the tasks in none, each with its member tasks."""
    units: dict[str, tuple[str, ...]] = {}
    for name, task in benchmarks["tasks"].items():
        unit = next((group for group in task["groups"] if group in benchmarks["groups"]), name)
        units[unit] = (*units.get(unit, ()), name)
    return units


def _check_scores(fact: TaskFacts, base: Scores | None, result: Scores) -> None:
    for scores, whose in ((base, "base"), (result, "checkpoint")):
        if scores is None:
            continue
        if fact.task not in scores:
            raise DataError(f"the {whose} has no scores on {fact.task}; type tasks=[{fact.task}] to score it again")
        if fact.metric not in scores[fact.task].metrics:
            known = ", ".join(scores[fact.task].metrics) or "nothing"
            raise DataError(f"{fact.task} gave {known} for the {whose}, not {fact.metric}, which it is judged by; name one of them in its task file")
    if base is None:
        return
    before, after = base[fact.task], result[fact.task]
    if not np.array_equal(before.items, after.items):
        raise DataError(
            f"{fact.task}: the base was asked {len(before.items):,} items and the checkpoint {len(after.items):,}, and they are not the same; "
            "score both in one call, with the same seed=, limit= and questions="
        )
    if before.prompts != after.prompts:
        raise DataError(
            f"{fact.task}: base and checkpoint were asked in different words, so their scores cannot be compared; "
            "score both in one call with the same num_fewshot=, and with apply_chat_template=false if their chat templates differ"
        )


def _group_chains(facts: Sequence[TaskFacts], result: Scores) -> dict[str, tuple[str, ...]]:
    """For each task its groups, outermost first, less those whose tasks have no metric in common that items can be put together for."""
    kinds: dict[str, set[tuple[str, str, bool]]] = {}
    for fact in facts:
        items = result[fact.task].metrics[fact.metric]
        kind = (fact.metric, items.aggregation, fact.higher_is_better)
        for group in fact.groups:
            kinds.setdefault(group, set()).add(kind)
    whole = {group for group, found in kinds.items() if len(found) == 1 and next(iter(found))[1] != "corpus"}
    return {fact.task: tuple(group for group in fact.groups if group in whole) for fact in facts}


def _facts_entry(fact: TaskFacts) -> dict[str, Any]:
    return {
        "role": fact.role, "groups": list(fact.groups), "split": fact.split, "num_fewshot": fact.num_fewshot,
        "fewshot_split": fact.fewshot_split, "items": fact.n_items, "available": fact.n_available, "metric": fact.metric,
        "higher_is_better": fact.higher_is_better, "chance": fact.chance, "source": fact.source, "version": fact.version,
    }  # fmt: skip


def _group_entry(members: Sequence[TaskFacts]) -> dict[str, Any]:
    roles = {fact.role for fact in members}
    n_items = sum(fact.n_items for fact in members)
    chances = [fact.chance * fact.n_items / n_items for fact in members if fact.chance is not None]
    return {
        "role": roles.pop() if len(roles) == 1 else None, "tasks": len(members), "items": n_items, "metric": members[0].metric,
        "higher_is_better": members[0].higher_is_better, "chance": sum(chances) if len(chances) == len(members) else None,
    }  # fmt: skip


def _compared(before: MetricItems | None, after: MetricItems, higher_is_better: bool, seed: int) -> dict[str, Any]:
    """One score before and after. `p_holm` and `verdict` come when all p-values are known."""
    entry: dict[str, Any] = dict.fromkeys(
        ("test", "lost", "gained", "base", "base_interval", "result", "result_interval", "change", "change_interval", "p", "p_holm", "noise_floor")
    )
    entry |= {"result": after.value, "result_interval": _bounds(after, seed), "verdict": None}
    if before is not None:
        change = paired_change(before, after, seed)
        entry |= {
            "test": change.test, "lost": change.lost, "gained": change.gained, "base": before.value, "base_interval": _bounds(before, seed),
            "change": change.value, "p": change.p, "verdict": benchmark_verdict(change.value, None, higher_is_better),
        }  # fmt: skip
        if change.low is not None and change.high is not None:
            entry |= {"change_interval": [change.low, change.high], "noise_floor": (change.high - change.low) / 2}
    return entry


def _bounds(items: MetricItems, seed: int) -> list[float] | None:
    found = metric_estimate(items, seed)
    return [found.low, found.high] if found is not None else None


def _all_metrics(base: TaskScores | None, result: TaskScores) -> dict[str, Any]:
    table = {}
    for name, after in result.metrics.items():
        before = base.metrics.get(name) if base is not None else None
        table[name] = {
            "base": before.value if before is not None else None, "result": after.value,
            "base_stderr": metric_stderr(before) if before is not None else None, "result_stderr": metric_stderr(after),
            "higher_is_better": after.higher_is_better,
        }  # fmt: skip
    return table


def _judge(tasks: dict[str, Any], groups: dict[str, Any], chains: Mapping[str, tuple[str, ...]]) -> None:
    """Correct the p-values family by family and set the verdicts."""
    families: dict[str | None, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for name, chain in chains.items():
        for parent, group in zip((None, *chain), chain, strict=False):
            if group not in seen:
                seen.add(group)
                families.setdefault(parent, []).append(groups[group])
        families.setdefault(chain[-1] if chain else None, []).append(tasks[name])
    for family in families.values():
        tested = [entry for entry in family if entry["p"] is not None]
        for entry, p_holm in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = p_holm
            entry["verdict"] = benchmark_verdict(entry["change"], p_holm, entry["higher_is_better"])
