"""Writes the expanded model: an ordinary Hugging Face folder, made tensor by tensor from the base's memory-mapped files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.errors import ModelError
from slayer.surgery.families import (
    EMBEDDINGS,
    HEAD,
    LAYER_PREFIX,
    expanded_config,
    family_of,
    is_residual_output,
    layer_of,
    read_any_config,
    read_model_config,
)
from slayer.surgery.initialise import mean_of, random_like, slerp_midpoint
from slayer.surgery.plan import Keep, LayerPlan, New
from slayer.surgery.weights import Recipe, Weights, combined_hash, copy_companions, require_space, write_weights

if TYPE_CHECKING:
    import torch

HASHES_NAME = "tensor_hashes.json"


def build_expanded(base: Path, plan: LayerPlan, folder: Path, *, seed: int) -> dict[str, str]:
    """Write the expanded model to `folder` (complete or not at all) and return SHA-256 of every tensor.

    Kept tensors go from the mapped file to the new one in pieces; a new block's tensors are made one at a time. What
    is held in memory besides the maps is at most one tensor and the pieces it is made of.
    """
    config = read_model_config(base)
    if config["num_hidden_layers"] != plan.n_base:
        raise ModelError(f"the plan is for {plan.n_base} layers but {base} has {config['num_hidden_layers']}; type run=NAME to start a new run")
    weights = Weights(base)
    recipes = _recipes(config, weights, plan, seed)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # what an interrupted build left counts as free space
    require_space(folder, sum(recipe.n_bytes for recipe in recipes), "the expanded model")
    aside.mkdir(parents=True)
    copy_companions(base, aside)
    (aside / "config.json").write_text(json.dumps(expanded_config(config, plan), indent=2) + "\n", encoding="utf-8")
    hashes = write_weights(aside, recipes)
    (aside / HASHES_NAME).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return hashes


def read_hashes(folder: Path) -> dict[str, str]:
    """The tensor hashes that `build_expanded` left beside its weights."""
    hashes: dict[str, str] = json.loads((folder / HASHES_NAME).read_text(encoding="utf-8"))
    return hashes


def write_trained(expanded: Path, trained: Mapping[str, torch.Tensor], folder: Path) -> dict[str, str]:
    """Write `expanded` again with the tensors of `trained` (rounded to the stored type) in place of its own.

    Returns SHA-256 of every tensor written; those not in `trained` come bit for bit from `expanded`.
    """
    weights = Weights(expanded)
    unknown = sorted(set(trained) - set(weights.infos))
    if unknown:
        raise ModelError(f"trained tensors {unknown[:3]} are not in {expanded}; the run folder was changed, type run=NAME to start a new run")

    def recipe(name: str) -> Recipe:
        info = weights.infos[name]
        if name not in trained:
            return Recipe(name=name, dtype=info.dtype, shape=info.shape, make=lambda: weights[name])
        return Recipe(name=name, dtype=info.dtype, shape=info.shape, make=lambda: trained[name].to(weights[name].dtype))

    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    copy_companions(expanded, aside)
    (aside / HASHES_NAME).unlink(missing_ok=True)
    hashes = write_weights(aside, [recipe(name) for name in weights.infos])
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return hashes


def _recipes(config: dict[str, Any], weights: Weights, plan: LayerPlan, seed: int) -> list[Recipe]:
    inner_names: dict[int, list[str]] = {}
    outside: list[str] = []
    for name in weights.infos:
        at = layer_of(name)
        if at is None:
            outside.append(name)
        else:
            inner_names.setdefault(at[0], []).append(at[1])
    for base_index in range(plan.n_base):
        if base_index not in inner_names:
            raise ModelError(f"{weights.folder} has no tensors of layer {base_index}; the folder is incomplete, copy it again")
    before = [name for name in outside if "embed" in name]
    recipes = [_kept(weights, name, name) for name in before]
    for index, entry in enumerate(plan.entries):
        origin = entry.base_index if isinstance(entry, Keep) else entry.sources[0]
        for inner in inner_names[origin]:
            target = f"{LAYER_PREFIX}{index}.{inner}"
            if isinstance(entry, New):
                recipes.append(_new(config, weights, entry, inner, target, seed))
            elif entry.averaged:
                recipes.append(_averaged(weights, entry.averaged, inner, target))
            else:
                recipes.append(_kept(weights, f"{LAYER_PREFIX}{origin}.{inner}", target))
    spare = {HEAD} if _head_is_a_copy(config, weights) else set()
    return recipes + [_kept(weights, name, name) for name in outside if name not in before and name not in spare]


def _head_is_a_copy(config: dict[str, Any], weights: Weights) -> bool:
    """True for a tied model whose files hold the embeddings a second time: once they train, the copy would be a head of its own."""
    import torch

    tied = config.get("tie_word_embeddings", False) and HEAD in weights and EMBEDDINGS in weights
    return bool(tied) and torch.equal(weights[HEAD], weights[EMBEDDINGS])


def _kept(weights: Weights, source: str, target: str) -> Recipe:
    info = weights.infos[source]
    return Recipe(name=target, dtype=info.dtype, shape=info.shape, make=lambda: weights[source])


def _averaged(weights: Weights, layers: tuple[int, ...], inner: str, target: str) -> Recipe:
    info = weights.infos[f"{LAYER_PREFIX}{layers[0]}.{inner}"]
    return Recipe(
        name=target,
        dtype=info.dtype,
        shape=info.shape,
        make=lambda: mean_of([weights[f"{LAYER_PREFIX}{layer}.{inner}"] for layer in layers]),
    )


def _new(config: dict[str, Any], weights: Weights, entry: New, inner: str, target: str, seed: int) -> Recipe:
    sources = [f"{LAYER_PREFIX}{layer}.{inner}" for layer in entry.sources]
    info = weights.infos[sources[0]]

    def make() -> torch.Tensor:
        import torch

        first = weights[sources[0]]
        if entry.zero_outputs and is_residual_output(family_of(config), inner):
            return torch.zeros(info.shape, dtype=first.dtype)
        if entry.init == "random":
            return random_like(first, target, seed, config.get("initializer_range", 0.02))
        if entry.init == "copy" or len(sources) == 1:
            return first
        second = weights[sources[1]]
        return slerp_midpoint(first, second) if entry.init == "slerp" else mean_of([first, second])

    return Recipe(name=target, dtype=info.dtype, shape=info.shape, make=make)


def model_hash(folder: Path) -> str:
    """SHA-256 that names a model's weights: the same for any sharding. Cached beside nothing: reads every file once."""
    import hashlib

    from slayer.surgery.weights import tensor_sha256

    weights = Weights(folder)
    config_digest = hashlib.sha256(json.dumps(read_any_config(folder), sort_keys=True).encode()).hexdigest()
    return combined_hash({name: tensor_sha256(weights[name]) for name in weights.infos} | {"config.json": config_digest})
