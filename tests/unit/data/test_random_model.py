from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from slayer.config import RandomModelConfig
from slayer.data.assets import tiny_model
from slayer.data.random_model import byte_tokenizer

TOKENIZER = byte_tokenizer()


@settings(deadline=None)
@given(st.text())
def test_any_text_round_trips_one_token_a_byte(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text.encode()) and TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_family_loads_in_plain_transformers(own_cache: Path, architecture: Any, tied: bool) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    folder = tiny_model(RandomModelConfig(architecture=architecture, layers=2, hidden_size=48, heads=6, tied_embeddings=tied))
    assert torch.equal(torch.random.get_rng_state(), before)
    model, seen = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]
    assert model.config.model_type == architecture and model.dtype == torch.float32
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.num_key_value_heads == 3 and model.config.num_hidden_layers == 2
    assert (model.model.layers[0].self_attn.q_proj.bias is not None) == (architecture == "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "naïve 日本 \n\t🎉"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and len(tokenizer) <= model.config.vocab_size
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cache: str, seed: int) -> dict[str, bytes]:
        monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / cache))
        return {file.name: file.read_bytes() for file in tiny_model(RandomModelConfig(layers=1, hidden_size=16, heads=2, seed=seed)).iterdir()}

    one, two, other = build("one", 1), build("two", 1), build("one", 2)
    assert one == two and one["model.safetensors"] != other["model.safetensors"]
