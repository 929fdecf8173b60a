"""Small random models with a byte-level tokenizer, for tests and dry trials (`model=tiny`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from slayer.config import RandomModelConfig
from slayer.data.cache import cache_dir, written_aside

RECIPE = 3
"""Raised when the same configuration would give other files, so that a cached folder is not taken for it."""


def tiny_model(config: RandomModelConfig) -> Path:
    """Hugging Face folder (fp32 safetensors and tokenizer) of a random model; the same configuration gives the same bytes."""
    text = json.dumps([RECIPE, config.model_dump()], sort_keys=True)
    folder = cache_dir() / "models" / f"random-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        with written_aside(folder) as scratch:
            tokenizer = byte_tokenizer()
            model = _random_model(config, tokenizer)
            saved_by_any_rank(model).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    return folder


def saved_by_any_rank(model: Any) -> Any:
    """The same model, which `save_pretrained` writes on every rank of a run: transformers would on the first one only, and hosts have caches of
    their own."""
    model.should_save_on_this_rank = lambda is_main_process: True
    return model


def byte_tokenizer() -> Any:
    """A fast tokenizer with one token per UTF-8 byte and <bos>, <eos>, <pad>: 259 tokens, any text round-trips exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        clean_up_tokenization_spaces=False, model_max_length=2048,
    )  # fmt: skip


def _random_model(config: RandomModelConfig, tokenizer: Any) -> Any:
    import torch
    import transformers

    classes = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}
    shape = getattr(transformers, classes[config.architecture])(
        vocab_size=-(-len(tokenizer) // 8) * 8,  # some tokenizer classes add a token of their own
        hidden_size=config.hidden_size,
        intermediate_size=max(8, round(config.hidden_size * 8 / 3 / 8) * 8),
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads // 2 if config.heads % 2 == 0 else config.heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=config.tied_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state is none of our business
        torch.manual_seed(config.seed)
        return transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
