"""FLOPs per token: the published table for Llama-3-8B, and PyTorch's own counter on a real forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from published_shapes import plan_of, shape_in_conf, staged_plan

from slayer.cost.flops import train_flops, train_flops_per_token
from slayer.cost.tensors import trained_tensors
from slayer.surgery.build import build_expanded
from slayer.surgery.freeze import stage_factors
from slayer.surgery.plan import LayerPlan
from slayer.surgery.shape import read_shape

LLAMA3_8B = shape_in_conf("llama3_8b")


@pytest.mark.parametrize(
    ("plan", "forward", "to_inputs", "to_weights", "linear", "at_4096", "at_8192"),
    [
        (plan_of(32, "none", "none"), 15.01, 15.01, 15.01, 45.03, 48.25, 51.47),
        (plan_of(32, "shallow_half", "none", prune=2), 17.63, 17.63, 17.63, 52.88, 56.70, 60.53),
        (plan_of(32, "shallow_half", prune=2, tail="frozen"), 17.63, 16.75, 3.49, 37.87, 41.56, 45.25),
        (plan_of(32, "shallow_half"), 18.50, 17.63, 3.49, 39.62, 43.51, 47.40),
        (plan_of(32, "even"), 18.50, 16.75, 3.49, 38.74, 42.50, 46.26),
        (plan_of(32, "even", prune=2, tail="frozen"), 17.63, 15.88, 3.49, 37.00, 40.55, 44.11),
        (plan_of(32, "suffix_stack", prune=2, tail="frozen"), 17.63, 4.54, 3.49, 25.66, 27.47, 29.28),
    ],
    ids=["full-32", "full-38", "shallow-30+8", "shallow-32+8", "even-32+8", "even-30+8", "suffix-30+8"],
)
def test_the_published_table_of_gigaflops_per_token(
    plan: LayerPlan, forward: float, to_inputs: float, to_weights: float, linear: float, at_4096: float, at_8192: float
) -> None:
    """To the digits that are printed there."""
    passes = train_flops(LLAMA3_8B, plan, 0)
    found = [one.total / 1e9 for one in (passes.forward, passes.input_gradients, passes.weight_gradients)]
    assert [round(value, 2) for value in found] == [forward, to_inputs, to_weights]
    for sequence_length, gigaflops in ((0, linear), (4096, at_4096), (8192, at_8192)):
        assert train_flops_per_token(LLAMA3_8B, plan, sequence_length) / 1e9 == pytest.approx(gigaflops, abs=0.0051)


def test_the_row_without_weight_gradients_and_the_ratios_of_the_table() -> None:
    full = train_flops(LLAMA3_8B, plan_of(32, "none", "none"), 4096)
    without = full.total - full.weight_gradients.total
    assert without / 1e9 == pytest.approx(33.24, abs=0.0051) and full.total / without == pytest.approx(1.452, abs=0.0006)
    ours = train_flops(LLAMA3_8B, plan_of(32, "shallow_half", prune=2, tail="frozen"), 4096)
    same_38 = train_flops(LLAMA3_8B, plan_of(32, "shallow_half", "none", prune=2), 4096)
    even = train_flops(LLAMA3_8B, plan_of(32, "even"), 4096)
    ratios = [other.total / ours.total for other in (full, same_38, even)]
    assert ratios == [pytest.approx(value, abs=0.0006) for value in (1.161, 1.364, 1.023)]
    assert (ours.total + ours.recompute) / ours.total == pytest.approx(1.41, abs=0.011)


def test_a_trained_tail_costs_its_weight_gradient_and_no_more() -> None:
    frozen, trained = (train_flops_per_token(LLAMA3_8B, plan_of(32, "shallow_half", prune=2, tail=tail), 4096) for tail in ("frozen", "average"))
    assert trained - frozen == 2 * LLAMA3_8B.block_matrices


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A model and a plan of it, in one freeze stage."""

    family: str
    plan: LayerPlan
    stage: int = 0
    model: dict[str, Any] = field(default_factory=dict)


TIED = {"tie_word_embeddings": True}
PAIRS = {
    "llama, shallow": Pair(family="llama", plan=plan_of(8, "shallow_half")),
    "llama tied, average tail": Pair(family="llama", plan=plan_of(8, "shallow_half", prune=2), model=TIED),
    "llama with biases, full": Pair(family="llama", plan=plan_of(8, "even", "none", prune=1), model={"attention_bias": True, "mlp_bias": True}),
    "llama without GQA, existing layers": Pair(family="llama", plan=plan_of(8, "none", "existing_layers", (3, 5)), model={"num_key_value_heads": 4}),
    "llama, second stage": Pair(family="llama", plan=staged_plan(8, ("new",), ("new", "tail", "norms"), prune=1), stage=1),
    "mistral, frozen tail": Pair(family="mistral", plan=plan_of(8, "deep_half", prune=1, tail="frozen")),
    "mistral tied, full": Pair(family="mistral", plan=plan_of(8, "shallow_half", "none"), model=TIED),
    "qwen2, shallow": Pair(family="qwen2", plan=plan_of(8, "shallow_half", prune=1)),
    "qwen2 tied, existing layers": Pair(family="qwen2", plan=plan_of(8, "none", "existing_layers", (2,)), model=TIED),
    "qwen2, stage of the embeddings": Pair(family="qwen2", plan=staged_plan(8, ("new", "embeddings"), ("norms",))),
    "qwen3, trained tail": Pair(family="qwen3", plan=plan_of(8, "suffix_stack", prune=1, tail="train")),
    "qwen3, stage of the head": Pair(family="qwen3", plan=staged_plan(8, ("new",), ("originals[3:5]", "head")), stage=1),
}
SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_parameters_are_exact_and_flops_those_that_pytorch_counts(
    pair: Pair, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    """Within 1 %. PyTorch's counter does not know that attention is causal: it counts whole squares of plain attention, and the formula the
    half of them that is looked at. So the formula is given rows of twice the length, which is attention counted in full."""
    from torch.utils.flop_counter import FlopCounterMode

    folder = make_model(pair.family, **{**SIZES, **pair.model})
    build_expanded(folder, pair.plan, tmp_path / "model", seed=0)
    model, shape = load_plain(tmp_path / "model", attn_implementation="eager"), read_shape(folder)
    names = [name for name, _ in model.named_parameters()]
    trained = stage_factors(pair.plan, names, pair.stage)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    counted = trained_tensors(shape, pair.plan, pair.stage)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tokens = torch.randint(0, 61, (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    flops = train_flops_per_token(shape, pair.plan.at_stage(pair.stage), 2 * tokens.shape[1])
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(flops, rel=1e-2)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == set(trained)


STAGES = [
    ("new",), ("tail",), ("norms",), ("new", "norms"), ("originals[3:5]",), ("originals[3:5]", "norms"), ("embeddings",), ("new", "embeddings"),
]  # fmt: skip
STAGES_OF_A_HEAD = [("head",), ("tail", "head"), ("new", "norms", "head", "embeddings")]


@pytest.mark.parametrize(
    ("parts", "tied"), [*((parts, tied) for tied in (False, True) for parts in STAGES), *((parts, False) for parts in STAGES_OF_A_HEAD)]
)
def test_pytorch_counts_the_same_in_every_stage(
    parts: tuple[str, ...], tied: bool, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    """A stage stands between two others, of which nothing may be counted. Within 0.2 %: what is left is the counter's small product for RoPE."""
    from torch.utils.flop_counter import FlopCounterMode

    plan = staged_plan(8, ("tail",), parts, ("norms",), prune=1)
    folder = make_model("llama", **SIZES, tie_word_embeddings=tied)
    build_expanded(folder, plan, tmp_path / "model", seed=0)
    model, shape = load_plain(tmp_path / "model", attn_implementation="eager"), read_shape(folder)
    trained = stage_factors(plan, [name for name, _ in model.named_parameters()], 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    tokens = torch.randint(0, 61, (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    asked = train_flops_per_token(shape, plan.at_stage(1), 2 * tokens.shape[1])
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(asked, rel=2e-3)


def test_a_whole_staged_plan_costs_as_if_all_its_parts_trained_at_once() -> None:
    def cost(*stages: tuple[str, ...]) -> float:
        return train_flops_per_token(LLAMA3_8B, staged_plan(32, *stages), 4096)

    assert cost(("new",), ("tail", "norms")) == cost(("new", "tail", "norms")) > cost(("new", "tail")) > cost(("tail",))
    assert cost(("new", "tail")) == train_flops_per_token(LLAMA3_8B, plan_of(32, "shallow_half", tail="train"), 4096)
