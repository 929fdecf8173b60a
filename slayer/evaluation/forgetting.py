"""What was learnt and what was forgotten: held-out scores before and after, the forgetting of benchmarks, and sequences of domains.

Shape suffixes: E tasks, M models one after the other, T domains, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slayer.evaluation.comparison import joined, top_units
from slayer.evaluation.heldout import HeldoutSet
from slayer.evaluation.items import TaskScores
from slayer.evaluation.statistics import RESAMPLES, Estimate, bits_per_byte, change_percent, resampled_values, verdict

Nats = Mapping[str, NDArray[np.float64]]

OBJECTIVE_ROLES = {"domain_bits_per_byte": ("domain",), "replay_bits_per_byte": ("replay",), "mean_bits_per_byte": ("domain", "replay")}
"""The roles of the sources that each objective is the mean of."""


def compare(sets: Mapping[str, HeldoutSet], roles: Mapping[str, str], base: Nats | None, result: Nats, start: Nats | None = None) -> dict[str, Any]:
    """The `heldout` part of results.json: bits per byte of base, start (after surgery, before training) and result, by source.

    Without a base, its scores, the change and the verdict are None.
    """
    table: dict[str, Any] = {}
    for source, heldout in sets.items():
        before = bits_per_byte(base[source], heldout.n_bytes) if base is not None else None
        after = bits_per_byte(result[source], heldout.n_bytes)
        change = change_percent(base[source], result[source]) if base is not None else None
        table[source] = {
            "role": roles[source],
            "documents": heldout.n_documents,
            "bytes": int(heldout.n_bytes.sum()),
            "tokens": int(heldout.n_tokens.sum()),
            "base": before.value if before is not None else None,
            "base_interval": [before.low, before.high] if before is not None else None,
            "start": bits_per_byte(start[source], heldout.n_bytes).value if start is not None else None,
            "result": after.value,
            "result_interval": [after.low, after.high],
            "change_percent": change.value if change is not None else None,
            "change_interval_percent": [change.low, change.high] if change is not None else None,
            "verdict": _heldout_verdict(change, heldout.n_documents),
        }
    return table


def _heldout_verdict(change: Estimate | None, n_documents: int) -> str | None:
    if change is None:
        return None
    return verdict(change) if n_documents > 1 else "no change detected"  # one document has no interval


def objective(table: Mapping[str, Any], name: str) -> float:
    """The score a sweeper minimises: mean bits per byte of the domain sources, of the replay sources, or of all."""
    values = [entry["result"] for entry in table.values() if entry["role"] in OBJECTIVE_ROLES[name]]
    return float(np.mean(values)) if values else float("inf")


def fg_percent(before_E: ArrayLike, after_ME: ArrayLike, higher_is_better_E: Sequence[bool]) -> float:
    """FG of arXiv 2308.08747: mean over tasks e and models m of (R_e^0 − R_e^m) / R_e^0, in percent; positive is forgetting.

    Where lower is better the sign is turned. `before_E` must be above 0: a share of nothing cannot be lost.
    """
    before, after = np.asarray(before_E, np.float64), np.asarray(after_ME, np.float64)
    signs_E = np.where(higher_is_better_E, 1.0, -1.0)
    return float((100 * signs_E * (before - after) / before).mean())


class SequenceScores(TypedDict):
    """Domains learnt one after the other. `op` is in the scores' own unit; `bwt` too, below 0 where something was lost. None: not defined."""

    op: float
    bwt: float | None
    fg_percent: float | None


def sequence_scores(R_TT: ArrayLike, higher_is_better: bool, base_T: ArrayLike | None = None) -> SequenceScores:
    """OP, BWT and FG of a sequence; `R_TT[t][i]` is the score on domain i after training on the t-th, `base_T` before any training.

    OP = mean over i of R[T][i]. BWT = mean over i < T of R[T][i] − R[i][i], as in GEM (arXiv 1706.08840), negated where lower is
    better (bits per byte), so that it is below 0 where later domains cost earlier ones. FG as in `fg_percent`, with N = T.
    BWT of one domain, and FG without a base, are None.
    """
    matrix = np.asarray(R_TT, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a sequence has as many models as domains, not {matrix.shape}")
    moved = matrix[-1, :-1] - np.diagonal(matrix)[:-1]
    sign = 1.0 if higher_is_better else -1.0
    known = base_T is not None and bool((np.asarray(base_T) > 0).all())
    return SequenceScores(
        op=float(matrix[-1].mean()),
        bwt=float(sign * moved.mean()) if len(moved) else None,
        fg_percent=fg_percent(base_T, matrix, [higher_is_better] * len(matrix)) if known and base_T is not None else None,
    )


def forgetting_summary(
    benchmarks: Mapping[str, Any] | None,
    shift: Mapping[str, Any] | None,
    base: Mapping[str, TaskScores] | None = None,
    result: Mapping[str, TaskScores] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The `forgetting` part of results.json: FG over the general tasks (a group counts once) and the shift from the base.

    With both models' scores FG gets an interval: a bootstrap over items within each task. Tasks on which the base scores 0 are
    left out, as what is lost of nothing has no percentage. Without benchmarks there is no FG.
    """
    units = _general_units(benchmarks) if benchmarks is not None else {}
    summary: dict[str, Any] = {"fg_percent": None, "fg_interval_percent": None, "fg_tasks": list(units), "shift": shift}
    if benchmarks is not None and units:
        entries = [benchmarks["groups"].get(name) or benchmarks["tasks"][name] for name in units]
        values = [[entry[key] for entry in entries] for key in ("base", "result")]
        summary["fg_percent"] = fg_percent(values[0], [values[1]], [entry["higher_is_better"] for entry in entries])
        if base is not None and result is not None:
            summary["fg_interval_percent"] = _fg_interval(benchmarks, units, base, result, seed)
    return summary


def _general_units(benchmarks: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Groups and single tasks of the general role that have a base score above 0, each with its member tasks."""
    units: dict[str, tuple[str, ...]] = {}
    for name, members in top_units(benchmarks).items():
        if name in benchmarks["groups"] and benchmarks["groups"][name]["role"] is None:  # of both roles: its tasks count by themselves
            units |= {member: (member,) for member in members if benchmarks["tasks"][member]["role"] == "general"}
        elif benchmarks["tasks"][members[0]]["role"] == "general":
            units[name] = members
    entries = {name: benchmarks["groups"].get(name) or benchmarks["tasks"][name] for name in units}
    return {name: members for name, members in units.items() if entries[name]["base"] is not None and entries[name]["base"] > 0}


def _fg_interval(
    benchmarks: Mapping[str, Any], units: Mapping[str, tuple[str, ...]], base: Mapping[str, TaskScores], result: Mapping[str, TaskScores], seed: int
) -> list[float] | None:
    """Percentile interval; None where some task's items cannot be resampled."""
    total_R = np.zeros(RESAMPLES)
    for number, members in enumerate(units.values()):
        metric = benchmarks["tasks"][members[0]]["metric"]
        before, after = (joined([scores[member].metrics[metric] for member in members]) for scores in (base, result))
        drawn = resampled_values(before, after, seed + number)  # another seed per task: their items are drawn independently
        if drawn is None:
            return None
        before_R, after_R = drawn
        kept = before_R > 0  # a resample in which the base scores 0 has no percentage either
        sign = 1.0 if before.higher_is_better else -1.0
        total_R += np.resize(100 * sign * (before_R[kept] - after_R[kept]) / before_R[kept], RESAMPLES)
    low, high = np.percentile(total_R / len(units), [2.5, 97.5])
    return [float(low), float(high)]
