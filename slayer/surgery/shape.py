"""Sizes of a model: the shapes of its tensors and what follows from them, read from a folder's headers or made from the sizes in conf/model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from slayer.config import ShapeConfig
from slayer.surgery.families import EMBEDDINGS, FAMILIES, HEAD, LAYER_PREFIX, layer_of, read_model_config
from slayer.surgery.weights import Weights

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a model whose layers are alike. `block` are the tensors of one decoder layer by their name within it, `outside` those around
    the layers: embeddings, final norm, and the head where it is not the input embedding."""

    n_layers: int
    hidden_size: int
    vocabulary: int
    heads: int
    key_value_heads: int
    head_dim: int
    block: Shapes
    outside: Shapes

    @property
    def tied(self) -> bool:
        """True where the input embedding is the head too."""
        return HEAD not in self.outside

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP."""
        return self.block["mlp.down_proj.weight"][1]

    @property
    def attention_width(self) -> int:
        """All query heads side by side."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """All key heads side by side."""
        return self.key_value_heads * self.head_dim

    @property
    def block_parameters(self) -> int:
        """Parameters of one decoder layer."""
        return sum(map(prod, self.block.values()))

    @property
    def block_matrices(self) -> int:
        """Those of them that multiply: no norms, no biases."""
        return sum(prod(shape) for shape in self.block.values() if len(shape) > 1)

    @property
    def other_parameters(self) -> int:
        """Parameters outside the layers."""
        return sum(map(prod, self.outside.values()))

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, whether it is the input embedding or not."""
        return self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.n_layers * self.block_parameters + self.other_parameters

    def tensors(self, n_layers: int) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name, for a model of so many of these layers."""
        before = {name: shape for name, shape in self.outside.items() if name == EMBEDDINGS}
        layers = {f"{LAYER_PREFIX}{index}.{inner}": shape for index in range(n_layers) for inner, shape in self.block.items()}
        return {**before, **layers, **{name: shape for name, shape in self.outside.items() if name not in before}}


def read_shape(folder: Path) -> ModelShape:
    """Sizes of a model folder; reads only headers."""
    config = read_model_config(folder)
    return shape_of(config, {name: info.shape for name, info in Weights(folder).infos.items()})


def shape_of(config: Mapping[str, Any], shapes: Shapes) -> ModelShape:
    """Sizes from config.json and the shapes of the tensors themselves."""
    block = {at[1]: shape for name, shape in shapes.items() if (at := layer_of(name)) is not None and at[0] == 0}
    outside = {name: shape for name, shape in shapes.items() if layer_of(name) is None}
    if config.get("tie_word_embeddings", False):  # files may hold the embeddings a second time
        outside.pop(HEAD, None)
    heads = config["num_attention_heads"]
    return ModelShape(
        n_layers=config["num_hidden_layers"], hidden_size=config["hidden_size"], vocabulary=config["vocab_size"], heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads, head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        block=block, outside=outside,
    )  # fmt: skip


def shape_from_sizes(sizes: ShapeConfig) -> ModelShape:
    """Sizes of a model that is not here, from `model.shape`."""
    hidden, queries, keys = sizes.hidden_size, sizes.heads * sizes.head_dim, sizes.key_value_heads * sizes.head_dim
    family, inner = FAMILIES[sizes.architecture], sizes.intermediate_size
    outside: dict[str, tuple[int, ...]] = {EMBEDDINGS: (sizes.vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not sizes.tied_embeddings:
        outside[HEAD] = (sizes.vocabulary, hidden)
    block: dict[str, tuple[int, ...]] = {}
    for name, width in (("q", queries), ("k", keys), ("v", keys)):
        block[f"self_attn.{name}_proj.weight"] = (width, hidden)
        if family.attention_bias:
            block[f"self_attn.{name}_proj.bias"] = (width,)
    block["self_attn.o_proj.weight"] = (hidden, queries)
    if family.head_norms:
        block |= {f"self_attn.{name}_norm.weight": (sizes.head_dim,) for name in ("q", "k")}
    block |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    block |= {"mlp.down_proj.weight": (hidden, inner), "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    return ModelShape(
        n_layers=sizes.layers, hidden_size=hidden, vocabulary=sizes.vocabulary, heads=sizes.heads, key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_dim, block=block, outside=outside,
    )  # fmt: skip
