"""From a plan to parameter names."""

from __future__ import annotations

import pytest

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import PlanError
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import LayerPlan, build_plan

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
