"""KL and ranks against each document by itself with plain transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from slayer.errors import ModelError
from slayer.evaluation.heldout import HeldoutSet, build_heldout_set
from slayer.evaluation.shift import kl_and_rank, shift_problem, token_shift
from slayer.forward import load_model

PREFIX, ROW_TOKENS = 60, 16
LENGTHS = [5, 16, 33, 1, 9, 20, 11, 3]


@dataclass(frozen=True, kw_only=True)
class Document:
    id: str
    tokens: Any
    n_bytes: int = 10


def documents() -> list[Document]:
    generator = random.Random(0)
    return [Document(id=str(number), tokens=np.array([generator.randrange(60) for _ in range(length)])) for number, length in enumerate(LENGTHS)]


def heldout() -> HeldoutSet:
    return build_heldout_set("law", documents(), prefix_token=PREFIX, row_tokens=ROW_TOKENS)


@torch.inference_mode()
def plainly(base: Any, model: Any, n_documents: int) -> tuple[float, list[int]]:
    """Total KL in nats and the rank of every greedy token, token by token."""
    kl, ranks = 0.0, []
    for document in documents()[:n_documents]:
        tokens, behind = document.tokens.tolist(), PREFIX
        while tokens:
            window, tokens = tokens[:ROW_TOKENS], tokens[ROW_TOKENS:]
            ids = torch.tensor([[behind, *window[:-1]]])
            before, after = (one(input_ids=ids, use_cache=False).logits[0].double().softmax(-1) for one in (base, model))
            for p, q in zip(before, after, strict=True):
                kl += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
                ranks.append(p.argsort(descending=True).tolist().index(int(q.argmax())) + 1)
            behind = window[-1]
    return kl, ranks


@pytest.mark.parametrize(("budget", "n_documents"), [(10_000, 8), (54, 3), (55, 4), (1, 1)])
def test_scores_are_those_of_the_first_whole_documents_alone(budget: int, n_documents: int, make_model: Callable[..., Path]) -> None:
    base, model = (load_model(make_model("llama", layers=2, seed=seed), "fp32") for seed in (0, 1))
    kl, ranks = plainly(base, model, n_documents)
    calls: list[tuple[str, int, int]] = []
    found = token_shift(
        base, model, {"law": heldout()}, tokens_per_source=budget, micro_batch_rows=2, on_progress=lambda *call: calls.append(call)
    )["law"]  # fmt: skip
    assert (found["documents"], found["tokens"]) == (n_documents, sum(LENGTHS[:n_documents])) == (n_documents, len(ranks))
    assert found["kl_nats"] == pytest.approx(kl / len(ranks), rel=1e-4)
    shares = [np.mean([rank == 1 for rank in ranks]), np.mean([2 <= rank <= 3 for rank in ranks]), np.mean([rank > 3 for rank in ranks])]
    assert [found[f"{name}_percent"] for name in ("unshifted", "marginal", "shifted")] == pytest.approx([100 * share for share in shares])
    if n_documents > 1:
        assert found["kl_interval"][0] < found["kl_nats"] < found["kl_interval"][1]
    else:
        assert found["kl_interval"] is None
    assert calls[-1][1] == calls[-1][2] == -(-sum(LENGTHS[:n_documents]) // ROW_TOKENS), "rows are packed tight, and only those that are needed"


def test_a_model_beside_itself_is_unshifted(make_model: Callable[..., Path]) -> None:
    model = load_model(make_model("qwen2", layers=2), "bf16")
    found = token_shift(model, model, {"law": heldout()}, tokens_per_source=60, micro_batch_rows=3)["law"]
    assert (found["kl_nats"], found["kl_interval"], found["unshifted_percent"], found["shifted_percent"]) == (0, [0, 0], 100, 0)


def test_chunks_change_nothing(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = (load_model(make_model("llama", layers=2, seed=seed), "fp32") for seed in (0, 1))
    whole = token_shift(base, model, {"law": heldout()}, tokens_per_source=99, micro_batch_rows=8)
    monkeypatch.setattr("slayer.evaluation.shift.LOGITS_AT_ONCE", 7 * 61)
    assert token_shift(base, model, {"law": heldout()}, tokens_per_source=99, micro_batch_rows=8) == whole


def test_ties_do_not_push_a_token_down() -> None:
    before, after = torch.tensor([[2.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    kl, rank = kl_and_rank(before, after)
    assert rank.tolist() == [1, 3] and (kl > 0).all()


def test_other_vocabularies_are_refused(make_model: Callable[..., Path]) -> None:
    base, model = (load_model(make_model("llama", layers=1, vocab_size=size), "fp32") for size in (61, 64))
    assert shift_problem(base, base) is None and "61 different tokens and the checkpoint 64" in str(shift_problem(base, model))
    with pytest.raises(ModelError, match="shift_tokens=0"):
        token_shift(base, model, {"law": heldout()}, tokens_per_source=10, micro_batch_rows=1)
