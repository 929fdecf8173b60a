"""What is known of an architecture, checked against transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import ModelError
from slayer.surgery.families import FAMILIES, expanded_config, family_of, is_residual_output, layer_kinds, layer_of, read_model_config
from slayer.surgery.plan import LayerPlan, build_plan


def plan_of(n_base: int, strategy: str = "shallow_half", **keys: Any) -> LayerPlan:
    return build_plan(n_base, ExpansionConfig.model_validate({"strategy": strategy, **keys}), FreezeConfig(schedule="originals"))


def config_class(family: str) -> Any:
    import transformers

    return getattr(transformers, {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_projections_are_those_that_write_to_the_residual_stream(
    family: str, make_model: Callable[..., Path], load_plain: Callable[..., Any]
) -> None:
    """Zero exactly the tensors named, in a real block: its output must be its input; leave any one of them out: it must not be."""
    import torch

    biases = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}.get(family, {})
    model = load_plain(make_model(family, **biases))
    block = model.model.layers[0]
    named = [name for name, _ in block.named_parameters() if is_residual_output(FAMILIES[family], name)]
    assert len(named) == 2 + len(biases)
    hidden = torch.randn(1, 5, 16)
    positions = model.model.rotary_emb(hidden, torch.arange(5)[None])

    def moves() -> bool:
        with torch.inference_mode():
            return not torch.equal(block(hidden, position_embeddings=positions, attention_mask=None), hidden)

    with torch.no_grad():
        values = {name: parameter.clone() for name, parameter in block.named_parameters()}
        for left_out in named:
            for name, parameter in block.named_parameters():
                parameter.copy_(torch.zeros_like(parameter) if name in named and name != left_out else values[name])
            assert moves(), left_out
        block.get_parameter(named[-1]).zero_()
        assert not moves()


def test_names_of_tensors() -> None:
    assert layer_of("model.layers.12.mlp.down_proj.bias") == (12, "mlp.down_proj.bias")
    assert layer_of("model.norm.weight") is layer_of("lm_head.weight") is layer_of("model.embed_tokens.weight") is None
    llama = FAMILIES["llama"]
    assert is_residual_output(llama, "self_attn.o_proj.bias") and is_residual_output(llama, "mlp.down_proj.weight")
    assert not any(is_residual_output(llama, f"{part}.weight") for part in ("self_attn.q_proj", "mlp.up_proj", "post_attention_layernorm"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("window", [{}, {"use_sliding_window": True, "sliding_window": 4}, {"use_sliding_window": True, "sliding_window": None}])
@pytest.mark.parametrize("max_window_layers", [0, 3, 7, 8, 28, None])
def test_attention_kinds_that_are_not_spelled_out_are_those_transformers_derives(
    family: str, window: dict[str, Any], max_window_layers: int | None, tmp_path: Path
) -> None:
    """Real Qwen2 folders carry max_window_layers and no layer_types."""
    written = {"model_type": family, "num_hidden_layers": 8, **window}
    if max_window_layers is not None:
        written["max_window_layers"] = max_window_layers
    derived = config_class(family).from_dict(dict(written))
    assert (layer_kinds(written) or ["full_attention"] * 8) == derived.layer_types

    plan = plan_of(8)
    expanded = config_class(family).from_dict(expanded_config(written, plan))
    origin = [entry.base_index if hasattr(entry, "base_index") else entry.sources[0] for entry in plan.entries]
    assert expanded.layer_types == [derived.layer_types[base_index] for base_index in origin] and expanded.num_hidden_layers == 10


def test_the_count_of_full_layers_is_moved_for_readers_that_know_only_that() -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4}
    assert expanded_config(config, plan_of(8))["max_window_layers"] == 6
    assert expanded_config({**config, "max_window_layers": 8}, plan_of(8))["max_window_layers"] == 10
    assert expanded_config({**config, "use_sliding_window": False}, plan_of(8)) == {**config, "use_sliding_window": False, "num_hidden_layers": 10}


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_families_without_kinds_get_none(family: str) -> None:
    config = {"model_type": family, "num_hidden_layers": 8, "sliding_window": 4, "rope_scaling": {"factor": 8.0}}
    assert layer_kinds(config) is None
    assert expanded_config(config, plan_of(8)) == {**config, "num_hidden_layers": 10}
    assert family_of(config).model_type == family


def test_a_list_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ModelError, match="lists 2 layer_types for 8 layers"):
        expanded_config({"model_type": "qwen3", "num_hidden_layers": 8, "layer_types": ["full_attention"] * 2}, plan_of(8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no readable config.json"),
        ("{", "is not valid JSON"),
        ("[1]", "does not hold a JSON object"),
        ("{}", "model_type=None; supported are llama, mistral, qwen2, qwen3"),
        ('{"model_type": "gpt2"}', "model_type='gpt2'"),
        ('{"model_type": "llama"}', "does not say num_hidden_layers"),
        ('{"model_type": "llama", "num_hidden_layers": 2, "quantization_config": {"quant_method": "gptq"}}', "quantised model"),
    ],
)
def test_folders_that_cannot_be_used_say_why(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_model_config(tmp_path)


def test_a_missing_folder_and_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist; type model\.path=DIR"):
        read_model_config(tmp_path / "absent")
    good = {"model_type": "llama", "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(good), encoding="utf-8")
    assert read_model_config(tmp_path) == good
