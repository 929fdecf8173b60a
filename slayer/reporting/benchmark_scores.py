"""The benchmark part of results.json as rows to show: tasks and groups of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from slayer.reporting.numbers import MISSING, count, interval

Bounds = tuple[float, float]
Role = Literal["domain", "general"]

UNTESTED = "not tested"
MOST_MEMBERS = 6
"""A group of more tasks is shown as one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task, or one group of `tasks` tasks, in the unit of its metric (an accuracy is a fraction). What was not measured is None."""

    name: str
    role: Role
    depth: int
    tasks: int | None
    num_fewshot: int | None
    items: int | None
    available: int | None
    metric: str
    higher_is_better: bool
    chance: float | None
    source: str
    base: float | None
    base_interval: Bounds | None
    result: float | None
    result_interval: Bounds | None
    change: float | None
    change_interval: Bounds | None
    p: float | None
    p_holm: float | None
    noise_floor: float | None
    verdict: str
    lost: int | None
    gained: int | None

    @property
    def is_sampled(self) -> bool:
        """Fewer items were asked than there are."""
        return self.items is not None and self.available is not None and self.items < self.available

    @property
    def at_chance(self) -> bool:
        """The result cannot be told from guessing: it is not better than chance, or its interval holds chance."""
        if self.chance is None or self.result is None:
            return False
        low, high = self.result_interval or (self.result, self.result)
        return low <= self.chance if self.higher_is_better else high >= self.chance


def benchmarks_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The `benchmarks` part of results.json, empty where there is none."""
    found = results.get("benchmarks")
    return found if isinstance(found, dict) else {}


def task_rows(results: Mapping[str, Any], *, most_members: int = MOST_MEMBERS) -> list[TaskRow]:
    """Rows in reading order: domain tasks before general ones, a group before its members; many members are folded into their group."""
    benchmarks = benchmarks_of(results)
    tasks, groups = entries(benchmarks.get("tasks")), entries(benchmarks.get("groups"))
    rows: list[TaskRow] = []
    for name, entry in tasks.items():
        inside = _groups(entry, groups)
        if not inside:
            rows.append(_row(name, entry, 0))
        elif not any(row.name == inside[0] for row in rows):
            rows += _group_rows(inside[0], tasks, groups, 0, most_members)
    # A stable sort of families, so that members stay behind their group.
    families: list[list[TaskRow]] = []
    for row in rows:
        families = [*families, [row]] if row.depth == 0 else [*families[:-1], [*families[-1], row]]
    families.sort(key=lambda family: family[0].role != "domain")
    return [row for family in families for row in family]


def headline_rows(rows: Sequence[TaskRow]) -> list[TaskRow]:
    """The rows that Holm's correction runs over: tasks of no group, and outermost groups."""
    return [row for row in rows if row.depth == 0]


def entries(value: Any) -> dict[str, dict[str, Any]]:
    """The named dictionaries in a part of results.json; whatever else is there is left out."""
    return {str(name): entry for name, entry in value.items() if isinstance(entry, dict)} if isinstance(value, dict) else {}


def _groups(entry: Mapping[str, Any], groups: Mapping[str, Any]) -> list[str]:
    return [name for name in entry.get("groups") or [] if name in groups]


def _group_rows(
    group: str, tasks: Mapping[str, dict[str, Any]], groups: Mapping[str, dict[str, Any]], depth: int, most_members: int
) -> list[TaskRow]:
    members = {name: entry for name, entry in tasks.items() if group in _groups(entry, groups)}
    children: dict[str, bool] = {}
    for name, entry in members.items():
        inside = _groups(entry, groups)
        deeper = inside[inside.index(group) + 1 :]
        children[deeper[0] if deeper else name] = bool(deeper)
    rows = [_group_row(group, groups[group], members, depth)]
    if len(children) > most_members:
        return rows
    for child, is_group in children.items():
        rows += _group_rows(child, tasks, groups, depth + 1, most_members) if is_group else [_row(child, members[child], depth + 1)]
    return rows


def _group_row(name: str, entry: Mapping[str, Any], members: Mapping[str, Mapping[str, Any]], depth: int) -> TaskRow:
    def common(key: str) -> Any:
        values = {member.get(key) for member in members.values()}
        return values.pop() if len(values) == 1 else None

    available = [member.get("available") for member in members.values()]
    counted = [number for number in available if isinstance(number, int)]
    whole = sum(counted) if counted and len(counted) == len(available) else None
    return _row(name, {
        "role": common("role"), "num_fewshot": common("num_fewshot"), "available": whole, "source": common("source") or "mixed",
        "tasks": len(members), **{key: value for key, value in entry.items() if value is not None},
    }, depth)  # fmt: skip


def _row(name: str, entry: Mapping[str, Any], depth: int) -> TaskRow:
    return TaskRow(
        name=name, role="domain" if entry.get("role") == "domain" else "general", depth=depth, tasks=entry.get("tasks"),
        num_fewshot=entry.get("num_fewshot"), items=entry.get("items"), available=entry.get("available"),
        metric=str(entry.get("metric") or ""), higher_is_better=entry.get("higher_is_better") is not False,
        chance=number(entry.get("chance")), source=str(entry.get("source") or ""), base=number(entry.get("base")),
        base_interval=bounds(entry.get("base_interval")), result=number(entry.get("result")),
        result_interval=bounds(entry.get("result_interval")), change=number(entry.get("change")),
        change_interval=bounds(entry.get("change_interval")), p=number(entry.get("p")), p_holm=number(entry.get("p_holm")),
        noise_floor=number(entry.get("noise_floor")), verdict=_verdict(entry), lost=entry.get("lost"),
        gained=entry.get("gained"),
    )  # fmt: skip


def _verdict(entry: Mapping[str, Any]) -> str:
    # A score that only the task itself can make, such as BLEU, has no value per item and so no test.
    untested = entry.get("change") is not None and entry.get("p") is None
    return UNTESTED if untested else str(entry.get("verdict") or "")


def number(value: Any) -> float | None:
    """The value as a float if it is a finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def bounds(value: Any) -> Bounds | None:
    """Two finite numbers, else None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def score(value: float | None, *, signed: bool = False) -> str:
    """A score in the unit of its metric, in three decimals; fewer for a large one, as of perplexity."""
    if value is None:
        return MISSING
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def span(ends: Bounds | None, *, signed: bool = False) -> str:
    """The ends of an interval in the unit of the metric."""
    if ends is None:
        return MISSING
    largest = max(map(abs, ends))
    return interval(ends, digits=3 if largest < 10 else 2 if largest < 100 else 1, signed=signed)


def probability(p: float | None) -> str:
    """A p value: 0.034, or < 0.001."""
    return MISSING if p is None else "< 0.001" if p < 0.0005 else f"{p:.3f}"


def with_relation(p: float | None) -> str:
    """The same inside a sentence: p = 0.034, p < 0.001."""
    text = probability(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def asked(row: TaskRow) -> str:
    """How many of a task's items were asked: 200 of 2,376; all 817."""
    if row.items is None:
        return MISSING
    if row.available is None:
        return count(row.items)
    return f"{count(row.items)} of {count(row.available)}" if row.is_sampled else f"all {count(row.items)}"


def shift_shares(shift: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Unshifted, marginal and shifted tokens in percent; None when one is missing."""
    parts = [number(shift.get(f"{name}_percent")) for name in ("unshifted", "marginal", "shifted")]
    first, second, third = parts
    return None if first is None or second is None or third is None else (first, second, third)


def benchmark_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Flat numbers for a tracker: eval/TASK/METRIC and eval/TASK/change (groups too), heldout/SOURCE, forgetting/…"""
    flat: dict[str, Any] = {}
    benchmarks = benchmarks_of(results)
    for name, entry in {**entries(benchmarks.get("tasks")), **entries(benchmarks.get("groups"))}.items():
        for metric, values in entries(entry.get("metrics")).items():
            flat[f"eval/{name}/{metric}"] = values.get("result")
        flat |= {f"eval/{name}/{entry.get('metric') or 'score'}": entry.get("result"), f"eval/{name}/change": entry.get("change")}
    for source, entry in entries(results.get("heldout")).items():
        flat[f"heldout/{source}"] = entry.get("result")
    forgetting = results.get("forgetting")
    if isinstance(forgetting, dict):
        flat["forgetting/fg_percent"] = forgetting.get("fg_percent")
        for source, entry in entries(forgetting.get("shift")).items():
            names = ("kl_nats", "unshifted_percent", "marginal_percent", "shifted_percent")
            flat |= {f"forgetting/{source}/{name}": entry.get(name) for name in names}
    return {key: known for key, value in flat.items() if (known := number(value)) is not None}
