"""A model that is made without its weights and cut while it is read is the model that is loaded whole and cut afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_training import PRECISIONS, RandomRows, names_in_layer, run_config, same, state_of, train_steps, weights_of

from slayer.errors import ModelError
from slayer.forward import hollow_model, load_model
from slayer.surgery.families import HEAD
from slayer.surgery.weights import Weights
from slayer.training.engine import TrainingEngine
from slayer.training.optim import TrainedGroup
from slayer.training.ranks import Ranks

MakeModel = Callable[..., Path]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def open_parts(folder: Path, ranks: Ranks, precision: str, **settings: Any) -> TrainingEngine:
    weights = Weights(folder)
    model = hollow_model(folder, precision, own_head=HEAD in weights)
    return TrainingEngine(model, [TrainedGroup(names=tuple(names_in_layer(model)))], run_config(3, precision, **settings), ranks, weights)


def open_whole(folder: Path, ranks: Ranks, precision: str, **settings: Any) -> TrainingEngine:
    model = load_model(folder, precision)
    return TrainingEngine(model, [TrainedGroup(names=tuple(names_in_layer(model)))], run_config(3, precision, **settings), ranks)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_files_own(make_model: MakeModel, ranks: Ranks, family: str, precision: str, stored: str) -> None:
    folder = make_model(family, layers=2, dtype=stored, sharded=True)
    engine = open_parts(folder, ranks, precision)
    try:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        weights = Weights(folder)
        assert same(weights_of(engine), {name: weights[name].to(dtype) for name in weights.infos})
    finally:
        engine.close()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_hollow_model_is_the_loaded_one_without_weights(make_model: MakeModel, precision: str, tied: bool) -> None:
    folder = make_model("llama", layers=2, tie_word_embeddings=tied)
    hollow, loaded = hollow_model(folder, precision, own_head=not tied), load_model(folder, precision)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    shapes = [{name: (tuple(one.shape), one.dtype) for name, one in model.named_parameters()} for model in (hollow, loaded)]
    assert shapes[0] == shapes[1] and (HEAD in shapes[0]) == (not tied)
    ours, theirs = dict(hollow.named_buffers()), dict(loaded.named_buffers())
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert hollow.config._attn_implementation == loaded.config._attn_implementation and not hollow.training


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_losses_are_those_of_the_model_that_was_loaded_whole(make_model: MakeModel, ranks: Ranks, precision: str, tied: bool) -> None:
    folder = make_model("llama", layers=3, tie_word_embeddings=tied)
    found = []
    for open_engine in (open_parts, open_whole):
        engine = open_engine(folder, ranks, precision, learning_rate=1e-2)
        try:
            _, diary = train_steps(engine, run_config(3, precision, learning_rate=1e-2), 4, loader=RandomRows(4))
            found.append((diary.losses, {**state_of(engine), **weights_of(engine)}))
        finally:
            engine.close()
    assert found[0][0] == found[1][0] and len(set(found[0][0])) == 4
    assert same(found[0][1], found[1][1])


def test_a_head_of_its_own_is_kept_though_the_configuration_ties_it(make_model: MakeModel, ranks: Ranks, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", layers=2, tie_word_embeddings=True), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[HEAD] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(folder, "fp32")
    assert torch.equal(loaded.lm_head.weight, tensors[HEAD])
    engine = open_parts(folder, ranks, "fp32")
    try:
        assert same(weights_of(engine), tensors)
    finally:
        engine.close()


def test_a_tensor_that_is_missing_is_named(make_model: MakeModel, ranks: Ranks, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(make_model("llama", layers=2), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_parts(folder, ranks, "fp32")
