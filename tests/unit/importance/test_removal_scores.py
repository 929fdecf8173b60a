"""Scores by leaving layers out, against loops over the definition on random set functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from slayer.importance.removal import (
    expansion_probe,
    expansion_probe_coalitions,
    layer_drop,
    layer_drop_coalitions,
    removal,
    removal_coalitions,
    window_removal,
    window_removal_coalitions,
)
from slayer.importance.table import Measurement
from slayer.importance.values import Array, Values

PAIRS: list[tuple[Callable[[int], tuple[str, ...]], Callable[[Values, int], Measurement]]] = [
    (removal_coalitions, removal),
    (expansion_probe_coalitions, expansion_probe),
    (layer_drop_coalitions, layer_drop),
    (window_removal_coalitions, window_removal),
]


def random_values(coalitions: Sequence[str], n_units: int = 6, seed: int = 0, failed: dict[str, str] | None = None) -> Values:
    """Gains of each coalition drawn by itself: nothing about one follows from another."""
    generator = np.random.default_rng(seed)
    gains = {coalition: generator.normal(size=n_units) for coalition in coalitions if coalition not in (failed or {})}
    return Values(gains=gains, weights_U=generator.integers(1, 9, size=n_units).astype(np.float64), unit="nats", source="wiki", failed=failed or {})


def v(values: Values, coalition: str) -> float:
    return float(sum(values.gains[coalition]) / sum(values.weights_U))


def jackknife(differences_U: Array, weights_U: Array) -> float:
    """Standard error of Σ differences / Σ weights when one unit after the other is left out (Efron & Tibshirani 1993, ch. 11)."""
    left = np.array([np.delete(differences_U, u).sum() / np.delete(weights_U, u).sum() for u in range(len(weights_U))])
    return float(np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum()))


def test_the_coalitions_of_three_layers() -> None:
    assert removal_coalitions(3) == ("kkk", "-kk", "k-k", "kk-")
    assert expansion_probe_coalitions(3) == ("kkk", "2kk", "k2k", "kk2")
    assert layer_drop_coalitions(3) == ("kkk", "---", "k--", "kk-")
    assert window_removal_coalitions(3) == ("kkk", "-kk", "k-k", "kk-", "--k", "k--")
    assert window_removal_coalitions(3, longest=1) == removal_coalitions(3)
    assert window_removal_coalitions(3, longest=7) == (*window_removal_coalitions(3), "---")
    assert window_removal_coalitions(1) == removal_coalitions(1) == ("k", "-")


@pytest.mark.parametrize(("coalitions", "score"), PAIRS[:3])
def test_lost_is_the_whole_minus_the_changed_model(coalitions: Callable[[int], tuple[str, ...]], score: Callable[[Values, int], Measurement]) -> None:
    values = random_values(coalitions(5))
    found = score(values, 5)
    assert (found.score, found.source, found.players, found.failed) == (score.__name__, "wiki", "layers", {})
    assert found.values == pytest.approx([v(values, "kkkkk") - v(values, changed) for changed in coalitions(5)[1:]])
    assert found.details == {"whole": pytest.approx(v(values, "kkkkk"))}


def test_errors_are_paired_over_units() -> None:
    """On many units of different size they are the jackknife's; units that all models find equally hard add nothing."""
    values = random_values(removal_coalitions(3), n_units=400)
    found = removal(values, 3)
    assert found.errors is not None
    for error, changed in zip(found.errors, removal_coalitions(3)[1:], strict=True):
        assert error == pytest.approx(jackknife(values.gains["kkk"] - values.gains[changed], values.weights_U), rel=0.02)
    hard_U = np.random.default_rng(1).normal(0, 100, size=400)
    shifted = Values(gains={name: gains + hard_U for name, gains in values.gains.items()}, weights_U=values.weights_U, unit="nats", source="wiki")
    assert removal(shifted, 3).errors == pytest.approx(found.errors)


@pytest.mark.parametrize("longest", [None, 1, 3, 9])
def test_a_layer_gets_the_mean_over_the_windows_around_it(longest: int | None) -> None:
    values = random_values(window_removal_coalitions(5, longest), n_units=300)
    found = window_removal(values, 5, longest)
    gone = {name: [layer for layer in range(5) if name[layer] == "-"] for name in values.gains if "-" in name}
    assert max(map(len, gone.values())) == {None: 4, 1: 1, 3: 3, 9: 5}[longest]
    assert found.errors is not None
    for layer in range(5):
        around = [(name, len(layers)) for name, layers in gone.items() if layer in layers]
        assert found.values[layer] == pytest.approx(sum((v(values, "kkkkk") - v(values, name)) / size for name, size in around) / len(around))
        shares_U = sum((values.gains["kkkkk"] - values.gains[name]) / size for name, size in around) / len(around)
        assert found.errors[layer] == pytest.approx(jackknife(np.asarray(shares_U), values.weights_U), rel=0.03)
    for length, by_start in found.details["windows"].items():
        lost = [v(values, "kkkkk") - v(values, "k" * start + "-" * int(length) + "k" * (5 - start - int(length))) for start in range(6 - int(length))]
        assert by_start == pytest.approx(lost)
        assert found.details["cheapest"][length] == {"start": int(np.argmin(lost)), "lost": pytest.approx(min(lost))}
    assert found.details["windows"].keys() == found.details["cheapest"].keys() == {str(length) for length in set(map(len, gone.values()))}


@pytest.mark.parametrize(("coalitions", "score"), PAIRS)
@pytest.mark.parametrize("how", ["failed", "not finite", "missing"])
def test_a_failed_coalition_marks_its_layers_and_no_other(
    coalitions: Callable[[int], tuple[str, ...]], score: Callable[[Values, int], Measurement], how: str
) -> None:
    bad = coalitions(5)[4]  # of layer 3 alone; of layer_drop layer 3 and up, told as layer 3
    sound = random_values(coalitions(5))
    gains = {name: gains for name, gains in sound.gains.items() if name != bad}
    if how == "not finite":
        gains[bad] = np.array([0.0, np.inf, 0, 0, 0, 0])
    failed = {bad: "out of memory"} if how == "failed" else {}
    found = score(Values(gains=gains, weights_U=sound.weights_U, unit="nats", source="wiki", failed=failed), 5)
    reason = {"failed": "out of memory", "not finite": "its value is not a finite number", "missing": "not measured"}[how]
    assert found.failed == {3: reason}
    assert math.isnan(found.values[3]) and found.errors is not None and math.isnan(found.errors[3])
    expected = score(sound, 5)
    assert expected.errors is not None
    for layer in (0, 1, 2, 4):
        assert (found.values[layer], found.errors[layer]) == (expected.values[layer], expected.errors[layer])


@pytest.mark.parametrize(("coalitions", "score"), PAIRS)
def test_without_the_whole_model_nothing_is_known(coalitions: Callable[[int], tuple[str, ...]], score: Callable[[Values, int], Measurement]) -> None:
    found = score(random_values(coalitions(4), failed={"kkkk": "out of memory"}), 4)
    assert found.failed == dict.fromkeys(range(4), "the whole model: out of memory") and all(map(math.isnan, found.values))
    assert found.details["whole"] is None
    json.dumps(found.details, allow_nan=False)


def test_a_failed_window_marks_all_layers_in_it() -> None:
    """Its layers would look cheaper without it than they are."""
    found = window_removal(random_values(window_removal_coalitions(5), failed={"k--kk": "too large"}), 5)
    assert found.failed == dict.fromkeys((1, 2), "without layers 1 to 2: too large")
    assert found.details["windows"]["2"][1] is None and None not in found.details["windows"]["3"]
    assert found.details["cheapest"]["2"]["start"] != 1


def test_a_single_unit_has_no_error() -> None:
    found = removal(random_values(removal_coalitions(2), n_units=1), 2)
    assert found.errors is not None and all(map(math.isnan, found.errors)) and not any(map(math.isnan, found.values)) and not found.failed
