"""Removal scores against models from which the layer was really deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slayer.forward import load_model, logits_of, mean_loss, nll_BL, split_rows
from slayer.importance.removal import removal_losses

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
    ("qwen3", {}),
]


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=[family for family, _ in VARIANTS])
@torch.inference_mode()
def test_losses_are_bit_for_bit_those_of_models_without_the_layer(
    family: str,
    config: dict[str, Any],
    make_model: Callable[..., Path],
    load_plain: Callable[..., Any],
    pack: Callable[..., Any],
    random_documents: Callable[..., list[list[int]]],
) -> None:
    folder = make_model(family, layers=5, **config)
    rows = pack([random_documents([9, 6], 0), random_documents([16], 1), random_documents([3, 11], 2)], 16)

    def loss(model: Any) -> float:
        total = sum(float(nll_BL(logits_of(model, part), part.labels_BL).double().sum()) for part in split_rows(rows, 2))
        return total / int((rows.labels_BL != -100).sum())

    whole, without = removal_losses(load_model(folder, "fp32"), rows, micro_batch_rows=2)
    assert whole == loss(load_plain(folder)) and len(without) == 5
    for removed in range(5):
        model = load_plain(folder)
        model.model.layers = nn.ModuleList(layer for index, layer in enumerate(model.model.layers) if index != removed)
        model.config.num_hidden_layers = 4
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [kind for index, kind in enumerate(model.config.layer_types) if index != removed]
        assert without[removed] == loss(model)
    assert len(set(without)) == 5
    assert removal_losses(load_model(folder, "fp32"), rows, chosen=[3, 1], micro_batch_rows=2) == (whole, [without[3], without[1]])


def test_the_model_is_left_as_it_was_and_progress_is_told(
    make_model: Callable[..., Path], pack: Callable[..., Any], random_documents: Callable[..., list[list[int]]]
) -> None:
    model = load_model(make_model("llama", layers=5), "fp32")
    rows = pack([random_documents([12], seed) for seed in range(3)], 12)
    before, told = mean_loss(model, rows), []
    removal_losses(model, rows, micro_batch_rows=2, on_progress=lambda label, done, total: told.append((done, total)))
    assert told == [(done, 10) for done in range(1, 11)]
    assert mean_loss(model, rows) == before
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_a_layer_that_does_nothing_costs_nothing(
    make_model: Callable[..., Path], pack: Callable[..., Any], random_documents: Callable[..., list[list[int]]]
) -> None:
    model = load_model(make_model("llama", layers=5), "fp32")
    with torch.no_grad():
        for projection in (model.model.layers[3].self_attn.o_proj, model.model.layers[3].mlp.down_proj):
            projection.weight.zero_()
    whole, without = removal_losses(model, pack([random_documents([12])], 12))
    assert without[3] == whole and all(loss != whole for layer, loss in enumerate(without) if layer != 3)
