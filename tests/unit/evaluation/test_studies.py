"""Effects of what runs differ in, against statsmodels, formulas written out, and data whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from slayer.config import (
    DataConfig,
    EngineConfig,
    ExpansionConfig,
    FreezeConfig,
    ModelConfig,
    RandomModelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from slayer.evaluation.effects import one_way
from slayer.evaluation.studies import ModelEntry, differing_factors, entry_of, score_facts, study

GROUPS = {"shallow_half": [0.61, 0.63, 0.62, 0.66], "even": [0.58, 0.57, 0.6], "deep_half": [0.52, 0.55, 0.51, 0.53]}
FACT = {"kind": "task", "role": "general", "metric": "acc", "higher_is_better": True, "chance": 0.25}


def run(**changes: Any) -> RunConfig:
    values: dict[str, Any] = dict(
        run="trial", model=ModelConfig(name="tiny", random=RandomModelConfig()), expansion=ExpansionConfig(strategy="shallow_half"),
        freeze=FreezeConfig(schedule="originals"), data=DataConfig(name="mine", sources={"law": SourceConfig(role="domain", path="law.txt")}),
        engine=EngineConfig(zero_stage=0), train=TrainConfig(max_steps=3),
    )  # fmt: skip
    return RunConfig(**{**values, **changes})


def model(name: str, factors: dict[str, Any], **values: float) -> ModelEntry:
    return ModelEntry(name=name, folder=f"runs/{name}", factors=factors, scores={score: {"value": value} for score, value in values.items()})


def sweep(n_seeds: int = 3) -> list[ModelEntry]:
    """Placement moves arc by 0.1, pruning does not; every run takes its luck from the seed."""
    generator = np.random.default_rng(0)
    return [
        model(f"{expansion}-{prune}-{seed}", {"expansion": expansion, "prune": prune, "seed": seed},
              arc=0.5 + 0.1 * (expansion == "even") + generator.normal(0, 0.01), gold=1.0)
        for expansion in ("even", "shallow_half") for prune in (0, 2) for seed in range(n_seeds)
    ]  # fmt: skip


def test_one_way_is_that_of_statsmodels_and_of_the_formulas() -> None:
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm
    from statsmodels.stats.multicomp import pairwise_tukeyhsd

    found = one_way(GROUPS, ["expansion"])
    flat = [(level, value) for level, values in GROUPS.items() for value in values]
    frame = {"level": [level for level, _ in flat], "value": [value for _, value in flat]}
    table = anova_lm(smf.ols("value ~ C(level)", frame).fit())
    between, within = table["sum_sq"]["C(level)"], table["sum_sq"]["Residual"]
    anova = found["anova"]
    assert anova["f"] == pytest.approx(table["F"]["C(level)"]) and anova["p"] == pytest.approx(table["PR(>F)"]["C(level)"])
    assert (anova["df_between"], anova["df_within"]) == (2, 8)
    assert anova["eta_squared"] == pytest.approx(between / (between + within))
    assert anova["omega_squared"] == pytest.approx((between - 2 * within / 8) / (between + within + within / 8))
    tukey = pairwise_tukeyhsd(np.array(frame["value"]), frame["level"])
    wanted = {(row[0], row[1]): row[2:6] for row in tukey.summary().data[1:]}  # difference is second − first, as ours
    assert len(found["tukey"]) == 3
    for pair in found["tukey"]:
        sign = 1 if (pair["a"], pair["b"]) in wanted else -1
        difference, p, low, high = wanted[(pair["a"], pair["b"])] if sign == 1 else wanted[(pair["b"], pair["a"])]
        low, high = sorted((sign * low, sign * high))
        assert (pair["difference"], pair["p"], pair["low"], pair["high"]) == pytest.approx((sign * difference, p, low, high), abs=2e-4)
        a, b = (np.array(GROUPS[pair[side]]) for side in ("a", "b"))
        pooled = np.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / (len(a) + len(b) - 2))
        assert pair["cohens_d"] == pytest.approx((b.mean() - a.mean()) / pooled)
    assert found["levels"]["even"] == {"n": 3, "mean": pytest.approx(1.75 / 3), "sd": pytest.approx(np.std(GROUPS["even"], ddof=1))}


@pytest.mark.parametrize(
    ("groups", "why"),
    [({"even": [0.5, 0.6]}, "all runs with this score have the same expansion.*-m expansion=A,B seed=0,1,2"), ({}, "no run has both"),
     ({"even": [0.5], "none": [0.4]}, "expansion=even, expansion=none have one; at least 2 more runs.*-m seed=0,1,2"),
     ({"even": [0.5, 0.6], "none": [0.4]}, "expansion=none has one; at least 1 more run:"),
     ({"even": [0.7, 0.7], "none": [0.7, 0.7]}, "all 4 runs score the same, 0.7"),
     ({"even": [0.7, 0.7], "none": [0.3, 0.3]}, "the same expansion score exactly the same")],
)  # fmt: skip
def test_what_cannot_be_told_is_said(groups: dict[str, list[float]], why: str) -> None:
    import re

    found = one_way(groups, ["expansion"])
    assert set(found) == {"why_not"} and re.search(why, found["why_not"]), found


def test_a_level_with_one_run_is_shown_but_not_tested() -> None:
    found = one_way({**GROUPS, "none": [0.4]}, ["expansion"])
    assert found["levels"]["none"] == {"n": 1, "mean": 0.4, "sd": None} and found["anova"] == one_way(GROUPS, ["expansion"])["anova"]


def test_a_study_finds_what_moves_a_score() -> None:
    found = study(sweep(), "smollm2_135m", {"arc": FACT, "gold": FACT, "missing": FACT})
    assert list(found["factors"]) == ["expansion", "prune", "expansion × prune"]
    expansion, prune, both = (effects["arc"] for effects in found["factors"].values())
    assert expansion["anova"]["p_holm"] < 1e-4 and expansion["anova"]["eta_squared"] > 0.8 and prune["anova"]["p_holm"] > 0.05
    assert set(both["levels"]) == {"even, 0", "even, 2", "shallow_half, 0", "shallow_half, 2"} and len(both["tukey"]) == 6
    assert "score the same" in found["factors"]["expansion"]["gold"]["why_not"] and "no run" in found["factors"]["prune"]["missing"]["why_not"]
    assert found["models"][0]["factors"] == {"expansion": "even", "prune": 0, "seed": 0} and found["sequence"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_p_values_are_corrected_over_the_scores_of_a_factor() -> None:
    generator = np.random.default_rng(1)
    runs = [model(f"{n}", {"prune": n % 2}, a=generator.normal(n % 2), b=generator.normal(2 * (n % 2)), c=generator.normal()) for n in range(12)]
    effects = study(runs, None, {"a": FACT, "b": FACT, "c": FACT})["factors"]["prune"]
    first, second, third = sorted((effect["anova"] for effect in effects.values()), key=lambda anova: anova["p"])
    assert first["p_holm"] == pytest.approx(3 * first["p"]) and second["p_holm"] == pytest.approx(max(2 * second["p"], 3 * first["p"]))
    assert third["p_holm"] >= second["p_holm"]


def test_runs_without_a_score_or_a_factor_are_left_out() -> None:
    runs = [*sweep(2), model("plain", {}, arc=0.1), model("unscored", {"expansion": "even", "prune": 0, "seed": 9})]
    effects = study(runs, None, {"arc": FACT})["factors"]["expansion"]["arc"]
    assert {level: entry["n"] for level, entry in effects["levels"].items()} == {"even": 4, "shallow_half": 4}


def test_a_key_that_no_run_has() -> None:
    found = study(sweep(), None, {"arc": FACT}, ["expansoin"])["factors"]["expansoin"]["arc"]
    assert "did you mean expansion" in found["why_not"]
    assert list(study(sweep(), None, {"arc": FACT}, ["expansion.strategy"])["factors"]) == ["expansion"]


def entries(*configs: RunConfig) -> list[ModelEntry]:
    return [entry_of(f"run{number}", Path(f"runs/{number}"), config, {}) for number, config in enumerate(configs)]


def test_factors_are_what_was_typed_and_not_what_follows_from_it() -> None:
    """init comes with the placement, prune with tail: of those that split the runs alike one is named; the seed is none."""
    even, shallow = ExpansionConfig(strategy="even", init="copy"), ExpansionConfig(strategy="shallow_half", every=2)
    assert differing_factors(entries(run(expansion=even), run(expansion=shallow), run(expansion=shallow, seed=1))) == ["expansion"]
    copied = shallow.model_copy(update={"init": "copy"})
    assert differing_factors(entries(run(expansion=even), run(expansion=shallow), run(expansion=copied))) == ["expansion", "expansion.init"]
    assert differing_factors(entries(run(prune=0), run(prune=2, run="other", runs_dir="elsewhere"))) == ["prune"]
    other = DataConfig(name="other", sources={"code": SourceConfig(role="domain", path="x")})
    assert differing_factors(entries(run(), run(data=other))) == ["data"]
    assert differing_factors(entries(run(), run(seed=3))) == []


def test_an_entry_from_results(tmp_path: Path) -> None:
    heldout = {
        "law": {"role": "domain", "base": 2.0, "result": 1.5, "result_interval": [1.4, 1.6], "change_percent": -25.0,
                "change_interval_percent": [-30.0, -20.0], "verdict": "learnt"},
        "old": {"role": "replay", "base": 1.0, "result": 1.1, "result_interval": [1.0, 1.2], "change_percent": 10.0,
                "change_interval_percent": [5.0, 15.0], "verdict": "forgotten"},
        "older": {"role": "replay", "base": 1.0, "result": 1.0, "result_interval": [0.9, 1.1], "change_percent": 0.0,
                  "change_interval_percent": [-1.0, 1.0], "verdict": "no change detected"},
    }  # fmt: skip
    task = {"role": "general", "metric": "acc", "higher_is_better": True, "chance": 0.25, "base": 0.5, "result": 0.4, "result_interval": [0.3, 0.5],
            "change": -0.1, "change_interval": [-0.2, 0.0], "verdict": "forgotten", "groups": []}  # fmt: skip
    benchmarks = {"tasks": {"arc": task, "maths": {**task, "groups": ["mmlu"]}}, "groups": {"mmlu": task}}
    results = {"heldout": heldout, "benchmarks": benchmarks, "training": {"total_parameters": 7}}
    entry = entry_of("a", tmp_path, run(), results)
    assert set(entry.scores) == {"heldout/law", "heldout/old", "heldout/older", "arc", "mmlu"} and entry.parameters == 7
    assert entry.scores["heldout/law"] == {
        "value": 1.5, "interval": [1.4, 1.6], "change": -0.5, "change_interval": [-0.6, -0.4], "change_percent": -25.0, "verdict": "learnt",
    }  # fmt: skip
    assert entry.scores["mmlu"]["change_percent"] == pytest.approx(-20)
    assert entry.learnt == {"percent": -25.0, "interval_percent": [-30.0, -20.0]} and entry.forgotten == {"percent": 5.0, "interval_percent": None}
    facts = score_facts([{}, results])
    assert facts["mmlu"] == {**FACT, "kind": "group"} and facts["heldout/old"]["role"] == "replay" and set(facts) == set(entry.scores)
    assert study([entry], None, facts)["models"][0]["scores"]["arc"]["value"] == 0.4


def test_a_model_without_a_run_is_as_large_as_its_files(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, tmp_path / "model.safetensors")
    entry = entry_of("plain", tmp_path, None, {}, model_folder=tmp_path)
    assert entry.parameters == 17 and entry.factors == {} and entry.learnt is None
    assert entry_of("gone", tmp_path, None, {}, model_folder=tmp_path / "gone").parameters is None
