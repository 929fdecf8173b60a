"""Packed rows: no token sees another document, shown with logits, and with plain transformers on each document alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slayer.errors import ModelError
from slayer.forward import attention_masks, load_model, logits_of, mean_loss, nll_BL, require_packing, split_rows

LENGTHS = [[9, 1, 7, 5], [24], [4, 14]]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 3}),
    ("mistral", {"sliding_window": 500}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 500, "max_window_layers": 2}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    ("qwen3", {}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join(map(str, [variant[0], *variant[1].values()])))
def folder(request: pytest.FixtureRequest, make_model: Callable[..., Path]) -> Path:
    family, config = request.param
    return make_model(family, layers=4, **config)


@pytest.fixture
def documents(random_documents: Callable[..., list[list[int]]]) -> list[list[list[int]]]:
    return [random_documents(lengths, seed) for seed, lengths in enumerate(LENGTHS)]


@torch.inference_mode()
def test_packed_logits_are_those_of_each_document_alone(
    folder: Path, documents: list[list[list[int]]], pack: Callable[..., Any], load_plain: Callable[..., Any]
) -> None:
    packed = logits_of(load_model(folder, "fp32"), pack(documents, 24))
    plain = load_plain(folder, attn_implementation="eager")
    for row, row_documents in enumerate(documents):
        at = 0
        for tokens in row_documents:
            alone = plain(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            assert alone.abs().max() > 0.3, "logits this small would hide a difference"
            torch.testing.assert_close(packed[row, at : at + len(tokens)], alone, atol=1e-4, rtol=0)
            at += len(tokens)


@torch.inference_mode()
def test_changing_every_other_document_leaves_a_documents_logits_bit_identical(
    folder: Path, documents: list[list[list[int]]], pack: Callable[..., Any]
) -> None:
    model, rows = load_model(folder, "fp32"), pack(documents, 24)
    before = logits_of(model, rows)
    for number in (0, 1, 2, 3, 999):
        mine = rows.documents_BL == number
        changed = replace(rows, input_ids_BL=torch.where(mine, rows.input_ids_BL, (rows.input_ids_BL + 17) % 61))
        after = logits_of(model, changed)
        assert torch.equal(after[mine], before[mine])
        assert not torch.equal(after[~mine], before[~mine])


@torch.inference_mode()
def test_no_token_sees_a_later_one(folder: Path, documents: list[list[list[int]]], pack: Callable[..., Any]) -> None:
    model, rows = load_model(folder, "fp32"), pack(documents, 24)
    before = logits_of(model, rows)
    for place in (3, 8, 20):
        changed = rows.input_ids_BL.clone()
        changed[:, place] = (changed[:, place] + 17) % 61
        after = logits_of(model, replace(rows, input_ids_BL=changed))
        assert torch.equal(after[:, :place], before[:, :place])
        assert (after[:, place] != before[:, place]).any(-1).all()


@torch.inference_mode()
def test_positions_restart_with_every_document(
    random_documents: Callable[..., list[list[int]]], pack: Callable[..., Any], make_model: Callable[..., Path], load_plain: Callable[..., Any]
) -> None:
    """Rotary positions are relative, so a wrong offset hides; dynamic scaling stretches them as soon as any position is beyond 10."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
    folder = make_model("llama", layers=4, max_position_embeddings=10, rope_parameters=rope)
    documents = random_documents([10, 9, 5])
    packed = logits_of(load_model(folder, "fp32"), pack([documents], 24))
    alone = [load_plain(folder)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0] for tokens in documents]
    torch.testing.assert_close(packed[0], torch.cat(alone), atol=1e-4, rtol=0)


def test_masks_by_definition() -> None:
    from types import SimpleNamespace

    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 9]])
    full = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    window = torch.zeros_like(full)
    for row in range(2):
        for query in range(8):
            for key in range(query + 1):
                full[row, 0, query, key] = documents[row, query] == documents[row, key]
                window[row, 0, query, key] = full[row, 0, query, key] and query - key < 2
    kinds = ["full_attention", "sliding_attention"]
    assert torch.equal(attention_masks(documents, SimpleNamespace()), full)
    assert torch.equal(attention_masks(documents, SimpleNamespace(sliding_window=None, layer_types=kinds)), full)
    assert torch.equal(attention_masks(documents, SimpleNamespace(sliding_window=2)), window)
    assert torch.equal(attention_masks(documents, SimpleNamespace(sliding_window=8)), full)
    both = attention_masks(documents, SimpleNamespace(sliding_window=2, layer_types=kinds))
    assert torch.equal(both["full_attention"], full) and torch.equal(both["sliding_attention"], window)


def test_losses_against_a_loop(documents: list[list[list[int]]], pack: Callable[..., Any], make_model: Callable[..., Path]) -> None:
    model, rows = load_model(make_model("llama", layers=4), "fp32"), pack(documents, 24)
    with torch.inference_mode():
        logits = logits_of(model, rows)
    nll = nll_BL(logits.bfloat16(), rows.labels_BL)
    total, count = 0.0, 0
    for row in range(3):
        for place in range(24):
            label = int(rows.labels_BL[row, place])
            values = logits[row, place].double()
            assert nll[row, place].item() == pytest.approx(0.0 if label < 0 else float(values.logsumexp(0) - values[label]), abs=0.05)
            if label >= 0:
                total += float(values.logsumexp(0) - values[label])
                count += 1
    assert nll.dtype == torch.float32 and nll.shape == (3, 24)
    for micro_batch_rows in (1, 2, 3, 9):
        assert mean_loss(model, rows, micro_batch_rows) == pytest.approx(total / count, abs=1e-5)


def test_rows_are_split_in_order_and_whole(documents: list[list[list[int]]], pack: Callable[..., Any]) -> None:
    rows = pack(documents, 24)
    parts = split_rows(rows, 2)
    assert [len(part.input_ids_BL) for part in parts] == [2, 1]
    for name in ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(rows, name))


def test_loading_gives_the_precision_asked_for(make_model: Callable[..., Path]) -> None:
    folder = make_model("llama", layers=4, dtype="float16")
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = load_model(folder, precision)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype} and not model.training


def foreign(name: str, **sizes: int) -> Any:
    """A random model of an architecture that slayer has no module for."""
    import transformers

    config = getattr(transformers, f"{name}Config")(vocab_size=61, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def test_a_foreign_model_is_scored_over_packed_rows_only_if_it_can_be() -> None:
    """Gemma 2 adds its mask and caps its logits; BLOOM takes positions from the mask's shape, so a packed row would mislead it."""
    gemma = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}
    require_packing(foreign("Gemma2", **gemma))
    with pytest.raises(ModelError, match=r"bloom models cannot be scored over packed rows.*suite\.heldout=false"):
        require_packing(foreign("Bloom", hidden_size=32, n_layer=2, n_head=2))
