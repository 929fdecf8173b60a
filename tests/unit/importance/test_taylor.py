"""Taylor importance against plain transformers and autograd, one document at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slayer.errors import DataError
from slayer.forward import load_model, split_rows
from slayer.importance.taylor import measure_taylor

MATRICES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def rows(pack: Callable[..., Any], random_documents: Callable[..., list[list[int]]]) -> Any:
    return pack([random_documents([9, 6], 0), random_documents([16], 1), random_documents([3, 11], 2), [[5]], random_documents([8, 8], 3)], 16)


def documents_of(part: Any) -> list[torch.Tensor]:
    """The documents of some packed rows, those with something to predict."""
    found = []
    for row in range(part.input_ids_BL.shape[0]):
        for number in part.documents_BL[row].unique().tolist():
            inside = (part.documents_BL[row] == number) & (number != 999)
            if inside.sum() > 1:
                found.append(part.input_ids_BL[row][inside])
    return found


def naive(model: Any, batches: list[list[torch.Tensor]]) -> tuple[dict[str, Any], list[float], list[float]]:
    """Importance of units [layers], values and errors of layers, written out from the formula."""
    n_layers = len(model.model.layers)
    units = [name for name, module in model.model.layers[0].named_modules() if list(module.parameters(recurse=False))]
    raw = np.zeros((len(batches), n_layers, len(units)))
    for number, documents in enumerate(batches):
        nats: Any = 0
        for document in documents:
            logits = model(input_ids=document[None], use_cache=False).logits[0, :-1]
            nats = nats + torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum")
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(nats / sum(len(document) - 1 for document in documents), parameters)
        gradient_of = {id(one): gradient for one, gradient in zip(parameters, gradients, strict=True)}
        for layer, unit in np.ndindex(n_layers, len(units)):
            inside = list(model.model.layers[layer].get_submodule(units[unit]).parameters())
            total = sum(float((one * gradient_of[id(one)]).abs().double().sum()) for one in inside)
            raw[number, layer, unit] = total / sum(one.numel() for one in inside)
    means = raw.mean(axis=0)
    is_matrix = np.array([unit in MATRICES for unit in units])
    low, high = means[:, is_matrix].min(), means[:, is_matrix].max()
    scaled = np.where(is_matrix, (means - low) / (high - low), (means - means.min()) / (means.max() - means.min()))
    by_batch = (raw[:, :, is_matrix].mean(axis=2) - low) / (high - low)
    errors = by_batch.std(axis=0, ddof=1) / math.sqrt(len(batches)) if len(batches) > 1 else np.full(n_layers, math.nan)
    return {unit: scaled[:, place] for place, unit in enumerate(units)}, by_batch.mean(axis=0).tolist(), errors.tolist()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_values_are_the_formula(family: str, make_model: Callable[..., Path], rows: Any) -> None:
    model = load_model(make_model(family, layers=4), "fp32")
    batches = [documents for part in split_rows(rows, 1) if (documents := documents_of(part))]
    units, values, errors = naive(model, batches)
    told = []
    with torch.inference_mode():  # whatever the caller is in
        found = measure_taylor(model, rows, source="text", micro_batch_rows=1, on_progress=lambda *one: told.append(one))
    assert (found.score, found.source, found.players, found.failed) == ("taylor", "text", "layers", {})
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    assert found.errors is not None
    np.testing.assert_allclose(found.errors, errors, atol=1e-6)
    assert min(errors) > 1e-3
    assert found.details["units"].keys() == units.keys()
    for unit, expected in units.items():
        np.testing.assert_allclose(found.details["units"][unit], expected, atol=1e-6)
    matrices = np.array([units[name] for name in MATRICES])
    assert (matrices.min(), matrices.max()) == (0, 1)
    assert [done for _, done, _ in told] == [1, 2, 3, 4] and told[0][2] == 4  # the row of one token says nothing


def test_one_micro_batch_has_no_error_bars(make_model: Callable[..., Path], rows: Any) -> None:
    model = load_model(make_model("llama", layers=4), "fp32")
    found = measure_taylor(model, rows, source="text", micro_batch_rows=8)
    np.testing.assert_allclose(found.values, naive(model, [documents_of(rows)])[1], atol=1e-6)
    assert found.errors is not None and all(map(math.isnan, found.errors))


def test_a_block_that_adds_nothing_is_the_least_important(make_model: Callable[..., Path], rows: Any) -> None:
    model = load_model(make_model("llama", layers=4), "fp32")
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    found = measure_taylor(model, rows, source="text", micro_batch_rows=2)
    assert found.values[2] == 0 and all(found.details["units"][name][2] == 0 for name in MATRICES)
    assert min(value for layer, value in enumerate(found.values) if layer != 2) > 0.01


def test_the_model_comes_back_as_it_was_and_one_gradient_lives_at_a_time(make_model: Callable[..., Path], rows: Any) -> None:
    model = load_model(make_model("llama", layers=4), "fp32")
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].requires_grad_(False)
    layers = list(model.model.layers.parameters())
    alive = []
    watched = model.model.layers[3].mlp.down_proj.weight.register_post_accumulate_grad_hook(
        lambda _: alive.append(sum(one.grad is not None for one in model.parameters()))
    )
    others = [
        one.register_hook(lambda _: alive.append(sum(other.grad is not None for other in model.parameters()))) for one in layers if one.requires_grad
    ]
    measure_taylor(model, rows, source="text", micro_batch_rows=2)
    for handle in [watched, *others]:
        handle.remove()
    assert max(alive) == 1 and len(alive) > 3 * len(others)
    assert model.training and not model.model.layers[1].training and not model.model.layers[1].mlp.training
    assert [one.requires_grad for one in model.model.layers[0].parameters()] == [False] * 9
    assert all(one.requires_grad for name, one in model.named_parameters() if ".layers.0." not in name)
    assert all(one.grad is None and not one._post_accumulate_grad_hooks for one in model.parameters())
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_what_is_not_finite_is_a_failure(make_model: Callable[..., Path], rows: Any) -> None:
    model = load_model(make_model("llama", layers=4), "fp32")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.inf
    found = measure_taylor(model, rows, source="text", micro_batch_rows=2)
    assert found.failed == dict.fromkeys(range(4), "a gradient is not finite")
    assert all(map(math.isnan, found.values)) and found.details["units"]["mlp.up_proj"] == [None] * 4


def test_a_layer_that_overflows_leaves_the_others_their_numbers(make_model: Callable[..., Path], rows: Any) -> None:
    """A weight that meets no input: nothing flows through it, but 0 · inf is no number."""
    model = load_model(make_model("llama", layers=4), "fp32")
    expected = measure_taylor(model, rows, source="text", micro_batch_rows=2)
    norm = model.model.layers[2].input_layernorm.weight
    norm.register_hook(lambda gradient: gradient * math.inf)
    found = measure_taylor(model, rows, source="text", micro_batch_rows=2)
    assert set(found.failed) == {2} and math.isnan(found.values[2]) and found.errors is not None and math.isnan(found.errors[2])
    assert all(math.isfinite(found.values[layer]) and math.isfinite(found.errors[layer]) for layer in (0, 1, 3))
    order = np.argsort(np.array(expected.values)[[0, 1, 3]])
    assert (np.argsort(np.array(found.values)[[0, 1, 3]]) == order).all()


def test_a_text_of_single_tokens_is_refused(make_model: Callable[..., Path], pack: Callable[..., Any]) -> None:
    model = load_model(make_model("llama", layers=4), "fp32")
    with pytest.raises(DataError, match="no token to predict"):
        measure_taylor(model, pack([[[3], [4]]], 4), source="text", micro_batch_rows=1)
