"""The proof: exact where insertion is exact, alarmed where it is not, and honest about what pruning costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.forward import load_model, logits_of
from slayer.surgery.build import build_expanded
from slayer.surgery.plan import LayerPlan, build_plan
from slayer.surgery.proof import prove

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3}),
    ("qwen3", {"tie_word_embeddings": True}),
]
PRUNINGS: list[dict[str, Any]] = [
    {},
    {"prune": 2},
    {"prune": 2, "tail": "frozen"},
    {"prune": 3, "prune_by": "explicit", "prune_layers": [0, 3, 7], "tail": "average"},
]
DOCUMENTS = [[9, 6], [16], [3, 11]]


def plan_of(strategy: str = "shallow_half", init: str = "average", **pruning: Any) -> LayerPlan:
    chosen = ExpansionConfig.model_validate({"strategy": strategy, "init": init})
    return build_plan(8, chosen, FreezeConfig(schedule="originals"), **pruning)


@pytest.fixture
def documents(random_documents: Callable[..., list[list[int]]]) -> list[list[list[int]]]:
    return [random_documents(lengths, seed) for seed, lengths in enumerate(DOCUMENTS)]


@torch.inference_mode()
def plain_loss(model: Any, documents: list[list[list[int]]]) -> float:
    """Nats per predicted token, every document in a forward pass of its own."""
    total, count = 0.0, 0
    for tokens in (document for row in documents for document in row):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        total += float(cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:]), reduction="sum"))
        count += len(tokens) - 1
    return total / count


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=[family for family, _ in FAMILIES])
@pytest.mark.parametrize("pruning", PRUNINGS, ids=["whole", "last-average", "last-frozen", "explicit-average"])
def test_identity_is_exact_and_the_losses_are_those_of_plain_transformers(
    family: str,
    config: dict[str, Any],
    pruning: dict[str, Any],
    documents: list[list[list[int]]],
    make_model: Callable[..., Path],
    load_plain: Callable[..., Any],
    pack: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder, plan = make_model(family, **config), plan_of("even" if family == "qwen2" else "shallow_half", **pruning)
    build_expanded(folder, plan, tmp_path / "model", seed=0)
    proof = prove(load_model(folder, "fp32"), load_model(tmp_path / "model", "fp32"), plan, pack(documents, 16))
    assert proof.identity_max_difference == 0.0
    assert proof.sample_tokens == sum(length - 1 for row in DOCUMENTS for length in row)
    base, start = plain_loss(load_plain(folder), documents), plain_loss(load_plain(tmp_path / "model"), documents)
    assert proof.base_loss == pytest.approx(base, abs=1e-4) and proof.start_loss == pytest.approx(start, abs=1e-4)
    assert proof.loss_jump == pytest.approx(start - base, abs=2e-4)
    if pruning:
        assert abs(proof.loss_jump) > 1e-3, "pruning a random model must show"
    else:
        assert proof.loss_jump == 0.0


@pytest.mark.parametrize("pruning", PRUNINGS, ids=["whole", "last-average", "last-frozen", "explicit-average"])
@pytest.mark.parametrize("projection", ["self_attn.o_proj", "mlp.down_proj"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_block_that_is_not_quite_zero_is_noticed(
    pruning: dict[str, Any],
    projection: str,
    which: int,
    documents: list[list[list[int]]],
    make_model: Callable[..., Path],
    pack: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder, plan = make_model("llama"), plan_of(**pruning)
    build_expanded(folder, plan, tmp_path / "model", seed=0)
    expanded = load_model(tmp_path / "model", "fp32")
    with torch.no_grad():
        expanded.model.layers[plan.new_indices[which]].get_parameter(f"{projection}.weight")[3, 5] = 1e-3
    assert prove(load_model(folder, "fp32"), expanded, plan, pack(documents, 16)).identity_max_difference > 0


def test_an_inserted_block_is_compared_even_behind_pruned_layers(
    documents: list[list[list[int]]], make_model: Callable[..., Path], pack: Callable[..., Any], tmp_path: Path
) -> None:
    folder, plan = make_model("llama", dtype="bfloat16"), plan_of("suffix_stack", init="copy", prune=2)
    build_expanded(folder, plan, tmp_path / "model", seed=0)
    base, expanded = load_model(folder), load_model(tmp_path / "model")
    assert prove(base, expanded, plan, pack(documents, 16)).identity_max_difference == 0.0
    with torch.no_grad():
        expanded.model.layers[-1].mlp.down_proj.weight.fill_(0.5)
    assert prove(base, expanded, plan, pack(documents, 16)).identity_max_difference > 0


def test_both_models_are_left_as_they_were(
    documents: list[list[list[int]]], make_model: Callable[..., Path], pack: Callable[..., Any], tmp_path: Path
) -> None:
    folder = make_model("qwen2", use_sliding_window=True, sliding_window=3, max_window_layers=3)
    plan, rows = plan_of(prune=2), pack(documents, 16)
    build_expanded(folder, plan, tmp_path / "model", seed=0)
    models = [load_model(folder, "fp32"), load_model(tmp_path / "model", "fp32")]
    with torch.inference_mode():
        before = [logits_of(model, rows) for model in models]
        states = [model.config.to_dict() for model in models]
        prove(*models, plan, rows)
        assert all(torch.equal(logits_of(model, rows), logits) for model, logits in zip(models, before, strict=True))
    assert [model.config.to_dict() for model in models] == states
    assert [len(model.model.layers) for model in models] == [8, 8]
