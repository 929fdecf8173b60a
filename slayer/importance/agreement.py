"""Do the scores agree? Rank correlation between them, what depth does to each, and the layers that a plan takes by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slayer.errors import DataError
from slayer.evaluation.effects import correct, one_way
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import LayerName, Measurement
from slayer.importance.values import Array

LEAST_LAYERS = 4
LEAST_LAYERS_FOR_P = 10  # below, the t approximation of Spearman's p is badly off: 0 for four layers in the same order
DEPTHS = ("shallow", "middle", "deep")
FINAL = "final"


def orders_layers(measurement: Measurement) -> bool:
    """False for a profile or a curve, which has no more and less important."""
    return CATALOGUE[measurement.score].high_is_important is not None


def importance(measurement: Measurement) -> Array:
    """One number per layer, turned so that more important is higher; halves added up; NaN where there is none.

    DataError for a score that does not order layers.
    """
    if not orders_layers(measurement):
        known = ", ".join(name for name, score in CATALOGUE.items() if score.high_is_important is not None)
        raise DataError(f"{measurement.score} is a curve over depth and does not say which layers matter; choose one of {known}")
    values = np.array(measurement.by_layer, np.float64)
    values[~np.isfinite(values)] = np.nan
    return values if CATALOGUE[measurement.score].high_is_important else -values


def cheapest_block(angular: Measurement, n_layers: int) -> int:
    """First layer of the block of `n_layers` layers with the smallest angular distance across it (arXiv 2403.17887); the last layer is never in it.

    The paper finds blocks with the last layer among the farthest, and leaves it out in its simple rule as well. Of equal blocks the lowest.
    """
    n_model = len(angular.values)
    if not 1 <= n_layers < n_model:
        raise DataError(f"a block of {n_layers} layers without the last one does not fit into {n_model}; choose 1 to {n_model - 1}")
    distances = angular.details["blocks"][str(n_layers)][: n_model - n_layers]
    known = [(distance, start) for start, distance in enumerate(distances) if distance is not None]
    if not known:
        raise DataError(f"no block of {n_layers} layers has an angular distance: no state of this text could be read there")
    return int(min(known)[1])


def agreement(measurements: Sequence[Measurement], layers: Sequence[LayerName]) -> dict[str, Any]:
    """Spearman's rho and Kendall's tau-b between all scores that order layers, and what depth does to each; plain JSON.

    Layers without a number are left out pair by pair. None where a pair shares fewer than 4 layers or one of them is constant there; p of
    rho (t approximation) None below 10 layers. `effects`: one-way ANOVA and Tukey HSD over `depth_groups`, in the score's own unit,
    p_holm over the scores. Layers are no independent draws, neighbours are alike, so those p-values are on the small side.
    """
    ordered = [one for one in measurements if orders_layers(one)]
    groups = depth_groups(layers)
    columns = [importance(one) for one in ordered]
    size = len(columns)
    tables: dict[str, list[list[float | None]]] = {name: [[None] * size for _ in columns] for name in ("spearman", "spearman_p", "kendall")}
    for row in range(size):
        for column in range(row, size):
            for name, value in _correlations(columns[row], columns[column]).items():
                tables[name][row][column] = tables[name][column][row] = value
    effects = {one.key: _depth_effect(one, groups) for one in ordered}
    correct(effects)
    return {"columns": [{"score": one.score, "source": one.source} for one in ordered], **tables, "groups": groups, "effects": effects}


def depth_groups(layers: Sequence[LayerName]) -> dict[str, list[int]]:
    """Layer indices by depth: `final`, the last two base layers of the model, and thirds of the base layers before them.

    Counted in layers of the base; a new block is where the base layer is behind which it stands (before the first one: shallow). With fewer
    than 8 base layers `final` is the last one alone, so that two are left to a third for longer; with fewer than 4 some groups are empty.
    """
    base = sorted(layer.base_index for layer in layers if not layer.new)
    n_final = 2 if len(base) >= 8 else 1
    first_final = base[-n_final:][0]
    groups: dict[str, list[int]] = {name: [] for name in (*DEPTHS, FINAL)}
    for layer in layers:
        name = FINAL if layer.base_index >= first_final else DEPTHS[3 * max(layer.base_index, 0) // max(first_final, 1)]
        groups[name].append(layer.index)
    return groups


def _correlations(first: Array, second: Array) -> dict[str, float | None]:
    from scipy.stats import kendalltau, spearmanr

    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    if len(first) < LEAST_LAYERS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return dict.fromkeys(("spearman", "spearman_p", "kendall"))
    rho = spearmanr(first, second)
    p = float(rho.pvalue) if len(first) >= LEAST_LAYERS_FOR_P else None
    return {"spearman": float(rho.statistic), "spearman_p": p, "kendall": float(kendalltau(first, second).statistic)}


def _depth_effect(measurement: Measurement, groups: dict[str, list[int]]) -> dict[str, Any]:
    values = measurement.by_layer
    by_depth = {name: [values[layer] for layer in group if np.isfinite(values[layer])] for name, group in groups.items()}
    by_depth = {name: found for name, found in by_depth.items() if found}
    if sum(len(found) > 1 for found in by_depth.values()) < 2:
        there = ", ".join(f"{name} ({len(found)})" for name, found in by_depth.items()) or "none"
        return {"why_not": f"two depth groups with two layers each are needed; measured are {there}"}
    return one_way(by_depth, ["depth"], observation="layer")
