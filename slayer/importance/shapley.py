"""Shapley values of layers, or of their attention and MLP: what each adds to what the model can do, on average over who else is there.

φ(i) = Σ over S without i of |S|! (n − |S| − 1)! / n! · (v(S + i) − v(S)) (Shapley 1953). High: the player adds much, important.
Three ways to it: `exact` by all 2^n coalitions; `permutation_shapley` by sampled orders of removal; `window_shapley`, the cheap local
rule of Investigating Layer Importance (arXiv 2409.14381), which is no estimate of φ in the strict sense: it looks at nearly whole models only.

A player is a layer, or a half: player 2 i is the attention of layer i, 2 i + 1 its MLP. A coalition without a finite value marks the players
whose terms need it as failed.

Shape suffixes: N players, P pairs of permutations, U units of the sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, nan
from typing import Any

import numpy as np

from slayer.importance.table import LayerName, Measurement, Players
from slayer.importance.values import GONE, Values, mean_and_error, whole, without, without_halves

MOST_EXACT_PLAYERS = 16
N_CORNERSTONES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Permutations:
    """Orders in which players are removed, each followed by its reverse. An order is left when `cut` players are gone (all of them: never)."""

    n_layers: int
    players: Players
    orders: tuple[tuple[int, ...], ...]
    cut: int

    @property
    def n_players(self) -> int:
        """Layers, or twice as many halves."""
        return n_players(self.n_layers, self.players)

    def path(self, order: Sequence[int]) -> list[str]:
        """The coalitions of one order: all players, without the first, without the first two … `cut` gone."""
        return [_without_players(self.n_layers, order[:gone], self.players) for gone in range(self.cut + 1)]

    @property
    def coalitions(self) -> tuple[str, ...]:
        """Every coalition of every order once, the whole model first, then the bare embedding and head."""
        paths = (coalition for order in self.orders for coalition in self.path(order))
        return tuple(dict.fromkeys([whole(self.n_layers), GONE * self.n_layers, *paths]))


def n_players(n_layers: int, players: Players) -> int:
    """Layers, or twice as many halves."""
    return n_layers if players == "layers" else 2 * n_layers


def player_labels(layers: Sequence[LayerName], players: Players) -> tuple[str, ...]:
    """What a player is called: 7, or 7 attention and 7 mlp; of a new block +7."""
    if players == "layers":
        return tuple(layer.label for layer in layers)
    return tuple(f"{layer.label} {half}" for layer in layers for half in ("attention", "mlp"))


def window_coalitions(n_layers: int, longest: int = 3) -> tuple[str, ...]:
    """The whole model, and the model without each window of 1 to `longest` neighbouring halves: 190 of 32 layers, 478 of 80."""
    return (whole(n_layers), *(without_halves(n_layers, window) for window in _windows(2 * n_layers, longest)))


def window_shapley(values: Values, layers: Sequence[LayerName], longest: int = 3) -> Measurement:
    """Window estimator over halves (arXiv 2409.14381, llm_dissect scripts/estimate_shapley.py).

    For player i the mean of v(all) − v(all ∖ i) and, for every window W of 2 to `longest` players of which i is the first or the last,
    v(all ∖ (W ∖ i)) − v(all ∖ W). An inner player has 5 terms at longest=3. Values need not add up to v(all) − v(none).
    Errors are those of the sample: the terms share its units, so they are averaged unit by unit first.
    """
    n_layers, windows = len(layers), _windows(2 * len(layers), longest)
    estimates, errors = [], []
    failed: dict[int, str] = {}
    for player in range(2 * n_layers):
        ends = [window for window in windows if player in (window[0], window[-1])]
        pairs = [
            (without_halves(n_layers, [other for other in window if other != player]), without_halves(n_layers, window)) for window in ends
        ]  # fmt: skip
        why = _first_failure(values, [coalition for pair in pairs for coalition in pair])
        if why is not None:
            failed[player] = why
        terms = [values.gains[larger] - values.gains[smaller] for larger, smaller in pairs] if why is None else []
        value, error = mean_and_error(np.mean(terms, axis=0), values.weights_U) if terms else (nan, nan)
        estimates.append(value)
        errors.append(error)
    details = _details(values, layers, "halves", estimates, 1 + len(windows))
    return Measurement(
        score="shapley_window", source=values.source, values=tuple(estimates), errors=tuple(errors), players="halves", failed=failed, details=details
    )


def permutation_coalitions(n_layers: int, *, players: Players, pairs: int, seed: int, truncation: float) -> Permutations:
    """Random orders of removal (Castro et al. 2009), each with its reverse (antithetic, Mitchell et al. 2022).

    `truncation` is the share of the players after whose removal an order is left (1.0: never; after Ghorbani & Zou 2019, who leave an order
    where the value no longer changes): a model that has lost most of its parts can do nothing, and finding that out again costs as much as before.
    """
    number, generator = n_players(n_layers, players), np.random.default_rng(seed)
    orders: list[tuple[int, ...]] = []
    for _ in range(pairs):
        order = tuple(int(player) for player in generator.permutation(number))
        orders += [order, order[::-1]]
    cut = max(1, round(truncation * number))
    # The last player's share is known without removing it: v(none) is measured anyway.
    return Permutations(n_layers=n_layers, players=players, orders=tuple(orders), cut=cut if cut < number - 1 else number)


def permutation_shapley(values: Values, permutations: Permutations, layers: Sequence[LayerName]) -> Measurement:
    """Mean over the orders of what each player's removal costs; unbiased for φ where orders are not cut.

    What is left at the cut, v(cut) − v(none), goes in equal parts to the players not reached: values sum to v(all) − v(none) whatever the
    cut, and players are drawn towards one another. Where v moves one way only behind the cut, no player is farther than the mean of
    |v(cut) − v(none)| from what the same orders give uncut; `details` has it as `left_over`, a share of |v(all) − v(none)|. Where v moves to and
    fro there, it may be.

    Errors are standard errors over the pairs (a pair's mean is one observation; NaN for one pair), with pairs − 1 degrees of freedom:
    how far other orders could have led. That other text could give other values is not in them, nor is the bias of the cut.
    """
    none, number, cut = GONE * permutations.n_layers, permutations.n_players, permutations.cut
    reasons = {coalition: values.failure(coalition) for coalition in permutations.coalitions}
    worth = {coalition: values.value(coalition) if why is None else nan for coalition, why in reasons.items()}
    marginals_N = np.empty((len(permutations.orders), number))
    left_over: list[float] = []
    failed: dict[int, str] = {}
    for row, order in enumerate(permutations.orders):
        path = permutations.path(order)
        steps = [(player, path[place], path[place + 1], 1) for place, player in enumerate(order[:cut])]
        steps += [(player, path[-1], none, number - cut) for player in order[cut:]]
        for player, larger, smaller, sharers in steps:
            marginals_N[row, player] = (worth[larger] - worth[smaller]) / sharers
            bad = larger if reasons[larger] is not None else smaller
            if reasons[bad] is not None:
                failed.setdefault(player, f"{bad}: {reasons[bad]}")
        left_over.append(abs(worth[path[-1]] - worth[none]))
    pairs_PN = marginals_N.reshape(-1, 2, number).mean(1)
    estimates = pairs_PN.mean(0).tolist()
    errors = (pairs_PN.std(0, ddof=1) / np.sqrt(len(pairs_PN))).tolist() if len(pairs_PN) > 1 else [nan] * number
    details = _details(values, layers, permutations.players, estimates, len(worth))
    total = abs(worth[whole(permutations.n_layers)] - worth[none])
    share = float(np.mean(left_over)) / total if cut < number and total > 0 else nan
    details |= {"permutations": len(permutations.orders), "truncated_at": cut if cut < number else None, "left_over": _plain(share)}
    return Measurement(
        score="shapley", source=values.source, values=tuple(estimates), errors=tuple(errors), freedom=max(len(pairs_PN) - 1, 1),
        players=permutations.players, failed=failed, details=details,
    )  # fmt: skip


def subset_coalitions(n_layers: int, players: Players) -> tuple[str, ...]:
    """All 2^n coalitions, the whole model first. ValueError above 16 players."""
    number = n_players(n_layers, players)
    if number > MOST_EXACT_PLAYERS:
        raise ValueError(
            f"exact Shapley values of {number} players ({players} of {n_layers} layers) take 2^{number} evaluations; "
            f"up to {MOST_EXACT_PLAYERS} players can be enumerated, beyond that permutations are sampled"
        )
    return tuple(_without_players(n_layers, _members(gone, number), players) for gone in range(2**number))


def exact(values: Values, layers: Sequence[LayerName], players: Players) -> Measurement:
    """φ by its definition, from all coalitions. Values sum to v(all) − v(none). Errors are those of the sample (paired over its units)."""
    coalitions, number = subset_coalitions(len(layers), players), n_players(len(layers), players)
    why = _first_failure(values, coalitions)
    failed = dict.fromkeys(range(number), why) if why is not None else {}
    estimates, errors = [nan] * number, [nan] * number
    if why is None:
        # A coalition of s others counts 1 / (n · C(n − 1, s)): for those in it with the others of it, against those that are not.
        weights = [1 / (number * comb(number - 1, size)) for size in range(number)]
        with_player, without_player = [0.0, *weights], [*weights, 0.0]
        phi_NU = np.zeros((number, len(values.weights_U)))
        for gone, coalition in enumerate(coalitions):
            away = _members(gone, number)
            factor_N = np.full(number, with_player[number - len(away)])
            factor_N[away] = -without_player[number - len(away)]
            phi_NU += factor_N[:, None] * values.gains[coalition]
        estimates, errors = (list(column) for column in zip(*(mean_and_error(phi_U, values.weights_U) for phi_U in phi_NU), strict=True))
    details = _details(values, layers, players, estimates, len(coalitions))
    details |= {"permutations": None, "truncated_at": None, "left_over": None}
    return Measurement(
        score="shapley", source=values.source, values=tuple(estimates), errors=tuple(errors), players=players, failed=failed, details=details
    )


def cornerstones(values_N: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    """The three players of the highest values, and their share in the sum of all, negative values counted 0.

    After llm_dissect scripts/get_shapley_value_statistics.py, where the three are named by hand. The share is None where a value is not known
    or none is positive.
    """
    numbers_N = np.asarray(values_N, np.float64)
    known = [player for player in range(len(labels)) if np.isfinite(numbers_N[player])]
    top = sorted(known, key=lambda player: (-numbers_N[player], player))[:N_CORNERSTONES]
    clipped_N = numbers_N.clip(min=0)
    total = float(clipped_N.sum())
    return {
        "cornerstones": [{"player": player, "label": labels[player], "value": float(numbers_N[player])} for player in top],
        "share": float(clipped_N[top].sum()) / total if len(known) == len(labels) and total > 0 else None,
    }


def _details(values: Values, layers: Sequence[LayerName], players: Players, estimates: Sequence[float], evaluations: int) -> dict[str, Any]:
    ends: Mapping[str, str] = {"v_all": whole(len(layers)), "v_none": GONE * len(layers)}
    return {
        **{name: values.value(coalition) if values.failure(coalition) is None else None for name, coalition in ends.items()},
        "evaluations": evaluations, **cornerstones(estimates, player_labels(layers, players)),
    }  # fmt: skip


def _windows(number: int, longest: int) -> list[range]:
    lengths = range(1, min(longest, number) + 1)
    return [range(start, start + length) for length in lengths for start in range(number - length + 1)]


def _without_players(n_layers: int, gone: Sequence[int], players: Players) -> str:
    return without(n_layers, gone) if players == "layers" else without_halves(n_layers, gone)


def _members(bits: int, number: int) -> list[int]:
    return [player for player in range(number) if bits >> player & 1]


def _first_failure(values: Values, coalitions: Sequence[str]) -> str | None:
    found = ((coalition, values.failure(coalition)) for coalition in coalitions)
    return next((f"{coalition}: {why}" for coalition, why in found if why is not None), None)


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
