"""What the surgery must know of an architecture: where its layers are, which projections write to the residual stream,
and which configuration entries count or list layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slayer.errors import ModelError
from slayer.surgery.harmless import read_json, require_harmless
from slayer.surgery.plan import Keep, LayerPlan

LAYER_PREFIX = "model.layers."
MOST_LAYERS = 10_000
SIZES = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")
"""Entries of config.json that count something."""
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture. `residual_projections` are zeroed (weight and bias) in a new block; `attention_bias`: queries, keys and values have
    biases; `head_norms`: queries and keys are normalised, head by head."""

    model_type: str
    attention_bias: bool = False
    head_norms: bool = False
    residual_projections: tuple[str, ...] = ("self_attn.o_proj", "mlp.down_proj")
    per_layer_lists: tuple[str, ...] = ("layer_types",)


FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="llama"), Family(model_type="mistral"), Family(model_type="qwen2", attention_bias=True),
        Family(model_type="qwen3", head_norms=True),
    )
}  # fmt: skip


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a supported model folder; ModelError says what is wrong with any other."""
    config = read_any_config(folder)
    path = folder / "config.json"
    if config.get("model_type") not in FAMILIES:
        seen = config.get("model_type")
        raise ModelError(f"{path} has model_type={seen!r}; supported are {', '.join(FAMILIES)}. Type model.path=DIR with one of these")
    if config.get("quantization_config"):
        raise ModelError(
            f"{path} is of a quantised model, whose packed weights cannot be averaged or zeroed; save it in bfloat16, then model.path=DIR"
        )
    if "num_hidden_layers" not in config:
        raise ModelError(f"{path} does not say num_hidden_layers; copy the model folder again")
    for key, most in {"num_hidden_layers": MOST_LAYERS, **dict.fromkeys(SIZES, 2**31)}.items():
        value = config.get(key)
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise ModelError(f"{path} has {key}={value!r:.100}, which is no whole number from 1 to {most}; copy the model folder again")
    return config


def read_any_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder of any architecture: enough for a model that is only scored.

    ModelError for a folder that is none, and for one that could run code, fetch it or lead elsewhere (harmless.py).
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist; type model.path=DIR with a Hugging Face folder")
    path = folder / "config.json"
    try:
        require_harmless(folder)
        config = read_json(path)
    except OSError as error:
        raise ModelError(f"{folder} has no readable config.json, so it is not a Hugging Face model folder; type model.path=DIR") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} does not hold a JSON object; copy the model folder again")
    return config


def family_of(config: dict[str, Any]) -> Family:
    """The family of a configuration that `read_model_config` accepted."""
    return FAMILIES[config["model_type"]]


def layer_of(name: str) -> tuple[int, str] | None:
    """(layer, name within the layer) of a tensor, or None for embeddings, head and final norm."""
    if not name.startswith(LAYER_PREFIX):
        return None
    layer, _, inner = name[len(LAYER_PREFIX) :].partition(".")
    return (int(layer), inner) if layer.isascii() and layer.isdecimal() else None


def is_norm(name: str) -> bool:
    """True for the scale of an RMSNorm: a layer's two, those of queries and keys, the final one."""
    return name.endswith("norm.weight")


def is_residual_output(family: Family, inner: str) -> bool:
    """True for the weights and biases of the projections that write to the residual stream."""
    return any(inner.startswith(projection + ".") for projection in family.residual_projections)


def layer_kinds(config: dict[str, Any]) -> list[str] | None:
    """Attention kind of every layer where a configuration distinguishes them, by the rule transformers applies when it is not spelled out."""
    n_layers = config["num_hidden_layers"]
    if config.get("layer_types"):
        return list(config["layer_types"])
    if config["model_type"] in ("qwen2", "qwen3") and config.get("use_sliding_window") and config.get("sliding_window"):
        full_below = config.get("max_window_layers", 28)
        return ["sliding_attention" if layer >= full_below else "full_attention" for layer in range(n_layers)]
    return None


def expanded_config(config: dict[str, Any], plan: LayerPlan) -> dict[str, Any]:
    """The base's configuration with layer counts and per-layer lists rewritten for the expanded model."""
    result = {**config, "num_hidden_layers": plan.n_layers}
    origin = [entry.base_index if isinstance(entry, Keep) else entry.sources[0] for entry in plan.entries]
    kinds = layer_kinds(config)
    for key in family_of(config).per_layer_lists:
        values = kinds if key == "layer_types" else config.get(key)
        if values:
            if len(values) != plan.n_base:
                raise ModelError(f"config.json lists {len(values)} {key} for {plan.n_base} layers; copy the model folder again")
            result[key] = [values[base_index] for base_index in origin]
    if kinds is not None and "max_window_layers" in config:
        # Only readers that ignore layer_types look at this; right for them where all full layers come first.
        result["max_window_layers"] = next((index for index, kind in enumerate(result["layer_types"]) if kind == "sliding_attention"), plan.n_layers)
    return result
