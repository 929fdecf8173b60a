"""Learned masks on updates that were planted: one that helps, one that harms, one that does next to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slayer.errors import ConfigError
from slayer.forward import load_model, mean_loss
from slayer.importance.gradients import token_loss
from slayer.importance.learned_mask import MaskedUpdate, measure_mask
from slayer.surgery.weights import Weights

HELPS, HARMS, NOTHING = 1, 2, 4
LAYERS = 6


@pytest.fixture(scope="module")
def base(make_model: Callable[..., Path]) -> Path:
    return make_model("llama", layers=LAYERS)


@pytest.fixture(scope="module")
def rows(pack: Callable[..., Any], random_documents: Callable[..., list[list[int]]]) -> Any:
    return pack([random_documents([9, 7], 0), random_documents([16], 1), random_documents([5, 11], 2), random_documents([8, 8], 3)], 16)


def trained_on(model: Any, rows: Any, layer: int, learning_rate: float, steps: int = 25) -> None:
    """Train one layer; a negative learning rate makes it worse."""
    parameters = list(model.model.layers[layer].parameters())
    for _ in range(steps):
        gradients = torch.autograd.grad(token_loss(model, rows), parameters)
        with torch.no_grad():
            for one, gradient in zip(parameters, gradients, strict=True):
                one -= learning_rate * gradient.sign()


@pytest.fixture
def planted(base: Path, rows: Any) -> Any:
    model = load_model(base, "fp32")
    trained_on(model, rows, HELPS, 0.01)
    trained_on(model, rows, HARMS, -0.002)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.001)  # outside layers: stays as trained
    trained_on(model, rows, NOTHING, 1e-6, steps=1)  # in the right direction, but not worth keeping
    return model


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_an_update_that_matters_ends_above_one_that_does_nothing(planted: Any, base: Path, rows: Any) -> None:
    before = bits(planted)
    planted.train()
    told = []
    found = measure_mask(
        planted, Weights(base), rows, source="text", steps=40, seed=0, micro_batch_rows=2, on_progress=lambda *one: told.append(one[1:])
    )
    assert (found.score, found.source, found.errors) == ("learned_mask", "text", None)
    assert found.values[HELPS] > 0.95
    assert found.values[NOTHING] < 0.3 and found.values[HARMS] < 0.3
    unchanged = [layer for layer in range(LAYERS) if layer not in (HELPS, HARMS, NOTHING)]
    assert all(math.isnan(found.values[layer]) for layer in unchanged)
    assert found.failed == dict.fromkeys(unchanged, "unchanged in training")
    assert found.details["changed"] == [layer in (HELPS, HARMS, NOTHING) for layer in range(LAYERS)] and found.details["steps"] == 40
    assert told == [(step, 40) for step in range(1, 41)]
    assert planted.training and all(one.requires_grad and one.grad is None for one in planted.parameters())
    after = bits(planted)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_losses_are_those_of_models_put_together_by_hand(planted: Any, base: Path, rows: Any) -> None:
    found = measure_mask(planted, Weights(base), rows, source="text", steps=3, seed=0, micro_batch_rows=3)
    start = load_model(base, "fp32")
    trained, between = mean_loss(planted, rows), load_model(base, "fp32")
    for layer in (HELPS, HARMS, NOTHING):
        for one, first, last in zip(*(model.model.layers[layer].parameters() for model in (between, start, planted)), strict=True):
            one.data = first + found.values[layer] * (last - first)
    for model in (start, between):
        model.model.embed_tokens.load_state_dict(planted.model.embed_tokens.state_dict())
    expected = {"start": mean_loss(start, rows), "trained": trained, "masked": mean_loss(between, rows)}
    assert found.details["losses"] == pytest.approx(expected, abs=1e-6)
    assert found.details["penalty"] == pytest.approx(0.5 * abs(expected["start"] - trained), abs=1e-6)
    assert expected["start"] > trained + 0.05


def test_the_slope_of_a_mask_is_the_difference_quotient(planted: Any, base: Path, rows: Any) -> None:
    update = MaskedUpdate(planted, Weights(base))
    assert update.layers == [HELPS, HARMS, NOTHING]
    at = np.array([0.8, 0.4, 0.5])
    update.set(at.tolist())
    loss, slopes_N = update.slopes(rows)
    assert loss == pytest.approx(mean_loss(planted, rows), abs=1e-6)
    for place in range(3):
        around = []
        for step in (1e-2, -1e-2):
            update.set((at + step * (np.arange(3) == place)).tolist())
            around.append(mean_loss(planted, rows))
        assert slopes_N[place] == pytest.approx((around[0] - around[1]) / 2e-2, rel=1e-2, abs=1e-4)
    assert abs(slopes_N[0]) > 0.01 and abs(slopes_N[1]) > 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ends_are_the_bits_of_start_and_trained(base: Path, rows: Any, precision: str) -> None:
    model, start = load_model(base, precision), load_model(base, precision)
    with torch.no_grad():
        model.model.layers[3].self_attn.q_proj.weight.mul_(1.37)
    before = bits(model)
    update = MaskedUpdate(model, Weights(base))
    update.set([0.0])
    assert update.layers == [3] and all(torch.equal(one, bits(start)[name]) for name, one in bits(model).items())
    update.set([0.25])
    middle = model.model.layers[3].self_attn.q_proj.weight.float()
    expected = (1 + 0.25 * 0.37) * start.model.layers[3].self_attn.q_proj.weight.float()
    torch.testing.assert_close(middle, expected, rtol=1e-5 if precision == "fp32" else 1e-2, atol=0)
    update.set([1.0])
    assert all(torch.equal(one, before[name]) for name, one in bits(model).items())


def test_one_gradient_lives_at_a_time(planted: Any, base: Path, rows: Any) -> None:
    changed = list(planted.model.layers[HELPS].parameters())
    alive: list[int] = []
    handles = [one.register_hook(lambda _: alive.append(sum(other.grad is not None for other in planted.parameters()))) for one in changed]
    MaskedUpdate(planted, Weights(base)).slopes(rows)
    for handle in handles:
        handle.remove()
    assert alive == [0] * len(changed)


def test_the_seed_decides(planted: Any, base: Path, rows: Any) -> None:
    def masks(seed: int) -> tuple[float, ...]:
        values = measure_mask(planted, Weights(base), rows, source="text", steps=6, seed=seed, micro_batch_rows=1).values
        return tuple(values[layer] for layer in (HELPS, HARMS, NOTHING))

    assert masks(0) == masks(0) != masks(1)


def test_nothing_changed_is_refused(base: Path, rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"no layer of this model differs .*\n *type: checkpoint=runs/NAME .*or base=DIR"):
        measure_mask(load_model(base, "fp32"), Weights(base), rows, source="text", steps=2, seed=0, micro_batch_rows=2)


def test_a_start_of_another_shape_is_refused(base: Path, rows: Any, make_model: Callable[..., Path]) -> None:
    for other, seen in (("llama", r"layers\.6\..*of shape .* here and missing there"), ("qwen2", r"layers\.0\..*bias is of shape .* missing there")):
        start = Weights(make_model(other, layers=LAYERS + (other == "llama")))
        with pytest.raises(ConfigError, match=seen):
            measure_mask(load_model(base, "fp32"), start, rows, source="text", steps=2, seed=0, micro_batch_rows=2)


def test_what_is_not_finite_is_a_failure_and_the_weights_come_back(planted: Any, base: Path, rows: Any) -> None:
    with torch.no_grad():
        planted.model.layers[HARMS].mlp.up_proj.weight[0, 0] = math.nan
    before = bits(planted)
    found = measure_mask(planted, Weights(base), rows, source="text", steps=5, seed=0, micro_batch_rows=2)
    assert all(map(math.isnan, found.values)) and "not finite at step 1" in found.failed[HELPS] and found.failed[0] == "unchanged in training"
    assert found.details["losses"]["trained"] is None and found.details["losses"]["start"] is not None
    assert all(torch.equal(one.nan_to_num(), before[name].nan_to_num()) for name, one in bits(planted).items())
