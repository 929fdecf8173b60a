"""Agreement of scores against ranks counted by hand, and what depth does to them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from slayer.errors import DataError
from slayer.evaluation.effects import one_way
from slayer.evaluation.statistics import holm
from slayer.importance.agreement import agreement, cheapest_block, depth_groups, importance
from slayer.importance.table import LayerName, Measurement, layer_names


def measured(score: str, values: Sequence[float], source: str | None = "wiki", **more: object) -> Measurement:
    return Measurement(score=score, source=source, values=tuple(values), **more)  # type: ignore[arg-type]


def random_scores(n_layers: int, seed: int = 0) -> list[Measurement]:
    generator = np.random.default_rng(seed)
    depth = np.linspace(0, 1, n_layers)
    return [
        measured("removal", generator.normal(size=n_layers) + 2 * depth),
        measured("removal", generator.normal(size=n_layers) + 2 * depth, "code"),
        measured("norm", generator.normal(size=n_layers) + 3 * depth),
        measured("weight_snr", generator.normal(size=n_layers).round(1), None),  # with ties
        measured("dola_divergence", depth),
        measured("shapley", generator.normal(size=2 * n_layers), players="halves"),
    ]


def ranks(values: Sequence[float]) -> list[float]:
    """Places from 1, of equal values the mean of theirs."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def rho(first: Sequence[float], second: Sequence[float]) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    signs = [(np.sign(first[a] - first[b]), np.sign(second[a] - second[b])) for a, b in combinations(range(len(first)), 2)]
    untied = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return float(sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1]))


# ---------------------------------------------------------------- ranks


def test_correlations_are_those_counted_by_hand() -> None:
    scores = random_scores(20)
    found = agreement(scores, layer_names(20, None))
    assert found["columns"] == [{"score": one.score, "source": one.source} for one in scores if one.score != "dola_divergence"]
    turned = [scores[0].values, scores[1].values, [-value for value in scores[2].values], scores[3].values]
    turned.append([scores[5].values[2 * layer] + scores[5].values[2 * layer + 1] for layer in range(20)])
    for row, column in np.ndindex(5, 5):
        assert found["spearman"][row][column] == pytest.approx(rho(turned[row], turned[column]))
        assert found["kendall"][row][column] == pytest.approx(tau_b(turned[row], turned[column]))
    assert found["spearman"][0][2] < 0  # long states lie deep, where removal costs much here: the rule of the norm turns it round
    json.dumps(found, allow_nan=False)


def test_p_values_are_about_those_of_shuffled_layers() -> None:
    scores = random_scores(12, seed=3)[:2]
    p = agreement(scores, layer_names(12, None))["spearman_p"][0][1]
    generator = np.random.default_rng(0)
    observed = abs(rho(scores[0].values, scores[1].values))
    second = np.array(ranks(scores[1].values))
    first = ranks(scores[0].values)
    shuffled = [abs(np.corrcoef(first, generator.permutation(second))[0, 1]) for _ in range(4000)]
    assert 0.01 < p < 0.9 and p == pytest.approx(np.mean(np.array(shuffled) >= observed), abs=0.03)


def test_layers_without_a_number_are_left_out_pair_by_pair() -> None:
    first, second, third = (list(np.random.default_rng(seed).normal(size=14)) for seed in range(3))
    holes = [*first]
    holes[3], holes[9] = math.nan, math.inf
    scores = [measured("removal", holes), measured("taylor", second), measured("block_influence", third)]
    found = agreement(scores, layer_names(14, None))["spearman"]
    kept = [layer for layer in range(14) if layer not in (3, 9)]
    assert found[0][1] == pytest.approx(rho([first[layer] for layer in kept], [second[layer] for layer in kept]))
    assert found[1][2] == pytest.approx(rho(second, third))


def test_what_cannot_be_compared_is_none() -> None:
    few = [1.0, 2, 3, *[math.nan] * 9]
    numbers = list(np.random.default_rng(0).normal(size=12))
    flat_but_one = [5.0] * 11 + [math.nan]
    scores = [measured("removal", few), measured("taylor", numbers), measured("block_influence", flat_but_one)]
    found = agreement(scores, layer_names(12, None))
    for name in ("spearman", "spearman_p", "kendall"):
        assert found[name][0] == [None] * 3 and found[name][2] == [None] * 3
        assert found[name][1][1] is not None
    short = agreement([measured("removal", [1, 2, 3, 4]), measured("taylor", [1, 2, 3, 4])], layer_names(4, None))
    assert short["spearman"][0][1] == pytest.approx(1) and short["spearman_p"][0][1] is None  # by chance one order of 24, not one of none
    assert agreement([measured("probe", numbers)], layer_names(12, None))["columns"] == []


def test_what_high_means_is_the_catalogues() -> None:
    values = [3.0, 1.0, math.nan, 2.0]
    np.testing.assert_array_equal(importance(measured("removal", values)), values)
    np.testing.assert_array_equal(importance(measured("norm", values)), [-3.0, -1.0, math.nan, -2.0])
    halves = measured("shapley", [1.0, 0.0, -5.0, 9.0, 2.0, math.nan], players="halves")
    np.testing.assert_array_equal(importance(halves), [1.0, 4.0, math.nan])
    with pytest.raises(DataError, match=r"layer_drop is a curve over depth .* choose one of block_influence, .*removal"):
        importance(measured("layer_drop", [1.0, 2.0]))


# ---------------------------------------------------------------- blocks by angular distance


def test_the_cheapest_block_leaves_the_last_layer_out() -> None:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(7, 8))  # entering layers 0 … 5, and what leaves layer 5
    states[6] = states[5] + 0.01  # the last layer does nothing, and still stays

    def distance(a: int, b: int) -> float:
        return float(np.arccos(states[a] @ states[b] / np.linalg.norm(states[a]) / np.linalg.norm(states[b])) / np.pi)

    blocks = {str(n): [distance(start, start + n) for start in range(7 - n)] for n in range(1, 6)}
    angular = measured("angular_distance", blocks["1"], details={"blocks": blocks})
    assert int(np.argmin(blocks["1"])) == 5
    for n in range(1, 6):
        allowed = [start for start in range(6) if start + n - 1 < 5]
        assert cheapest_block(angular, n) == min(allowed, key=lambda start: distance(start, start + n))
    for n in (0, 6):
        with pytest.raises(DataError, match=f"a block of {n} layers .* choose 1 to 5"):
            cheapest_block(angular, n)


def test_blocks_without_a_distance_are_passed_over() -> None:
    angular = measured("angular_distance", [0.1, 0.2, 0.3], details={"blocks": {"1": [None, 0.2, 0.0], "2": [None, 0.0]}})
    assert cheapest_block(angular, 1) == 1
    with pytest.raises(DataError, match="no block of 2 layers has an angular distance"):
        cheapest_block(angular, 2)


# ---------------------------------------------------------------- depth


@pytest.mark.parametrize(
    ("n_layers", "sizes"),
    [(32, [10, 10, 10, 2]), (30, [10, 9, 9, 2]), (8, [2, 2, 2, 2]), (7, [2, 2, 2, 1]), (5, [2, 1, 1, 1]), (3, [1, 1, 0, 1]), (1, [0, 0, 0, 1])],
)
def test_depth_groups_are_thirds_and_the_last_two(n_layers: int, sizes: list[int]) -> None:
    groups = depth_groups(layer_names(n_layers, None))
    assert list(groups) == ["shallow", "middle", "deep", "final"]
    assert [len(group) for group in groups.values()] == sizes
    assert [layer for group in groups.values() for layer in group] == list(range(n_layers))


def test_new_blocks_belong_where_they_stand() -> None:
    """Nine base layers, 5 pruned away, new blocks before the first, behind 1, 5 and 8: depth is counted in the base."""
    names = [("+", -1), ("", 0), ("", 1), ("+", 1), ("", 2), ("", 3), ("", 4), ("+", 5), ("", 6), ("", 7), ("", 8), ("+", 8)]
    layers = [LayerName(index=index, base_index=base, new=bool(new)) for index, (new, base) in enumerate(names)]
    labels = {name: [layers[index].label for index in group] for name, group in depth_groups(layers).items()}
    assert labels == {"shallow": ["+-1", "0", "1", "+1", "2"], "middle": ["3", "4"], "deep": ["+5", "6"], "final": ["7", "8", "+8"]}
    single = [LayerName(index=0, base_index=-1, new=True), LayerName(index=1, base_index=0)]
    assert depth_groups(single) == {"shallow": [0], "middle": [], "deep": [], "final": [1]}


def test_effects_of_depth_are_those_of_one_way() -> None:
    scores = random_scores(32)
    found = agreement(scores, layer_names(32, None))
    assert list(found["effects"]) == ["removal · wiki", "removal · code", "norm · wiki", "weight_snr", "shapley · wiki"]
    values = scores[2].values  # in its own unit, not turned
    by_hand = {"shallow": values[:10], "middle": values[10:20], "deep": values[20:30], "final": values[30:]}
    effect = found["effects"]["norm · wiki"]
    expected = one_way(by_hand, ["depth"])
    assert effect["levels"] == expected["levels"] and effect["tukey"] == expected["tukey"]
    anovas = [effect["anova"] for effect in found["effects"].values()]
    assert [anova["p_holm"] for anova in anovas] == holm([anova["p"] for anova in anovas])
    assert effect["anova"]["p"] < 1e-3 < 0.05 < found["effects"]["weight_snr"]["anova"]["p"]


def test_failed_layers_are_no_observations() -> None:
    values = [*range(14), math.nan, 15.0, 3.0, 1.0]
    effect = agreement([measured("removal", [float(value) for value in values])], layer_names(18, None))["effects"]["removal · wiki"]
    assert {name: level["n"] for name, level in effect["levels"].items()} == {"shallow": 6, "middle": 5, "deep": 4, "final": 2}
    assert effect["levels"]["deep"]["mean"] == pytest.approx((11 + 12 + 13 + 15) / 4)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([1.0, 2.0, 3.0], "two depth groups with two layers each are needed; measured are shallow (1), middle (1), final (1)"),
        ([math.nan] * 12, "two depth groups with two layers each are needed; measured are none"),
        ([2.5] * 12, "all 12 layers score the same, 2.5"),
        ([1.0] * 4 + [2.0] * 8, "layers with the same depth score exactly the same, so there is no spread to measure an effect against"),
    ],
)
def test_what_depth_does_cannot_always_be_told(values: list[float], why: str) -> None:
    found = agreement([measured("removal", values)], layer_names(len(values), None))
    assert found["effects"] == {"removal · wiki": {"why_not": why}}
