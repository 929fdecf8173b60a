"""Sizes of models: those that are here by their files, the others by what is published of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_shapes import CONF, model_in_conf, shape_in_conf
from safetensors.torch import load_file, save_file

from slayer.config import ShapeConfig
from slayer.data.assets import fetch
from slayer.models import resolve_model
from slayer.surgery.families import FAMILIES, read_model_config
from slayer.surgery.shape import read_shape, shape_from_sizes

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "qwen3_1_7b": 1_720_574_976,
    "smollm2_135m": 134_515_008,
}
"""Parameters as the Hugging Face hub states them of each repository's safetensors."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_loaded_model(family: str, tied: bool, make_model: Callable[..., Path], load_plain: Callable[..., Any]) -> None:
    folder = make_model(family, tie_word_embeddings=tied, dtype="bfloat16")
    shape, model = read_shape(folder), load_plain(folder)
    assert shape.n_layers == 8 and shape.block_parameters == sum(tensor.numel() for tensor in model.model.layers[0].parameters())
    assert shape.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert (shape.hidden_size, shape.vocabulary, shape.attention_width, shape.intermediate_size) == (16, 61, 16, 24)
    assert shape.head_parameters == model.lm_head.weight.numel() and shape.tied is tied
    assert {name: tuple(tensor.shape) for name, tensor in model.named_parameters()} == shape.tensors(8)


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"attention_bias": True, "mlp_bias": True}])
def test_biases_are_no_matrices(biases: dict[str, bool], make_model: Callable[..., Path], load_plain: Callable[..., Any]) -> None:
    folder = make_model("llama", **biases)
    shape, block = read_shape(folder), load_plain(folder).model.layers[0]
    assert shape.block_parameters == sum(tensor.numel() for tensor in block.parameters())
    assert shape.block_matrices == sum(tensor.numel() for tensor in block.parameters() if tensor.dim() == 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_sizes_alone_give_the_same_tensors_as_the_files(family: str, tied: bool, make_model: Callable[..., Path]) -> None:
    folder = make_model(family, layers=3, tie_word_embeddings=tied, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "heads": 4, "key_value_heads": 2, "head_dim": 8, "vocabulary": 61}
    made = shape_from_sizes(ShapeConfig.model_validate({"architecture": family, "layers": 3, "tied_embeddings": tied, **sizes}))
    read = read_shape(folder)
    assert made.tensors(3) == read.tensors(3) and made.n_layers == read.n_layers
    numbers = ("heads", "key_value_heads", "head_dim", "attention_width", "key_value_width", "tied", "block_matrices")
    assert [getattr(made, name) for name in numbers] == [getattr(read, name) for name in numbers]


def test_a_head_that_is_a_second_copy_of_the_embeddings_is_none(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model("llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_shape(tmp_path).tied and read_shape(tmp_path).parameters == read_shape(folder).parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_conf_states_sizes_that_give_the_published_number_of_parameters(name: str) -> None:
    assert shape_in_conf(name).parameters == PUBLISHED[name]


def test_conf_states_the_sizes_of_the_embedded_model() -> None:
    fetch(["smollm2_135m"])
    folder = resolve_model(model_in_conf("smollm2_135m"))
    read, stated = read_shape(folder), shape_in_conf("smollm2_135m")
    assert stated.tensors(30) == read.tensors(30) and stated.heads == read.heads == read_model_config(folder)["num_attention_heads"]
    assert (stated.n_layers, stated.key_value_heads, stated.head_dim, stated.vocabulary) == (30, 3, 64, 49_152)


def test_every_model_that_must_be_fetched_states_its_sizes() -> None:
    for path in CONF.glob("*.yaml"):
        model = model_in_conf(path.stem)
        assert (model.shape is not None) == (model.hub is not None or model.asset is not None), path.name
