"""OWL against a loop over the modules of a plain transformers model, run on each document alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slayer.forward import PackedRows, load_model
from slayer.importance.decoder import Layer, LoadedDecoder, open_decoder
from slayer.importance.one_pass import measure_pass
from slayer.importance.outliers import OutlierSettings, allocation, prune
from slayer.importance.table import Measurement

Floats = NDArray[np.float64]
LENGTHS = [[7, 4], [5, 3, 2], [11], [6, 6], [2, 9]]
MODULES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def documents(random_documents: Callable[..., list[list[int]]]) -> list[list[list[int]]]:
    return [random_documents(lengths, seed) for seed, lengths in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def rows(documents: list[list[list[int]]], pack: Callable[..., PackedRows]) -> PackedRows:
    return pack(documents, 13)


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Path]) -> Path:
    return make_model("llama", layers=5)


def inputs_of(model: Any, layer: int, documents: list[list[list[int]]]) -> dict[str, Floats]:
    """What enters each linear module of a layer at every token that has a successor, all documents one after the other, [N, I]."""
    found: dict[str, list[Floats]] = {name: [] for name in MODULES}
    for document in (one for row in documents for one in row):
        handles = [
            model.model.layers[layer]
            .get_submodule(name)
            .register_forward_hook(lambda module, inputs, output, name=name: found[name].append(inputs[0][0, :-1].double().numpy()))
            for name in MODULES
        ]
        with torch.no_grad():
            model(input_ids=torch.tensor([document]))
        for handle in handles:
            handle.remove()
    return {name: np.concatenate(some) for name, some in found.items()}


def importance_of(model: Any, layer: int, documents: list[list[list[int]]]) -> dict[str, Floats]:
    """|W| · √(sum of squared inputs / number of sequences), by module: the released code's scale, which is not ours."""
    inputs = inputs_of(model, layer, documents)
    weights = {name: model.model.layers[layer].get_submodule(name).weight.detach().double().numpy() for name in MODULES}
    return {name: np.abs(weights[name]) * np.sqrt((inputs[name] ** 2).sum(0) / len(documents)) for name in MODULES}


def loss_of(model: Any, documents: list[list[list[int]]]) -> float:
    """Nats per token."""
    nats = []
    for document in (one for row in documents for one in row):
        tokens = torch.tensor([document])
        with torch.no_grad():
            nats += F.cross_entropy(model(input_ids=tokens).logits[0, :-1].double(), tokens[0, 1:], reduction="none").tolist()
    return float(np.mean(nats))


def pruned_in_place(folder: Path, documents: list[list[list[int]]], sparsities: list[float]) -> Any:
    """Layer after layer: look at what comes in now, drop the least of every row, go on with the pruned layer."""
    model = load_model(folder, "fp32")
    for layer, sparsity in enumerate(sparsities):
        for name, important in importance_of(model, layer, documents).items():
            weight = model.model.layers[layer].get_submodule(name).weight
            for row, values in enumerate(important):
                for column in sorted(range(len(values)), key=lambda column: values[column])[: int(len(values) * sparsity)]:
                    with torch.no_grad():
                        weight[row, column] = 0
    return model


def measured(decoder: Any, rows: PackedRows, **settings: Any) -> Measurement:
    (one,) = measure_pass(
        decoder, rows, ["outlier_distribution"], source="general", micro_batch_rows=2, outliers=OutlierSettings(**{"check": True, **settings})
    )
    return one


@pytest.mark.parametrize("multiple", [2.0, 3.5])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_shares_of_outliers(
    family: str, multiple: float, make_model: Callable[..., Path], documents: list[list[list[int]]], rows: PackedRows
) -> None:
    folder = make_model(family, layers=5)
    model = load_model(folder, "fp32")
    one = measured(open_decoder(folder, "fp32"), rows, multiple=multiple, check=False)
    expected = []
    for layer in range(5):
        together = np.concatenate([important.ravel() for important in importance_of(model, layer, documents).values()])
        expected.append(100 * float((together > multiple * together.mean()).mean()))
    np.testing.assert_allclose(one.values, expected, rtol=1e-9)
    assert len(set(expected)) > 2 and min(expected) > 0
    assert one.errors is None and one.details["check"] is None
    assert one.details["multiple"] == multiple and one.details["lambda"] == 0.08 and one.details["sparsity"] == 0.7
    assert one.details["sparsities"] == allocation(one.values, 0.08, 0.7)


def test_allocation_is_the_formula() -> None:
    shares = [3.0, 1.0, 2.0, 7.0]
    kept = np.array([2 * 0.08 * (share - 1.0) / 6.0 for share in shares])
    np.testing.assert_allclose(allocation(shares, 0.08, 0.7), 1 - (kept - kept.mean() + 0.3), atol=1e-12)
    assert allocation([2.0, 2.0], 0.08, 0.7) == [0.7, 0.7]


@given(
    st.lists(st.integers(0, 50).map(float), min_size=2, max_size=40).filter(lambda shares: len(set(shares)) > 1),
    st.floats(0.01, 0.2),
    st.floats(0.2, 0.8),
)
def test_allocation_keeps_the_mean_and_spares_outliers(shares: list[float], lam: float, sparsity: float) -> None:
    sparsities = allocation(shares, lam, sparsity)
    assert np.mean(sparsities) == pytest.approx(sparsity)
    assert max(sparsities) - min(sparsities) == pytest.approx(2 * lam)
    order = np.argsort(shares, kind="stable")
    assert (np.diff(np.array(sparsities)[order]) <= 1e-12).all()


def test_the_check_is_the_loss_of_pruned_models(folder: Path, documents: list[list[list[int]]], rows: PackedRows) -> None:
    decoder = open_decoder(folder, "fp32")
    assert isinstance(decoder, LoadedDecoder)
    before = {name: tensor.clone() for name, tensor in decoder.model.state_dict().items()}
    one = measured(decoder, rows, multiple=2.0, lam=0.2, sparsity=0.5)
    sparsities = one.details["sparsities"]
    expected = {
        "dense": loss_of(load_model(folder, "fp32"), documents),
        "uniform": loss_of(pruned_in_place(folder, documents, [0.5] * 5), documents),
        "owl": loss_of(pruned_in_place(folder, documents, sparsities), documents),
    }
    assert list(one.details["check"]) == list(expected)
    for name, loss in expected.items():
        assert one.details["check"][name] == pytest.approx(loss, abs=1e-5)
    assert len({round(loss, 3) for loss in expected.values()}) == 3 and max(sparsities) - min(sparsities) > 0.39
    after = decoder.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_check_is_the_same_streamed(folder: Path, rows: PackedRows) -> None:
    loaded, streamed = (measured(open_decoder(folder, "bf16", streamed=streamed), rows) for streamed in (False, True))
    assert loaded.details["check"]["owl"] > 0 and loaded == streamed


@pytest.mark.parametrize(("sparsity", "gone"), [(0.5, 8), (0.49, 7), (0.0, 0), (-0.2, 0), (1.3, 16)])
def test_how_much_of_a_row_goes(folder: Path, sparsity: float, gone: int) -> None:
    """16 input features; of equal ones the first go; nothing is pruned at 0 because 1 % of 16 is less than one."""
    layer = Layer(load_model(folder, "fp32").model.layers[0], None)
    with torch.no_grad():
        layer.module.self_attn.q_proj.weight.fill_(0.3)
    pruned = prune(layer, {"self_attn.q_proj": torch.ones(16)}, sparsity)
    assert (pruned.module.self_attn.q_proj.weight[:, :gone] == 0).all()
    assert (pruned.module.self_attn.q_proj.weight[:, gone:] == 0.3).all()
    assert (layer.module.self_attn.q_proj.weight == 0.3).all()
    assert torch.equal(pruned.module.mlp.up_proj.weight, layer.module.mlp.up_proj.weight)


def test_little_sparsity_is_one_percent(folder: Path) -> None:
    layer = Layer(load_model(folder, "fp32").model.layers[0], None)
    layer.module.self_attn.q_proj = torch.nn.Linear(250, 3, bias=False)
    pruned = prune(layer, {"self_attn.q_proj": torch.ones(250)}, -0.1)
    weight = layer.module.self_attn.q_proj.weight.detach()
    gone = pruned.module.self_attn.q_proj.weight == 0
    assert gone.sum(dim=1).tolist() == [2, 2, 2]
    assert torch.equal(weight.abs()[gone].view(3, 2).sort(dim=1).values, weight.abs().sort(dim=1).values[:, :2])


def test_layers_alike_are_pruned_alike(folder: Path, rows: PackedRows) -> None:
    """A multiple that no weight reaches finds no outlier anywhere."""
    one = measured(open_decoder(folder, "fp32"), rows, multiple=1e6)
    assert one.values == (0.0,) * 5 and one.details["sparsities"] == pytest.approx([0.7] * 5)
    assert one.details["check"]["owl"] == pytest.approx(one.details["check"]["uniform"], abs=1e-6)
