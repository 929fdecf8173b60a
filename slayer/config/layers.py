"""The base model, what is added to it and taken from it, and what trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


class RandomModelConfig(Section):
    """Shape of a randomly initialised model (tests and dry trials)."""

    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = Field("llama", description="which family to build")
    layers: int = Field(4, ge=1, description="decoder layers")
    hidden_size: int = Field(64, ge=8, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads; must divide hidden_size")
    tied_embeddings: bool = Field(True, description="share the input embedding with the output head")
    seed: int = Field(0, description="seed of the random weights")


class ShapeConfig(Section):
    """Sizes of a model whose files may not be here; biases and norms of heads are those of its architecture."""

    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = Field(description="the family it belongs to")
    layers: int = Field(ge=1, description="decoder layers")
    hidden_size: int = Field(ge=1, description="width of the residual stream")
    intermediate_size: int = Field(ge=1, description="width inside the MLP")
    heads: int = Field(ge=1, description="attention heads")
    key_value_heads: int = Field(ge=1, description="heads of keys and values")
    head_dim: int = Field(ge=1, description="width of a head")
    vocabulary: int = Field(ge=1, description="rows of the input embedding")
    tied_embeddings: bool = Field(False, description="the input embedding is the output head too")


class ModelConfig(Section):
    """Where the base model comes from; the first of path, hub, asset, random that is set is used."""

    name: str = Field(description="short name, shown in reports")
    path: str | None = Field(None, description="a Hugging Face folder with safetensors weights")
    hub: str | None = Field(None, description="a repository on the Hugging Face hub")
    revision: str | None = Field(None, description="commit or tag of the hub repository")
    asset: str | None = Field(None, description="an embedded model, fetched by `python -m slayer.data.assets fetch`")
    random: RandomModelConfig | None = Field(None, description="a random model of this shape")
    shape: ShapeConfig | None = Field(None, description="its sizes, read by a dry run while its files are not here")


Strategy = Literal[
    "none", "shallow_half", "even", "deep_half", "prefix_stack", "suffix_stack", "solar", "explicit", "least_important", "most_important"
]  # fmt: skip
PlanScore = Literal[
    "removal", "block_influence", "relative_magnitude", "norm", "angular_distance", "outlier_distribution", "weight_snr", "taylor", "expansion_probe",
    "window_removal", "shapley_window", "shapley",
]  # fmt: skip
"""Scores that can order the layers of a base before it is trained."""
Init = Literal["average", "copy", "slerp", "random"]


class ExpansionConfig(Section):
    """Which new blocks are inserted, where, and how they start."""

    strategy: Strategy = Field(description="the placement rule")
    after: list[int] | None = Field(None, description="explicit only: 0-based base layers that get a new block behind them")
    every: int | None = Field(None, ge=1, description="stride of shallow_half, deep_half and even, in base layers")
    count: int | None = Field(None, ge=1, description="number of new blocks (the halves take the outermost ones)")
    init: Init = Field("average", description="how a new block's weights are made from its neighbours")
    zero_outputs: bool = Field(True, description="zero o_proj and down_proj, so a new block starts as an exact identity")
    score: PlanScore | None = Field(None, description="least_important and most_important only: what orders the layers; null: removal")


class FreezeStageConfig(Section):
    """A stage of freeze=staged: what trains until a number of tokens is reached."""

    until_tokens: int | None = Field(None, ge=1, description="the stage ends once so many tokens are trained; null: the last one")
    parts: dict[str, float] = Field(
        description="what trains, each with a factor of the learning rate: new, tail, norms, originals[a:b] (base layers), head, embeddings"
    )


class FreezeConfig(Section):
    """What trains."""

    schedule: Literal["originals", "none", "existing_layers", "staged"] = Field(
        description="originals: only new blocks and a trained tail; none: everything; existing_layers: train_layers only; staged: stages"
    )
    train_layers: list[int] = Field(default_factory=list, description="existing_layers only: 0-based base layers that train")
    stages: list[FreezeStageConfig] = Field(
        default_factory=list, description="staged only: like [{until_tokens:1000000,parts:{new:1}},{parts:{new:1,norms:0.5}}]"
    )
    warmup_steps: int = Field(10, ge=0, description="staged only: steps over which the learning rate of what newly trains rises")
