"""Shapley values against sums over sets written out, on random games: dictionaries from the players present to what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from slayer.importance.shapley import (
    cornerstones,
    exact,
    permutation_coalitions,
    permutation_shapley,
    player_labels,
    subset_coalitions,
    window_coalitions,
    window_shapley,
)
from slayer.importance.table import LayerName, Players, layer_names
from slayer.importance.values import Array, Values

Game = dict[frozenset[int], Array]
"""Gains [U] by the players that are there."""


def subsets(players: Collection[int]) -> list[frozenset[int]]:
    return [frozenset(chosen) for chosen in chain.from_iterable(combinations(players, size) for size in range(len(players) + 1))]


def random_game(n_players: int, seed: int, n_units: int = 1) -> Game:
    generator = np.random.default_rng(seed)
    return {present: generator.normal(size=n_units) for present in subsets(range(n_players))}


def present_in(coalition: str, players: Players) -> frozenset[int]:
    """Whom a coalition keeps, read letter by letter."""
    if players == "layers":
        assert set(coalition) <= {"k", "-"}
        return frozenset(layer for layer, letter in enumerate(coalition) if letter == "k")
    halves = {"k": (0, 1), "a": (0,), "m": (1,), "-": ()}
    return frozenset(2 * layer + half for layer, letter in enumerate(coalition) for half in halves[letter])


def played(game: Game, coalitions: Sequence[str], players: Players, weights_U: Array | None = None, failed: dict[str, str] | None = None) -> Values:
    gains = {one: game[present_in(one, players)] for one in coalitions if one not in (failed or {})}
    weights_U = np.ones(len(next(iter(gains.values())))) if weights_U is None else weights_U
    return Values(gains=gains, weights_U=weights_U, unit="nats", source="wiki", failed=failed or {})


def by_definition(game: Game, n_players: int) -> list[float]:
    """φ(i) = Σ |S|! (n − |S| − 1)! / n! (v(S ∪ i) − v(S)), for games of one unit."""
    phi = [0.0] * n_players
    for player in range(n_players):
        for some in subsets([other for other in range(n_players) if other != player]):
            share = math.factorial(len(some)) * math.factorial(n_players - len(some) - 1) / math.factorial(n_players)
            phi[player] += share * float((game[some | {player}] - game[some])[0])
    return phi


def plain(n_layers: int) -> tuple[LayerName, ...]:
    return layer_names(n_layers, None)


def worth(game: Game, n_players: int) -> float:
    return float((game[frozenset(range(n_players))] - game[frozenset()])[0])


# ---------------------------------------------------------------- all coalitions


def test_all_coalitions_are_all_letters() -> None:
    assert sorted(subset_coalitions(2, "layers")) == ["--", "-k", "k-", "kk"]
    assert subset_coalitions(1, "halves") == ("k", "m", "a", "-")
    assert len(set(subset_coalitions(3, "halves"))) == 64
    assert len(subset_coalitions(16, "layers")) == 65536
    with pytest.raises(ValueError, match=r"18 players \(halves of 9 layers\) take 2\^18 evaluations; up to 16"):
        subset_coalitions(9, "halves")


@pytest.mark.parametrize(("n_layers", "players"), [(1, "layers"), (5, "layers"), (1, "halves"), (3, "halves")])
def test_exact_is_the_definition(n_layers: int, players: Players) -> None:
    number = n_layers if players == "layers" else 2 * n_layers
    game = random_game(number, seed=0)
    found = exact(played(game, subset_coalitions(n_layers, players), players), plain(n_layers), players)
    assert found.values == pytest.approx(by_definition(game, number), abs=1e-13) and (found.score, found.players) == ("shapley", players)
    assert found.details["evaluations"] == 2**number and found.details["permutations"] is None
    assert found.details["v_all"] - found.details["v_none"] == pytest.approx(worth(game, number), abs=1e-13)


@given(st.lists(st.floats(-10, 10), min_size=32, max_size=32))
def test_exact_values_sum_to_all_minus_none(numbers: list[float]) -> None:
    game = {present: np.array([number]) for present, number in zip(subsets(range(5)), numbers, strict=True)}
    found = exact(played(game, subset_coalitions(5, "layers"), "layers"), plain(5), "layers")
    assert sum(found.values) == pytest.approx(worth(game, 5), abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=8, max_size=8), st.floats(-10, 10))
def test_players_that_are_alike_get_alike_and_one_that_adds_a_constant_gets_it(numbers: list[float], constant: float) -> None:
    """Players 0 and 1 count only by their number, player 4 adds a constant to whatever is there; with 0 it is a dummy."""
    table = dict(zip(subsets(range(3)), numbers, strict=True))

    def value(present: frozenset[int]) -> float:
        alike = len(present & {0, 1})
        return table[frozenset([player - 2 for player in present & {2, 3}] + [2] * (alike > 0))] * (1 + alike) + constant * (4 in present)

    game = {present: np.array([value(present)]) for present in subsets(range(5))}
    found = exact(played(game, subset_coalitions(5, "layers"), "layers"), plain(5), "layers")
    assert found.values[0] == pytest.approx(found.values[1], abs=1e-12)
    assert found.values[4] == pytest.approx(constant, abs=1e-11)


def test_errors_of_exact_values_are_those_of_the_sample() -> None:
    game = random_game(3, seed=1, n_units=50)
    found = exact(played(game, subset_coalitions(3, "layers"), "layers"), plain(3), "layers")
    alone = [by_definition({present: gains[[unit]] for present, gains in game.items()}, 3) for unit in range(50)]
    assert found.values == pytest.approx(np.mean(alone, axis=0))
    assert found.errors == pytest.approx(np.std(alone, axis=0, ddof=1) / np.sqrt(50))


# ---------------------------------------------------------------- windows of neighbours


def windows_by_name(game: Game, names: list[str], level: int, unit: int) -> list[float]:
    """The rule of the paper's repository: windows are stored under the joined names of what is removed, and cut open at either end."""

    def score(removed: Sequence[str]) -> float:
        return float(game[frozenset(range(len(names))) - {names.index(name) for name in removed}][unit])

    stored = [tuple(names[start : start + size]) for size in range(1, level + 1) for start in range(len(names) - size + 1)]
    estimates = []
    for name in names:
        terms = [score([]) - score([name])]
        terms += [score(window[1:]) - score(window) for window in stored if len(window) > 1 and window[0] == name]
        terms += [score(window[:-1]) - score(window) for window in stored if len(window) > 1 and window[-1] == name]
        estimates.append(sum(terms) / len(terms))
    return estimates


def test_the_number_of_windows_is_the_papers() -> None:
    assert len(set(window_coalitions(32))) == len(window_coalitions(32)) == 190
    assert len(set(window_coalitions(80))) == 478
    assert window_coalitions(2, 2) == ("kk", "mk", "ak", "km", "ka", "-k", "am", "k-")
    assert window_coalitions(1, 3) == ("k", "m", "a", "-")


@pytest.mark.parametrize(("n_layers", "longest"), [(4, 3), (4, 1), (3, 2), (4, 8), (1, 3)])
def test_window_values_are_a_loop_over_the_formula(n_layers: int, longest: int) -> None:
    game = random_game(2 * n_layers, seed=2, n_units=20)
    coalitions = window_coalitions(n_layers, longest)
    found = window_shapley(played(game, coalitions, "halves"), plain(n_layers), longest)
    names = [f"layers.{layer}.{half}" for layer in range(n_layers) for half in ("self_attn", "mlp")]
    alone = [windows_by_name(game, names, longest, unit) for unit in range(20)]
    assert found.values == pytest.approx(np.mean(alone, axis=0), abs=1e-12)
    assert found.errors == pytest.approx(np.std(alone, axis=0, ddof=1) / np.sqrt(20), abs=1e-12)
    assert (found.score, found.players, found.details["evaluations"]) == ("shapley_window", "halves", len(coalitions))
    assert (found.details["v_none"] is None) == (longest < 2 * n_layers)


def test_window_values_of_an_additive_game_are_what_each_adds() -> None:
    adds = np.array([3.0, -1, 0, 2, 0.5, 1])
    game = {present: np.array([adds[list(present)].sum()]) for present in subsets(range(6))}
    found = window_shapley(played(game, window_coalitions(3), "halves"), plain(3))
    assert found.values == pytest.approx(adds) and found.by_layer == pytest.approx([2.0, 2.0, 1.5])
    assert [stone["label"] for stone in found.details["cornerstones"]] == ["0 attention", "1 mlp", "2 mlp"]
    assert found.details["share"] == pytest.approx(6 / 6.5)


# ---------------------------------------------------------------- sampled orders


def sampled(game: Game, n_layers: int, players: Players = "layers", **settings: Any) -> Any:
    permutations = permutation_coalitions(n_layers, players=players, **{"pairs": 4, "seed": 0, "truncation": 1.0, **settings})
    return permutations, permutation_shapley(played(game, permutations.coalitions, players), permutations, plain(n_layers))


def test_orders_come_with_their_reverse_and_from_the_seed() -> None:
    first, again, other = (permutation_coalitions(4, players="halves", pairs=5, seed=seed, truncation=1.0) for seed in (0, 0, 1))
    assert first == again and first.orders != other.orders and len(first.orders) == 10
    assert all(sorted(order) == list(range(8)) for order in first.orders)
    assert all(backward == forward[::-1] for forward, backward in zip(first.orders[::2], first.orders[1::2], strict=True))
    assert first.coalitions[:2] == ("kkkk", "----") and len(set(first.coalitions)) == len(first.coalitions)
    wanted = {frozenset(order[gone:]) for order in first.orders for gone in range(9)}
    assert {present_in(one, "halves") for one in first.coalitions} == wanted


@pytest.mark.parametrize("truncation", [1.0, 0.5, 0.2, 0.01])
def test_estimates_are_the_mean_over_the_orders(truncation: float) -> None:
    game = random_game(10, seed=3)
    permutations, found = sampled(game, 5, "halves", truncation=truncation)
    cut = {1.0: 10, 0.5: 5, 0.2: 2, 0.01: 1}[truncation]
    assert permutations.cut == cut
    marginals = []
    for order in permutations.orders:
        there, adds = set(range(10)), [math.nan] * 10
        for player in order[:cut]:
            adds[player] = float(game[frozenset(there)][0] - game[frozenset(there - {player})][0])
            there.remove(player)
        rest = float(game[frozenset(there)][0] - game[frozenset()][0])
        marginals.append([rest / (10 - cut) if math.isnan(number) else number for number in adds])
    assert found.values == pytest.approx(np.mean(marginals, axis=0))
    pairs = [np.mean(marginals[start : start + 2], axis=0) for start in range(0, 8, 2)]
    assert found.errors == pytest.approx(np.std(pairs, axis=0, ddof=1) / 2)
    assert (found.score, found.players, found.details["permutations"]) == ("shapley", "halves", 8)
    assert found.details["evaluations"] == len(permutations.coalitions)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.01, 1), st.integers(1, 3), st.integers(1, 6))
def test_sampled_values_sum_to_all_minus_none_whatever_the_cut(seed: int, truncation: float, pairs: int, n_layers: int) -> None:
    game = random_game(n_layers, seed)
    _, found = sampled(game, n_layers, seed=seed, truncation=truncation, pairs=pairs)
    assert sum(found.values) == pytest.approx(worth(game, n_layers), abs=1e-12)
    json.dumps(found.details, allow_nan=False)


def test_sampled_values_hold_the_exact_ones_in_their_intervals() -> None:
    """20 games without any structure: Student's 95 % intervals over 10 pairs."""
    inside = []
    for seed in range(20):
        game = random_game(5, seed)
        _, found = sampled(game, 5, pairs=10, seed=seed)
        half_N = student.ppf(0.975, 9) * np.array(found.errors)
        inside += list(np.abs(np.array(found.values) - by_definition(game, 5)) <= half_N)
        assert half_N.max() < 3  # no interval holds everything: what a player adds has a standard deviation of about 1.4
    assert 85 <= sum(inside) <= 100


def test_more_orders_come_closer() -> None:
    game = random_game(5, seed=7)
    truth = np.array(by_definition(game, 5))
    few, many = (sampled(game, 5, pairs=pairs)[1] for pairs in (10, 2000))
    assert np.abs(np.array(many.values) - truth).max() < 0.1 < np.abs(np.array(few.values) - truth).max()
    assert max(many.errors) < max(few.errors) / 8


def test_a_pair_of_orders_is_exact_where_players_meet_in_twos() -> None:
    """Antithetic orders cancel what two players do together: who comes first in one comes last in the other."""
    generator = np.random.default_rng(4)
    together = generator.normal(size=(6, 6))
    game = {present: np.array([together[np.ix_(sorted(present), sorted(present))].sum()]) for present in subsets(range(6))}
    _, found = sampled(game, 6, pairs=3)
    assert found.values == pytest.approx(by_definition(game, 6)) and found.errors == pytest.approx([0.0] * 6, abs=1e-12)


def test_what_the_cut_leaves_over_bounds_its_bias() -> None:
    """A game that only loses: v = (players left / n)^3, plus a little for player 0."""
    game = {present: np.array([(len(present) / 6) ** 3 + 0.1 * (0 in present)]) for present in subsets(range(6))}
    permutations, cut = sampled(game, 6, truncation=0.5, pairs=50)
    _, uncut = sampled(game, 6, truncation=1.0, pairs=50)
    left = np.mean([game[frozenset(order[3:])][0] for order in permutations.orders])
    assert cut.details["truncated_at"] == 3 and cut.details["left_over"] == pytest.approx(left / worth(game, 6))
    off = np.abs(np.array(cut.values) - np.array(uncut.values))
    assert 1e-3 < off.max() <= cut.details["left_over"] * worth(game, 6)
    assert uncut.details["truncated_at"] is None and uncut.details["left_over"] is None


def test_leaving_one_player_over_is_no_cut() -> None:
    game = random_game(5, seed=9)
    assert sampled(game, 5, truncation=0.8)[1] == sampled(game, 5, truncation=1.0)[1]
    assert sampled(game, 5, truncation=0.6)[1].values != sampled(game, 5, truncation=1.0)[1].values


def test_one_pair_has_no_error() -> None:
    _, found = sampled(random_game(4, seed=0), 4, pairs=1)
    assert all(map(math.isnan, found.errors)) and not any(map(math.isnan, found.values))


# ---------------------------------------------------------------- failures and cornerstones


def test_a_failed_coalition_marks_the_players_that_need_it() -> None:
    layers, game = plain(3), random_game(6, seed=5)
    sound = window_shapley(played(game, window_coalitions(3), "halves"), layers)
    found = window_shapley(played(game, window_coalitions(3), "halves", failed={"amk": "out of memory"}), layers)  # without 1 and 2
    # 1 and 2 are its ends; it is what the windows 0–2 and 1–3 become when 0 or 3 comes back
    assert found.failed == dict.fromkeys((0, 1, 2, 3), "amk: out of memory") and np.isnan(found.values[:4]).all()
    assert found.values[4:] == sound.values[4:] and found.details["share"] is None
    assert {stone["player"] for stone in found.details["cornerstones"]} == {4, 5}


def test_a_failed_step_marks_the_players_before_and_behind_it() -> None:
    game = random_game(5, seed=6)
    permutations, sound = sampled(game, 5, pairs=1)
    order = permutations.orders[0]
    bad = permutations.path(order)[2]
    found = permutation_shapley(played(game, permutations.coalitions, "layers", failed={bad: "out of memory"}), permutations, plain(5))
    assert found.failed == dict.fromkeys(order[1:3], f"{bad}: out of memory")
    assert all(math.isnan(found.values[player]) == (player in order[1:3]) for player in range(5))
    assert all(found.values[player] == sound.values[player] for player in range(5) if player not in order[1:3])


@pytest.mark.parametrize("bad", ["kkk", "---", "k-k"])
def test_exact_values_need_every_coalition(bad: str) -> None:
    found = exact(played(random_game(3, 0), subset_coalitions(3, "layers"), "layers", failed={bad: "no"}), plain(3), "layers")
    assert found.failed == dict.fromkeys(range(3), f"{bad}: no") and all(map(math.isnan, found.values))
    assert found.details["cornerstones"] == [] and found.details["share"] is None
    json.dumps(found.details, allow_nan=False)


def test_a_value_that_is_not_finite_is_a_failure() -> None:
    game = random_game(3, 0) | {frozenset([0, 2]): np.array([-np.inf])}
    found = exact(played(game, subset_coalitions(3, "layers"), "layers"), plain(3), "layers")
    assert found.failed == dict.fromkeys(range(3), "k-k: its value is not a finite number")
    _, found = sampled(game, 3, pairs=20)
    assert set(found.failed) == {0, 1, 2} and found.details["v_all"] is not None


def test_cornerstones_are_the_top_three_and_their_share_without_what_is_negative() -> None:
    found = cornerstones([0.1, -5.0, 3.0, 0.4, 2.0, 0.4], list("abcdef"))
    assert found == {
        "cornerstones": [{"player": player, "label": "abcdef"[player], "value": value} for player, value in ((2, 3.0), (4, 2.0), (3, 0.4))],
        "share": pytest.approx(5.4 / 5.9),
    }  # fmt: skip
    assert cornerstones([-1.0, 0.0], ["a", "b"])["share"] is None
    assert cornerstones([1.0, 2.0], ["a", "b"])["share"] == 1.0
    assert cornerstones([2.0, 1.0, -3.0], list("abc"))["share"] == 1.0


def test_new_blocks_are_called_so() -> None:
    layers = (LayerName(index=0, base_index=0), LayerName(index=1, base_index=0, new=True), LayerName(index=2, base_index=1))
    assert player_labels(layers, "layers") == ("0", "+0", "1")
    assert player_labels(layers, "halves") == ("0 attention", "0 mlp", "+0 attention", "+0 mlp", "1 attention", "1 mlp")
    game = {present: np.array([float(sum(present & {2, 3, 4}))]) for present in subsets(range(6))}
    found = window_shapley(played(game, window_coalitions(3), "halves"), layers)
    assert [stone["label"] for stone in found.details["cornerstones"]] == ["1 attention", "+0 mlp", "+0 attention"]
