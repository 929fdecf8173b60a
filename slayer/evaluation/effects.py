"""What a setting does to a score over several runs: one-way ANOVA, Tukey HSD, effect sizes; or in a sentence why that cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from slayer.evaluation.statistics import holm

MORE_SEEDS = "train each with several seeds, -m seed=0,1,2"


def one_way(groups: Mapping[str, Sequence[float]], keys: Sequence[str], *, observation: str = "run") -> dict[str, Any]:
    """One-way ANOVA and Tukey HSD over the levels with two runs or more, as study.json has them; {"why_not": sentence} otherwise.

    eta² = SSB / SST; omega² = (SSB − df_b · MSW) / (SST + MSW); Cohen's d of a pair by their pooled standard deviation;
    `difference` is b − a. Tukey–Kramer where levels have different numbers of runs. `observation` is what one number belongs to, if not a
    run; whether there are enough is then for the caller to see first: the advice to train more seeds is for runs.
    """
    why_not = _too_few(groups, keys)
    if why_not is not None:
        return {"why_not": why_not}
    from scipy.stats import f_oneway

    tested = {level: np.asarray(values, np.float64) for level, values in groups.items() if len(values) > 1}
    everything = np.concatenate(list(tested.values()))
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in tested.values())
    total = float(((everything - everything.mean()) ** 2).sum())
    scale = 1e-24 * float((everything**2).sum())  # below that, what differs is rounding
    if total <= scale:
        return {"why_not": f"all {len(everything)} {observation}s score the same, {everything[0]:.4g}"}
    if within <= scale:
        return {"why_not": f"{observation}s with the same {_named(keys)} score exactly the same, so there is no spread to measure an effect against"}
    df_between, df_within = len(tested) - 1, len(everything) - len(tested)
    f, p = f_oneway(*tested.values())
    between, mean_square = total - within, within / df_within
    anova = {
        "f": float(f), "df_between": df_between, "df_within": df_within, "p": float(p), "p_holm": float(p), "eta_squared": between / total,
        "omega_squared": (between - df_between * mean_square) / (total + mean_square),
    }  # fmt: skip
    return {"levels": {level: _level_entry(values) for level, values in groups.items()}, "anova": anova, "tukey": _tukey(tested)}


def correct(effects: Mapping[str, dict[str, Any]]) -> None:
    """Set p_holm over the scores of one factor."""
    tested = [effect["anova"] for effect in effects.values() if "anova" in effect]
    for anova, p_holm in zip(tested, holm([anova["p"] for anova in tested]), strict=True):
        anova["p_holm"] = p_holm


def _tukey(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    from scipy.stats import tukey_hsd

    found = tukey_hsd(*groups.values())
    interval = found.confidence_interval(0.95)
    pairs = []
    for (i, (a, values_a)), (j, (b, values_b)) in combinations(enumerate(groups.items()), 2):
        freedom = len(values_a) + len(values_b) - 2
        pooled = sqrt((values_a.var(ddof=1) * (len(values_a) - 1) + values_b.var(ddof=1) * (len(values_b) - 1)) / freedom)
        difference = float(values_b.mean() - values_a.mean())
        pairs.append({
            "a": a, "b": b, "difference": difference, "low": float(interval.low[j, i]), "high": float(interval.high[j, i]),
            "p": float(found.pvalue[i, j]), "cohens_d": difference / pooled if pooled > 0 else None,
        })  # fmt: skip
    return pairs


def _level_entry(values: Sequence[float]) -> dict[str, Any]:
    return {"n": len(values), "mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _named(keys: Sequence[str]) -> str:
    return " and ".join(keys)


def _too_few(groups: Mapping[str, Sequence[float]], keys: Sequence[str]) -> str | None:
    if len(groups) < 2:
        where = f"all runs with this score have the same {_named(keys)}" if groups else f"no run has both this score and {_named(keys)}"
        return f"{where}; it takes two or more values to compare, each with several seeds (-m {keys[0]}=A,B seed=0,1,2)"
    single = [level for level, values in groups.items() if len(values) < 2]
    missing = 2 - (len(groups) - len(single))
    if missing <= 0:
        return None
    which = ", ".join(f"{_named(keys)}={level}" if len(keys) == 1 else level for level in single[:4])
    more = f"{missing} more run{'s' if missing > 1 else ''}"
    return f"two values with two runs each are needed, and {which} {'has' if len(single) == 1 else 'have'} one; at least {more}: {MORE_SEEDS}"
