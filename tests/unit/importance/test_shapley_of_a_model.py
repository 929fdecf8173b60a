"""Shapley values of a real model of five layers: all subsets against sampled orders, and the window estimator against its formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from slayer.forward import mean_loss
from slayer.importance.decoder import LoadedDecoder
from slayer.importance.shapley import exact, permutation_coalitions, permutation_shapley, subset_coalitions, window_coalitions, window_shapley
from slayer.importance.table import layer_names
from slayer.importance.text_value import TextValue
from slayer.importance.values import Values, whole
from slayer.importance.walk import run_coalitions

LAYERS = layer_names(5, None)
Run = Callable[[Sequence[str]], Values]


@pytest.fixture(scope="module")
def model(make_model: Any, load_plain: Any) -> Any:
    return load_plain(make_model(layers=5, seed=2))


@pytest.fixture(scope="module")
def rows(pack: Any, random_documents: Any) -> Any:
    return pack([[document] for document in random_documents([16] * 6, seed=4)], 16)


@pytest.fixture(scope="module")
def run(model: Any, rows: Any) -> Run:
    decoder = LoadedDecoder(model)
    value = TextValue(decoder, rows, source="text", micro_batch_rows=3)
    return lambda coalitions: run_coalitions(decoder, value, coalitions)[0]


@pytest.mark.parametrize("players", ["layers", "halves"])
def test_all_subsets_share_out_exactly_what_the_layers_are_worth(run: Run, players: Any) -> None:
    coalitions = subset_coalitions(5, players)
    values = run(coalitions)
    found = exact(values, LAYERS, players)
    assert len(coalitions) == (32 if players == "layers" else 1024)
    assert sum(found.values) == pytest.approx(values.value(whole(5)) - values.value("-----"), abs=1e-12)


def test_sampled_orders_hold_the_exact_values_within_their_own_intervals(run: Run) -> None:
    truth = exact(run(subset_coalitions(5, "layers")), LAYERS, "layers").values
    permutations = permutation_coalitions(5, players="layers", pairs=12, seed=0, truncation=1.0)
    found = permutation_shapley(run(permutations.coalitions), permutations, LAYERS)
    assert found.errors is not None and found.freedom == 11
    for value, error, margin, true in zip(found.values, found.errors, found.margins, truth, strict=True):
        assert abs(value - true) <= margin and margin == pytest.approx(t.ppf(0.975, 11) * error)
    assert sum(found.values) == pytest.approx(sum(truth), abs=1e-12)


def test_windows_of_halves_by_the_formula_on_plain_forward_passes(model: Any, rows: Any, run: Run) -> None:
    """v by transformers alone, with hooks that silence halves; the mean of the estimator's terms written out."""
    import torch

    halves = [half for layer in model.model.layers for half in (layer.self_attn, layer.mlp)]
    known: dict[frozenset[int], float] = {}

    def v(gone: frozenset[int]) -> float:
        if gone not in known:
            silence = lambda _, args, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)  # noqa: E731
            handles = [halves[player].register_forward_hook(silence) for player in gone]
            known[gone] = -mean_loss(model, rows, 3)
            for handle in handles:
                handle.remove()
        return known[gone]

    found = window_shapley(run(window_coalitions(5)), LAYERS)
    for player in range(10):
        terms = [v(frozenset()) - v(frozenset({player}))]
        for length in (2, 3):
            for start in range(10 - length + 1):
                window = frozenset(range(start, start + length))
                if player in (start, start + length - 1):
                    terms.append(v(window - {player}) - v(window))
        assert found.values[player] == pytest.approx(np.mean(terms), abs=1e-5)


def test_a_loss_is_shared_out_down_to_guessing(run: Run) -> None:
    """What the score does with values: no row is worth less than −ln V a token, whatever is left out; efficiency holds for those."""
    from slayer.config import AnalysisConfig
    from slayer.importance.coalition_scores import coalition_score

    score = coalition_score("shapley", LAYERS, AnalysisConfig(name="layers", players="layers", permutation_pairs=40, truncation=1.0), seed=0)
    assert set(score.coalitions) == set(subset_coalitions(5, "layers")), "all 32 subsets are no more than the sampled ones"
    values = run(score.coalitions)
    guessing = -np.log(61)
    worst = {one: np.maximum(gains_U / values.weights_U, guessing) for one, gains_U in values.gains.items()}
    assert min(map(values.value, score.coalitions)) < guessing < values.value(whole(5)) + 5
    wanted = np.average(worst[whole(5)] - worst["-----"], weights=values.weights_U)
    found = score.measured(values)
    assert sum(found.values) == pytest.approx(wanted, abs=1e-12)
    assert found.details["v_none"] >= guessing - 1e-12
