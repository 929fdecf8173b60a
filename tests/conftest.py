"""Shared by all tests: no network, one thread, and small random models of every family."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VOCABULARY = 61


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows, int64 [B, L]."""

    input_ids_BL: Any
    labels_BL: Any
    positions_BL: Any
    documents_BL: Any


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_folder("qwen3", layers=4): folder of slayer's own random model with its byte tokenizer, in a cache of the test session."""
    cache = tmp_path_factory.mktemp("slayer-cache")

    def make(architecture: str = "llama", **changes: Any) -> Path:
        from slayer.config import RandomModelConfig
        from slayer.data.random_model import tiny_model

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLAYER_CACHE", str(cache))
            return tiny_model(RandomModelConfig(architecture=architecture, **changes))

    return make


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_model("qwen2", dtype="bfloat16", sharded=True): folder of a random model, saved by transformers, made once.

    Every parameter is random, norms and biases too, so that no mistake hides behind a one or a zero.
    """
    made: dict[Any, Path] = {}

    def make(family: str = "llama", *, dtype: str = "float32", sharded: bool = False, layers: int = 8, seed: int = 0, **config: Any) -> Path:
        key = (family, dtype, sharded, layers, seed, repr(sorted(config.items())))
        if key not in made:
            model = random_model(family, dtype, layers, seed, config)
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key], **({"max_shard_size": "6KB"} if sharded else {}))
        return made[key]

    return make


def random_model(family: str, dtype: str, layers: int, seed: int, config: dict[str, Any]) -> Any:
    import torch
    import transformers

    name = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[family]
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    # A large initial scale makes attention sharp and layers matter; a small one would let real faults drown in rounding.
    shape = getattr(transformers, name)(**{**sizes, "num_hidden_layers": layers, "tie_word_embeddings": False, "initializer_range": 0.2, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.dim() == 1:
                    tensor.add_(0.2 * torch.randn_like(tensor))
    return model.to(getattr(torch, dtype)).eval()


@pytest.fixture(scope="session")
def load_plain() -> Callable[..., Any]:
    """load_plain(folder): the model as transformers alone loads it, in its stored type; no missing and no unexpected tensor."""

    def load(folder: Path, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model, info = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto", "output_loading_info": True, **options})
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        return model.eval()

    return load


@pytest.fixture(scope="session")
def pack() -> Callable[..., Rows]:
    """pack([[document, document], [document]], length): lists of token ids laid out in rows, the rest padding of its own document."""

    def build(rows: Sequence[Sequence[Sequence[int]]], length: int) -> Rows:
        import torch

        shape = (len(rows), length)
        input_ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        positions, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, 999)
        for row, row_documents in enumerate(rows):
            at = 0
            for number, tokens in enumerate(row_documents):
                for offset, token in enumerate(tokens):
                    input_ids[row, at + offset] = token
                    positions[row, at + offset] = offset
                    documents[row, at + offset] = number
                    if offset + 1 < len(tokens):
                        labels[row, at + offset] = tokens[offset + 1]
                at += len(tokens)
        return Rows(input_ids_BL=input_ids, labels_BL=labels, positions_BL=positions, documents_BL=documents)

    return build


@pytest.fixture(scope="session")
def random_documents() -> Callable[..., list[list[int]]]:
    """random_documents([5, 3], seed): token ids of documents of these lengths."""

    def make(lengths: Sequence[int], seed: int = 0, vocabulary: int = VOCABULARY) -> list[list[int]]:
        import random

        generator = random.Random(seed)
        return [[generator.randrange(vocabulary) for _ in range(length)] for length in lengths]

    return make
