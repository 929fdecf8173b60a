"""The assessment of many models on simulated ones: power laws are found where they are, and too few models are said to be too few."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from slayer.evaluation.multifaceted import correlation, multifaceted, score_map, size_class, size_curve

SIZES = [135_000_000, 360_000_000, 1_700_000_000, 3_000_000_000, 8_000_000_000, 14_000_000_000]


def many(n_models: int = 18) -> tuple[list[str], list[int | None], dict[str, list[float | None]]]:
    generator = np.random.default_rng(0)
    parameters = [SIZES[number % len(SIZES)] for number in range(n_models)]
    arc = [0.3 * (size / 1e8) ** 0.1 * np.exp(generator.normal(0, 0.02)) for size in parameters]
    luck: list[float | None] = [float(value) for value in generator.uniform(0.4, 0.5, n_models)]
    return [f"model{number}" for number in range(n_models)], list(parameters), {"arc": [float(v) for v in arc], "luck": luck}


def test_all_of_it() -> None:
    names, parameters, scores = many()
    scores["rare"] = [None] * 15 + [0.1, 0.2, 0.3]
    scores["constant"] = [1.0] * 18
    found = multifaceted(names, parameters, scores)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    arc, luck = found["gam"]["arc"], found["gam"]["luck"]
    assert arc["p_holm"] < 1e-6 and arc["deviance_explained"] > 0.9 and arc["p_holm"] == pytest.approx(2 * arc["p"]) and luck["p"] > 0.05
    assert "8 models or more of 4 sizes" in found["gam"]["rare"]["why_not"] and "score the same" in found["gam"]["constant"]["why_not"]
    assert found["sizes"]["arc"]["anova"]["p_holm"] < 1e-3 and "why_not" in found["sizes"]["rare"]
    assert found["map"]["scores"] == ["arc", "luck"] and np.shape(found["map"]["points"]) == (18, 2)
    assert found["map"]["perplexity"] == pytest.approx(17 / 3)


def test_the_curve_of_a_power_law_is_a_straight_line() -> None:
    _, parameters, scores = many()
    found = size_curve(parameters, scores["arc"])
    assert found["edf"] == pytest.approx(1, abs=0.5)
    slope, level = np.polyfit(np.log(np.array(parameters, float)), np.log(np.array(scores["arc"], float)), 1)
    for size, value, low, high in found["curve"]:
        assert value == pytest.approx(np.exp(level) * size**slope, rel=0.02) and low < value < high
    assert found["curve"][0][0] == pytest.approx(min(SIZES)) and found["curve"][-1][0] == pytest.approx(max(SIZES))


def test_a_flat_truth_is_seldom_called_a_curve() -> None:
    generator = np.random.default_rng(0)
    parameters: list[int | None] = [SIZES[number % len(SIZES)] for number in range(18)]
    alarms = sum(size_curve(parameters, generator.uniform(0.4, 0.5, 18).tolist())["p"] < 0.05 for _ in range(20))
    assert alarms <= 4, "choosing the penalty by cross-validation costs a little"


def test_correlations_over_the_models_that_have_both() -> None:
    from scipy.stats import pearsonr

    scores: dict[str, Any] = {"a": [0.1, 0.4, 0.2, 0.9, None], "b": [0.2, 0.3, 0.3, 0.8, 0.1], "c": [None, None, None, 0.1, 0.2], "d": [1.0] * 5}
    found = correlation(scores)
    assert found["scores"] == list("abcd")
    assert found["matrix"][0][1] == found["matrix"][1][0] == pytest.approx(pearsonr(scores["a"][:4], scores["b"][:4]).statistic)
    assert found["matrix"][0][2] is None and found["matrix"][1][3] is None and found["matrix"][0][0] == pytest.approx(1)
    assert "why_not" in correlation({"a": [0.1, 0.2, 0.3]})


def test_alike_models_lie_together() -> None:
    generator = np.random.default_rng(0)
    high = np.repeat([0.0, 1.0], 10)
    scores: dict[str, Any] = {name: (high + generator.normal(0, 0.05, 20)).tolist() for name in "abc"}
    points = np.array(score_map([str(number) for number in range(20)], scores)["points"])
    centres = [points[high == side].mean(0) for side in (0, 1)]
    spread = max(np.linalg.norm(points[high == side] - centres[side], axis=1).mean() for side in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 1.5 * spread


def test_few_models_are_said_to_be_few() -> None:
    assert "there are 2 models" in multifaceted(["a", "b"], [1, 2], {"arc": [0.1, 0.2]})["why_not"]
    names, parameters, scores = many(4)
    found = multifaceted(names, parameters, scores)
    assert "5 models or more" in found["map"]["why_not"] and all("why_not" in entry for entry in found["gam"].values())
    assert "none of known size" in multifaceted(names, [None] * 4, scores)["sizes"]["arc"]["why_not"]


@pytest.mark.parametrize(("parameters", "name"), [(135_000_000, "0B to 1.5B"), (1_500_000_000, "1.5B to 3B"), (70_000_000_000, "35B and more")])
def test_size_classes_are_the_papers(parameters: int, name: str) -> None:
    assert size_class(parameters) == name
