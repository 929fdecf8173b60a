"""From a plan to parameter names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import PlanError
from slayer.surgery.build import build_expanded
from slayer.surgery.freeze import stage_factors, stage_parameters, trainable_names, unmatched_parts
from slayer.surgery.plan import LayerPlan, build_plan
from slayer.surgery.shape import read_shape

INNER = ("self_attn.q_proj.weight", "mlp.down_proj.bias", "input_layernorm.weight")


def names(n_layers: int) -> list[str]:
    blocks = [f"model.layers.{index}.{inner}" for index in range(n_layers) for inner in INNER]
    return ["model.embed_tokens.weight", *blocks, "model.norm.weight", "lm_head.weight"]


def plan(schedule: str, *layers: int, strategy: str = "shallow_half", prune: int = 0, **keys: str) -> LayerPlan:
    freeze = FreezeConfig.model_validate({"schedule": schedule, "train_layers": list(layers)})
    return build_plan(24, ExpansionConfig.model_validate({"strategy": strategy}), freeze, prune=prune, **keys)


def test_originals_trains_new_blocks_and_a_trained_tail_only() -> None:
    chosen = plan("originals", prune=2)
    assert chosen.new_indices == (2, 5, 8, 11, 14, 17)
    wanted = [f"model.layers.{index}.{inner}" for index in (2, 5, 8, 11, 14, 17, 27) for inner in INNER]
    assert trainable_names(chosen, names(28)) == wanted, "layer 2 must not bring layers 20 to 29 with it"
    assert trainable_names(plan("originals", prune=2, tail="frozen"), names(28)) == wanted[: -len(INNER)]


def test_none_freezes_nothing() -> None:
    assert trainable_names(plan("none"), names(30)) == names(30)
    assert trainable_names(plan("none", strategy="none"), iter(names(24))) == names(24)


def test_existing_layers_are_named_by_their_base_number() -> None:
    assert trainable_names(plan("existing_layers", 3), names(30)) == [f"model.layers.4.{inner}" for inner in INNER]


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="expansion=shallow_half, or freeze=none"):
        trainable_names(plan("originals", strategy="none"), names(24))
    with pytest.raises(PlanError, match=r"freeze\.train_layers=\[21\]"):
        trainable_names(plan("existing_layers", 23, strategy="none", prune=2), names(22))


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def staged(*stages: dict[str, float], n_base: int = 8, strategy: str = "shallow_half", **keys: Any) -> LayerPlan:
    """A plan with these stages, a thousand tokens each."""
    listed = [{"parts": parts, "until_tokens": 1000 * number if number < len(stages) else None} for number, parts in enumerate(stages, 1)]
    freeze = FreezeConfig.model_validate({"schedule": "staged", "stages": listed})
    return build_plan(n_base, ExpansionConfig.model_validate({"strategy": strategy}), freeze, **keys)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_parts_of_a_real_model(family: str, tied: bool, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path) -> None:
    """The modules say what a norm, an embedding and a head are; the layers stand where the plan put them: 0 1 + 2 3 + 4 5."""
    parts = ["new", "tail", "norms", "originals[1:3]", "embeddings"] + ([] if tied else ["head"])
    plan = staged(*({part: 0.5} for part in parts), prune=2)
    base = make_model(family, tie_word_embeddings=tied)
    build_expanded(base, plan, tmp_path / "model", seed=0)
    model = load_plain(tmp_path / "model")
    names = [name for name, _ in model.named_parameters()]
    assert sorted(read_shape(base).tensors(plan.n_layers)) == sorted(names), "the names are known before the model is built"

    layers = {index: {f"model.layers.{index}.{name}" for name, _ in layer.named_parameters()} for index, layer in enumerate(model.model.layers)}
    norms = {f"{name}.weight" for name, module in model.named_modules() if "Norm" in type(module).__name__}
    assert len(norms) == (4 if family == "qwen3" else 2) * 8 + 1 and norms <= set(names)
    wanted = {
        "new": layers[2] | layers[5], "tail": layers[7], "norms": norms - layers[2] - layers[5], "originals[1:3]": layers[1] | layers[3],
        "embeddings": {"model.embed_tokens.weight"}, "head": {"lm_head.weight"},
    }  # fmt: skip
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for stage, part in enumerate(parts):
        factors = stage_factors(plan, names, stage)
        assert set(factors) == wanted[part] and set(factors.values()) == {0.5}, part
        assert list(factors) == [name for name in names if name in factors], "in the order of the names"
        assert stage_parameters(plan, read_shape(base).tensors(plan.n_layers))[stage] == sum(sizes[name] for name in factors)
    assert set(trainable_names(plan, names)) == set().union(*(wanted[part] for part in parts))


def test_the_first_part_that_names_a_tensor_has_it() -> None:
    by_tail = stage_factors(staged({"tail": 0.5, "norms": 0.25}), names(10))
    by_norms = stage_factors(staged({"norms": 0.25, "tail": 0.5}), names(10))
    norm, matrix = "model.layers.9.input_layernorm.weight", "model.layers.9.self_attn.q_proj.weight"
    assert (by_tail[norm], by_tail[matrix], by_tail["model.norm.weight"]) == (0.5, 0.5, 0.25)
    assert (by_norms[norm], by_norms[matrix], by_norms["model.norm.weight"]) == (0.25, 0.5, 0.25)
    assert by_tail.keys() == by_norms.keys()


def test_other_schedules_have_one_stage_in_which_all_train_alike() -> None:
    for chosen in (plan("originals", prune=2), plan("none"), plan("existing_layers", 3)):
        listed = names(chosen.n_layers)
        assert stage_factors(chosen, listed) == dict.fromkeys(trainable_names(chosen, listed), 1.0)


def test_a_tensor_of_any_stage_counts_as_trained_at_some_time() -> None:
    chosen = staged({"new": 1.0}, {"head": 1.0}, {"originals[0:1]": 0.1})
    assert trainable_names(chosen, names(10)) == [f"model.layers.{index}.{inner}" for index in (0, 2, 5) for inner in INNER] + ["lm_head.weight"]


@pytest.mark.parametrize(
    ("parts", "keys", "why", "fix"),
    [
        ({"head": 0.5}, {}, "embeddings trains both", "{embeddings:0.5}"),
        ({"head": 0.5, "embeddings": 0.1}, {}, "embeddings trains both", "{embeddings:0.1}"),
        ({"new": 1.0, "norms": 0.5}, {"strategy": "none"}, "expansion=none inserts no new block", "{norms:0.5}"),
        ({"new": 1.0}, {"strategy": "none"}, "expansion=none inserts no new block", "{tail:1}"),
        ({"new": 1.0, "originals[6:8]": 0.1}, {"prune": 2}, "originals[6:8], and all of these layers are pruned", "{new:1}"),
        ({"originals[:]": 0.1, "tail": 0.5}, {}, "tail, and parts named before it have all its tensors", "{tail:0.5,originals[:]:0.1}"),
        ({"originals[7:8]": 0.1, "tail": 0.5}, {}, "tail, and parts named before it have all its tensors", "{originals[7:8]:0.1}"),
    ],
)
def test_a_part_that_is_left_with_nothing_is_refused(parts: dict[str, float], keys: dict[str, Any], why: str, fix: str) -> None:
    """Of a tied model: it has no head of its own."""
    chosen = staged({"norms": 1.0}, parts, **keys)
    listed = names(chosen.n_layers)[:-1]
    problem = unmatched_parts(chosen, listed)
    assert problem is not None and f"stage 2 trains {next(part for part in parts if part in problem.why)}" in problem.why and why in problem.why
    assert problem.fix == f"'freeze.stages=[{{until_tokens:1000,parts:{{norms:1}}}},{{parts:{fix}}}]'"
    for stage in (0, 1):
        with pytest.raises(PlanError, match=r"freeze\.stages"):
            stage_factors(chosen, listed, stage)
    with pytest.raises(PlanError, match=r"freeze\.stages"):
        trainable_names(chosen, listed)


def test_every_part_that_is_left_with_nothing_is_told() -> None:
    problem = unmatched_parts(staged({"head": 1.0, "tail": 1.0}, {"originals[:]": 1.0, "new": 1.0, "norms": 1.0}, strategy="none"), names(8)[:-2])
    assert problem is not None and problem.why.count("stage 1 trains head") == problem.why.count("stage 2 trains new") == 1
    assert "stage 2 trains norms, and parts named before it" in problem.why, "without the final norm, all norms are in the layers"
