"""Spectrum's signal-to-noise ratio against numpy's singular values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.forward import load_model
from slayer.importance.decoder import LoadedDecoder, open_decoder
from slayer.importance.weight_snr import measure_snr, signal_to_noise

MODULES = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def by_the_rule(weight: Any) -> float:
    values = np.linalg.svd(weight, compute_uv=False)
    sigma = np.subtract(*np.percentile(values, [75, 25])) / 1.349
    rows, columns = weight.shape
    beta = rows / columns if rows < columns else columns / rows
    threshold = sigma * (1 + np.sqrt(beta))
    above, below = [one for one in values if one > threshold], [one for one in values if one <= threshold]
    return float(sum(above) / (sum(below) if below else 1.0) / max(values))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_layers_are_means_over_their_matrices(family: str, make_model: Callable[..., Path]) -> None:
    folder = make_model(family, layers=5, hidden_size=32, num_attention_heads=4)
    layers = load_model(folder, "fp32").model.layers
    steps: list[tuple[int, int]] = []
    one = measure_snr(open_decoder(folder, "fp32"), on_progress=lambda what, done, total: steps.append((done, total)))
    assert sorted(one.details["matrices"]) == sorted(MODULES)
    expected = {name: [by_the_rule(layer.get_submodule(name).weight.detach().double().numpy()) for layer in layers] for name in MODULES}
    for name, values in expected.items():
        np.testing.assert_allclose(one.details["matrices"][name], values, rtol=1e-5)
    np.testing.assert_allclose(one.values, np.mean(list(expected.values()), axis=0), rtol=1e-5)
    assert one.score == "weight_snr" and one.source is None and one.errors is None and not one.failed
    assert steps == [(done, 5) for done in range(1, 6)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 30.0]))
def test_any_matrix(rows: int, columns: int, seed: int, spike: float) -> None:
    """Noise and a direction that stands out of it, or not."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, columns)) + spike * np.outer(generator.normal(size=rows), generator.normal(size=columns))
    weight = weight.astype(np.float32)
    assert signal_to_noise(torch.from_numpy(weight)) == pytest.approx(by_the_rule(weight.astype(np.float64)), rel=1e-3)


def test_structure_raises_the_ratio_and_scale_only_divides() -> None:
    noise = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    low_rank = noise + 5 * torch.outer(torch.ones(60), torch.ones(80))
    assert signal_to_noise(4 * noise) == pytest.approx(signal_to_noise(noise) / 4)  # the largest singular value is divided by
    share = [signal_to_noise(weight) * float(torch.linalg.svdvals(weight)[0]) for weight in (noise, low_rank)]
    assert share[1] > share[0]


def test_matrices_without_a_ratio() -> None:
    assert signal_to_noise(torch.zeros(8, 8)) == math.inf
    assert signal_to_noise(torch.diag(torch.tensor([3.0, 0, 0, 0]))) == math.inf  # nothing but zeros below the threshold
    assert signal_to_noise(torch.full((1, 9), 2.0)) == pytest.approx(1.0)  # a single value: all above, and 1 below
    assert signal_to_noise(3 * torch.eye(4)) == pytest.approx(4.0)  # no spread, so all above


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_streamed_model_gives_the_same(precision: str, make_model: Callable[..., Path]) -> None:
    folder = make_model("llama", layers=5)
    assert measure_snr(open_decoder(folder, precision)) == measure_snr(open_decoder(folder, precision, streamed=True))


def test_a_block_that_does_nothing_yet_is_measured_by_its_other_matrices(make_model: Callable[..., Path]) -> None:
    model = load_model(make_model("llama", layers=5), "fp32")
    intact = measure_snr(LoadedDecoder(model))
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    one = measure_snr(LoadedDecoder(model))
    assert one.details["matrices"]["mlp.down_proj"][1] is None and one.details["matrices"]["self_attn.o_proj"][1] is None
    others = [intact.details["matrices"][name][1] for name in MODULES if name not in ("mlp.down_proj", "self_attn.o_proj")]
    assert one.values[1] == pytest.approx(np.mean(others))
    assert one.values[0] == intact.values[0] and one.values[2:] == intact.values[2:] and not one.failed


def test_layers_that_cannot_be_measured_are_marked(make_model: Callable[..., Path]) -> None:
    model = load_model(make_model("llama", layers=5), "fp32")
    intact = measure_snr(LoadedDecoder(model))
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[2, 1] = torch.nan
        model.model.layers[3].self_attn.k_proj.weight[0, 0] = torch.inf
        for name in MODULES:
            model.model.layers[4].get_submodule(name).weight.zero_()
    one = measure_snr(LoadedDecoder(model))
    assert set(one.failed) == {3, 4}
    assert "mlp.up_proj" in one.failed[3] and "self_attn.k_proj" in one.failed[3] and "self_attn.q_proj" not in one.failed[3]
    assert one.values[:3] == intact.values[:3] and np.isnan(one.values[3:]).all()
    assert one.details["matrices"]["mlp.up_proj"][3] is None
    assert one.details["matrices"]["self_attn.q_proj"][3] == intact.details["matrices"]["self_attn.q_proj"][3]
