"""Held-out scores against an unpacked computation with plain transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slayer.evaluation.heldout import build_heldout_set, choose_documents, score_heldout
from slayer.forward import load_model, logits_of

PREFIX = 60


@dataclass(frozen=True, kw_only=True)
class Document:
    id: str
    tokens: Any
    n_bytes: int


def documents(lengths: list[int], seed: int = 0) -> list[Document]:
    generator = random.Random(seed)
    return [
        Document(id=f"{seed}-{number}", tokens=np.array([generator.randrange(60) for _ in range(length)]), n_bytes=3 * length + 1)
        for number, length in enumerate(lengths)
    ]


def windows(tokens: list[int], row_tokens: int) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets): every token once; the first window behind the prefix, the others behind the last token of the one before."""
    found = []
    behind = PREFIX
    while tokens:
        targets, tokens = tokens[:row_tokens], tokens[row_tokens:]
        found.append(([behind, *targets[:-1]], targets))
        behind = targets[-1]
    return found


@torch.inference_mode()
def plain_nats(model: Any, document: Document, row_tokens: int) -> float:
    total = 0.0
    for inputs, targets in windows(document.tokens.tolist(), row_tokens):
        log_probabilities = model(input_ids=torch.tensor([inputs]), use_cache=False).logits[0].double().log_softmax(-1)
        total -= sum(float(log_probabilities[place, target]) for place, target in enumerate(targets))
    return total


@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", {}), ("mistral", {"sliding_window": 5}), ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1})],
    ids=["llama", "mistral", "qwen2"],
)
def test_scores_are_those_of_each_document_alone(
    family: str, config: dict[str, Any], make_model: Callable[..., Path], load_plain: Callable[..., Any]
) -> None:
    folder = make_model(family, layers=4, **config)
    texts = documents([5, 16, 17, 1, 40, 32, 11, 3, 15])
    heldout = build_heldout_set("law", texts, prefix_token=PREFIX, row_tokens=16)
    model, plain = load_model(folder, "fp32"), load_plain(folder)
    wanted = [plain_nats(plain, document, 16) for document in texts]
    for micro_batch_rows in (1, 4, 99):
        seen = score_heldout(lambda part: logits_of(model, part), heldout, micro_batch_rows=micro_batch_rows)
        assert seen.dtype == np.float64
        np.testing.assert_allclose(seen, wanted, rtol=1e-5)
    assert heldout.n_documents == 9 and heldout.n_tokens.tolist() == [len(document.tokens) for document in texts]
    assert heldout.n_bytes.tolist() == [document.n_bytes for document in texts]


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    texts = documents([7, 30])
    rows_done: list[int] = []
    heldout = build_heldout_set("law", texts, prefix_token=PREFIX, row_tokens=8)
    nats = score_heldout(lambda part: torch.zeros(*part.input_ids_BL.shape, 61), heldout, micro_batch_rows=2, on_row=rows_done.append)
    np.testing.assert_allclose(nats, [7 * np.log(61), 30 * np.log(61)], rtol=1e-6)
    assert rows_done == [2, 4, 5]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), row_tokens=st.integers(2, 12))
def test_every_token_is_scored_once_behind_the_right_one(lengths: list[int], row_tokens: int) -> None:
    texts = documents(lengths)
    heldout = build_heldout_set("law", texts, prefix_token=PREFIX, row_tokens=row_tokens)
    seen: dict[int, list[tuple[list[int], list[int]]]] = {}
    for row in range(len(heldout.owners_BL)):
        pieces: dict[int, list[int]] = {}
        for place, number in enumerate(heldout.documents_BL[row].tolist()):
            pieces.setdefault(number, []).append(place)
        for places in pieces.values():
            assert places == list(range(places[0], places[-1] + 1)), "a window lies in one stretch"
            assert heldout.positions_BL[row, places].tolist() == list(range(len(places)))
            owners = set(heldout.owners_BL[row, places].tolist())
            assert len(owners) == 1
            inputs, labels = (tensor[row, places].tolist() for tensor in (heldout.input_ids_BL, heldout.labels_BL))
            if owners == {-1}:
                assert set(labels) == {-100}, "padding is not scored"
            else:
                seen.setdefault(owners.pop(), []).append((inputs, labels))
    assert seen == {owner: windows(document.tokens.tolist(), row_tokens) for owner, document in enumerate(texts)}


def test_the_fingerprint_changes_with_everything_that_changes_a_score() -> None:
    def fingerprint(lengths: list[int] = [5, 9], seed: int = 0, prefix: int = PREFIX, row_tokens: int = 16) -> str:  # noqa: B006
        return build_heldout_set("law", documents(lengths, seed), prefix_token=prefix, row_tokens=row_tokens).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint([9, 5]), fingerprint(seed=1), fingerprint(prefix=0), fingerprint(row_tokens=8), fingerprint([5])}) == 6


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=30), small=st.integers(1, 400), more=st.integers(0, 400))
def test_the_choice_of_documents_is_stable_and_grows(lengths: list[int], small: int, more: int) -> None:
    texts = documents(lengths)
    few, many = choose_documents(texts, small), choose_documents(texts, small + more)
    assert many[: len(few)] == few, "a smaller budget gives a prefix of a larger one's choice"
    assert choose_documents(few, small) == few
    assert all(len(document.tokens) for document in many)
    used = [len(document.tokens) for document in few]
    assert sum(used[:-1]) < small or len(used) <= 1
    assert sum(used) >= min(small, sum(lengths)), "the budget is used while there is text"


def test_no_more_documents_are_read_than_are_needed() -> None:
    asked: list[int] = []

    def read() -> Iterator[Any]:
        for number, document in enumerate(documents([10] * 40)):
            asked.append(number)
            yield document

    assert len(choose_documents(read(), 95)) == 10 and asked == list(range(10))
